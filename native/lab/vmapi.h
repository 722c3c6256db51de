/* Firecracker's API over its unix socket, as one descriptor of another program's poll loop. */
#ifndef FIRSTLIGHT_VMAPI_H
#define FIRSTLIGHT_VMAPI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>

enum { API_REQUESTS = 16, API_REQUEST_MAX = 8192, API_ANSWER_MAX = 16384 };

/* Of an API_CLOSED one the other end is gone, most likely with its process. */
enum api_state { API_WAITING, API_ASKING, API_DONE, API_FAILED, API_CLOSED };

struct api_request {
	const char *method, *path, *body;
	int64_t start, end; /* ns of CLOCK_MONOTONIC; end is 0 until it was answered */
};

struct api {
	int fd; /* an epoll: api_advance when it is readable; -1 before api_begin and after api_end */
	enum api_state state;
	int64_t connected; /* ns of CLOCK_MONOTONIC */
	size_t count, current;
	struct api_request requests[API_REQUESTS];
	char error[512]; /* why it failed or was closed, one line */

	int created, timer, socket;
	struct sockaddr_un address;
	int64_t limit;
	size_t received;
	char text[API_REQUESTS * API_REQUEST_MAX], answer[API_ANSWER_MAX + 1];
};

/* Gets ready to make the requests of a file, one a line as METHOD PATH BODY, each when the one
 * before was answered. Call it before what makes the socket is started; its directory must exist.
 * Returns 0, or -1 with ``error``. */
int api_begin(struct api *api, const char *socket, const char *requests);

/* Does what can be done now without waiting, and returns the state that this led to. */
enum api_state api_advance(struct api *api);

/* Writes the protocol's step lines into ``to``: "api.connect" from ``start`` on, then one for each
 * answered request, as "api/machine-config". Returns the length. */
size_t api_steps(const struct api *api, int64_t start, char *to, size_t size);

void api_end(struct api *api);

#endif
