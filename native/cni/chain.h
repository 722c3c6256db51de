/* One attachment's request, and what is done with it. Functions return 0, or -1 with the reason in
 * ``error`` (run.h).
 */
#ifndef FIRSTLIGHT_CHAIN_H
#define FIRSTLIGHT_CHAIN_H

#include "run.h"

#include <stdbool.h>

enum { PLUGINS = 16, VARIABLES = 64, REQUEST_MAX = 1 << 18 };

struct plugin {
	char *path, *conf;
	int64_t start, end;
};

struct request {
	char *kept, *version, *namespace, *interface, *packet, *until, *fill;
	char *variables[VARIABLES + 2]; /* the first is CNI_COMMAND */
	struct plugin plugins[PLUGINS];
	size_t count, variable_count;
	char *result; /* of the last ADD, or NULL */
	int64_t packet_start, packet_end;
	char text[REQUEST_MAX + 1]; /* no memory to ask for while the start waits */
};

int load(struct request *request, const char *file);

/* Writes the result to the file that the request names, or an empty one; and reads it back. */
void keep(const struct request *request);
void recall(struct request *request);

int add(struct request *request);

/* By all plugins even if one fails when ADD has failed; else the first failure stops it. */
int del(struct request *request, bool after_failure);

/* The first packet, from inside the namespace. That none comes back is not a failed ADD, unless the
 * request's end point is the answer.
 */
int first_packet(struct request *request);

/* Writes where the first packet goes into the file that the request names, for the pod's program. */
int fill_destination(const struct request *request);

#endif
