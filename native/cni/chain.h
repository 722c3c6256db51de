/* One attachment of one pod: what cnirun is asked for, and the calls of its plugins.
 *
 * Functions return 0, or a negative errno with the reason in the chain's ``error``.
 */
#ifndef FIRSTLIGHT_CHAIN_H
#define FIRSTLIGHT_CHAIN_H

#include "common/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CHAIN_PLUGINS = 16, CHAIN_VARIABLES = 64, CHAIN_REQUEST_MAX = 1 << 18 };

struct chain_plugin {
	char *path, *conf;
	int64_t start, end;
};

struct chain {
	char *kept, *version, *namespace, *interface, *packet, *until, *fill;
	char *variables[CHAIN_VARIABLES + 2]; /* the first is CNI_COMMAND */
	struct chain_plugin plugins[CHAIN_PLUGINS];
	size_t count, variable_count;
	char *result; /* of the last ADD, or NULL */
	int64_t packet_start, packet_end;
	struct error error;
	char text[CHAIN_REQUEST_MAX + 1]; /* so that no memory is requested while the start waits */
};

int chain_load(struct chain *chain, const char *file);

/* Writes the result to the file that the request names, or an empty one; and reads it back. */
int chain_keep(struct chain *chain);
void chain_recall(struct chain *chain);

int chain_add(struct chain *chain);

/* After a failed ADD, all plugins are called, even if one fails; otherwise the first failure
 * stops it. */
int chain_delete(struct chain *chain, bool after_failure);

/* The last part of a path. */
const char *chain_name(const char *path);

/* The first packet, from inside the namespace. A missing answer is no failure of ADD, unless the
 * answer is the request's end point. */
int chain_first_packet(struct chain *chain);

/* Writes the first packet's destination to the file that the request names. */
int chain_fill_gateway(struct chain *chain);

#endif
