/* One attachment's request, and what is done with it. Functions return 0, or -1 with the reason in
 * ``error``; of several reasons the first is kept, because what follows is clean-up.
 */
#ifndef FIRSTLIGHT_CHAIN_H
#define FIRSTLIGHT_CHAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PLUGINS = 16, VARIABLES = 64 };

struct plugin {
	char *path, *conf;
	int64_t start, end;
};

struct request {
	char *text, *kept, *version, *namespace, *interface, *packet;
	char *variables[VARIABLES + 2]; /* the first is CNI_COMMAND */
	struct plugin plugins[PLUGINS];
	size_t count, variable_count;
	char *result; /* of the last ADD, or NULL */
	int64_t packet_start, packet_end;
};

extern char error[1200];

__attribute__((format(printf, 1, 2))) int fail(const char *format, ...);
int64_t now(void);
const char *base(const char *path);
void close_fd(const int *fd);
#define scoped_fd __attribute__((cleanup(close_fd))) int

int load(struct request *request, const char *file);

/* Writes the result to the file that the request names, or an empty one; and reads it back. */
void keep(const struct request *request);
void recall(struct request *request);

int add(struct request *request);

/* By all plugins even if one fails when ADD has failed; else the first failure stops it. */
int del(struct request *request, bool after_failure);

/* The first packet, from inside the namespace. That none comes back is not a failed ADD. */
void first_packet(struct request *request);

#endif
