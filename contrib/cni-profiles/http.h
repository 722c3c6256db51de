/* HTTP/1.1 as a plugin speaks it with a daemon on its own node. */
#ifndef FIRSTLIGHT_PROFILE_HTTP_H
#define FIRSTLIGHT_PROFILE_HTTP_H

#include <stdint.h>

/* A connected socket; fails with ``who`` and errno. */
int connect_tcp(const char *who, const char *address, uint16_t port);
int connect_unix(const char *who, const char *path);

/* Sends a request and reads its answer to the end; returns its status. ``*answer`` is the body, for
 * the caller to free. */
int request(int fd, const char *method, const char *path, const char *body, char **answer);

#endif
