/* Messages with descriptors over unix sockets. Functions return 0 or more, or a negative errno. */
#ifndef FIRSTLIGHT_SOCKET_H
#define FIRSTLIGHT_SOCKET_H

#include "common/cleanup.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { RIGHTS_MAX = 8, SOCKET_MAX = 107 }; /* of a path */

/* Descriptors that came with a message; a caller that keeps one sets it to -1. */
struct rights {
	int count;
	int descriptors[RIGHTS_MAX];
};

int socket_send(int socket, const void *bytes, size_t size, const int *descriptors, int count);

/* Returns the message's size, or 0 at the end. -EMSGSIZE means that it was longer, or had more
 * descriptors, than fit; none of them is kept. */
ssize_t socket_receive(int socket, void *to, size_t size, int flags, struct rights *rights);

/* Listens at a path, for root alone. The type is SOCK_…, as of socket_connect. */
int socket_listen(const char *path, int type, int backlog);

/* A connection of that type, SOCK_…, to a path. Connecting, and each later message, fails with
 * -EAGAIN after that many ns; 0 means never. */
int socket_connect(const char *path, int type, int64_t patience);

void rights_close(struct rights *rights);

#define RIGHTS_SCOPE __attribute__((cleanup(rights_close)))

#endif
