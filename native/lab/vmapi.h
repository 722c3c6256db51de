/* Firecracker's API over its unix socket, as one descriptor of another program's poll loop. */
#ifndef FIRSTLIGHT_VMAPI_H
#define FIRSTLIGHT_VMAPI_H

#include "common/error.h"

#include <stddef.h>
#include <stdint.h>

enum { VMAPI_REQUESTS = 16, VMAPI_REQUEST_MAX = 8192, VMAPI_ANSWER_MAX = 16384 };

/* Of an VMAPI_CLOSED one the other end is gone, most likely with its process. */
enum vmapi_state { VMAPI_WAITING, VMAPI_ASKING, VMAPI_DONE, VMAPI_FAILED, VMAPI_CLOSED };

struct vmapi_request {
	const char *method, *path, *body;
	int64_t start, end; /* ns of CLOCK_MONOTONIC; end is 0 until it was answered */
};

struct vmapi {
	int fd; /* an epoll: vmapi_advance when it is readable; -1 before vmapi_begin and after vmapi_end */
	enum vmapi_state state;
	int64_t connected; /* ns of CLOCK_MONOTONIC */
	size_t count, current;
	struct vmapi_request requests[VMAPI_REQUESTS];
	struct error error; /* why it failed or was closed */

	int created, timer, socket;
	const char *address;
	int64_t limit;
	size_t received;
	char text[VMAPI_REQUESTS * VMAPI_REQUEST_MAX], answer[VMAPI_ANSWER_MAX + 1];
};

/* Prepares to make the requests of a file, one per line as METHOD PATH BODY, each when the one
 * before has been answered. Call it before the socket's maker starts; its directory must exist.
 * Returns 0, or a negative errno with ``error``. */
int vmapi_begin(struct vmapi *api, const char *socket, const char *requests);

/* Does what can be done now without waiting, and returns the state that this led to. */
enum vmapi_state vmapi_advance(struct vmapi *api);

/* Writes the protocol's step lines into ``to``: "api.connect" from ``start`` on, then one for each
 * answered request, as "api/machine-config". Returns the length. */
size_t vmapi_steps(const struct vmapi *api, int64_t start, char *to, size_t size);

void vmapi_end(struct vmapi *api);

#endif
