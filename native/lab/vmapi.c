#include "vmapi.h"

#include "cni/json.h"
#include "vmclock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

static const int64_t SOCKET_NS = 20000000000LL; /* until the socket is given up */
static const int64_t RETRY_NS = 100000;		/* between bind(2) and listen(2) of the server */

__attribute__((format(printf, 2, 3))) static int fail(struct api *api, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(api->error, sizeof api->error, format, arguments);
	va_end(arguments);
	for (char *at = api->error; *at; at++)
		if ((unsigned char)*at < ' ' || *at == 0x7f)
			*at = ' '; /* what others print is theirs */
	api->state = API_FAILED;
	return -1;
}

static int parse(struct api *api, const char *file)
{
	char *line, *rest = api->text;
	while ((line = strsep(&rest, "\n")) && *line) {
		if (api->count == API_REQUESTS)
			return fail(api, "%s has more than %d requests", file, API_REQUESTS);
		struct api_request *request = &api->requests[api->count++];
		request->method = strsep(&line, " ");
		request->path = strsep(&line, " ");
		request->body = line;
		if (!line || strlen(line) > API_REQUEST_MAX / 2)
			return fail(api, "%s:%zu is not METHOD PATH BODY", file, api->count);
	}
	return api->count ? 0 : fail(api, "%s has no request", file);
}

static int load(struct api *api, const char *file)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, api->text, sizeof api->text - 1);
	int reason = errno;
	if (fd >= 0)
		close(fd);
	if (n < 0)
		return fail(api, "cannot read %s: %s", file, strerror(reason));
	api->text[n] = 0;
	return parse(api, file);
}

static int watch(struct api *api, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};
	return epoll_ctl(api->fd, EPOLL_CTL_ADD, fd, &event);
}

static int watch_directory(struct api *api, const char *socket)
{
	char path[sizeof api->address.sun_path];
	strcpy(path, socket);
	api->fd = epoll_create1(EPOLL_CLOEXEC);
	api->created = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	api->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (api->fd < 0 || api->created < 0 || api->timer < 0 || watch(api, api->created) ||
	    watch(api, api->timer) || inotify_add_watch(api->created, dirname(path), IN_CREATE) < 0)
		return fail(api, "cannot wait for %s: %s", socket, strerror(errno));
	return 0;
}

static int wake_at(struct api *api, int64_t stamp)
{
	struct itimerspec when = {.it_value = {stamp / 1000000000, stamp % 1000000000}};
	return timerfd_settime(api->timer, TFD_TIMER_ABSTIME, &when, NULL)
		? fail(api, "timerfd_settime: %s", strerror(errno)) : 0;
}

int api_begin(struct api *api, const char *socket, const char *requests)
{
	*api = (struct api){.fd = -1, .created = -1, .timer = -1, .socket = -1,
			    .address.sun_family = AF_UNIX};
	api->limit = now() + SOCKET_NS;
	if (strlen(socket) >= sizeof api->address.sun_path)
		return fail(api, "the API socket's path is longer than %zu: %s",
			    sizeof api->address.sun_path - 1, socket);
	strcpy(api->address.sun_path, socket);
	if (load(api, requests) || watch_directory(api, socket))
		return -1;
	return wake_at(api, now() + RETRY_NS); /* it may be there already */
}

static int ask(struct api *api)
{
	char text[API_REQUEST_MAX];
	struct api_request *request = &api->requests[api->current];
	int size = snprintf(text, sizeof text,
			    "%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
			    "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
			    request->method, request->path, strlen(request->body), request->body);
	if (size >= (int)sizeof text)
		return fail(api, "the request %s is too long", request->path);
	api->received = 0;
	request->start = now();
	if (send(api->socket, text, (size_t)size, MSG_NOSIGNAL) == size)
		return 0;
	int is_gone = errno == EPIPE || errno == ECONNRESET;
	fail(api, "cannot send %s %s: %s", request->method, request->path, strerror(errno));
	if (is_gone)
		api->state = API_CLOSED;
	return -1;
}

/* Also where nothing has changed: any event may mean that the socket is there. */
static int try_to_connect(struct api *api)
{
	char ignored[4096] __attribute__((aligned(8)));
	while (read(api->created, ignored, sizeof ignored) > 0 ||
	       read(api->timer, ignored, sizeof ignored) > 0)
		;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fail(api, "socket: %s", strerror(errno));
	if (connect(fd, (struct sockaddr *)&api->address, sizeof api->address)) {
		int reason = errno;
		close(fd);
		if (now() >= api->limit)
			return fail(api, "no API socket at %s after %" PRId64 " s: %s",
				    api->address.sun_path, SOCKET_NS / 1000000000,
				    strerror(reason));
		if (reason == ENOENT)
			return wake_at(api, api->limit);
		if (reason == ECONNREFUSED || reason == EAGAIN)
			return wake_at(api, now() + RETRY_NS);
		return fail(api, "cannot connect to %s: %s", api->address.sun_path,
			    strerror(reason));
	}
	api->socket = fd;
	api->connected = now();
	api->state = API_ASKING;
	epoll_ctl(api->fd, EPOLL_CTL_DEL, api->created, NULL);
	epoll_ctl(api->fd, EPOLL_CTL_DEL, api->timer, NULL);
	if (watch(api, fd))
		return fail(api, "epoll_ctl: %s", strerror(errno));
	return ask(api);
}

/* The answer's body once all of it is here, else NULL. */
static char *body(struct api *api)
{
	static const char field[] = "\r\ncontent-length:";
	char *end = strstr(api->answer, "\r\n\r\n");
	if (!end)
		return NULL;
	char *length = strcasestr(api->answer, field);
	unsigned long size = length && length < end ? strtoul(length + strlen(field), NULL, 10) : 0;
	return api->received >= (size_t)(end + 4 - api->answer) + size ? end + 4 : NULL;
}

static int refused(struct api *api, const struct api_request *request, int status, const char *said)
{
	char message[400];
	const char *end = json_end(said);
	const char *fault = end && *said == '{' ? json_member(said, "fault_message") : NULL;
	if (fault)
		json_text(fault, message, sizeof message);
	else
		snprintf(message, sizeof message, "%s", *said ? said : "no reason given");
	return fail(api, "%s %s answered %d: %s", request->method, request->path, status, message);
}

static int settle(struct api *api, const char *said)
{
	struct api_request *request = &api->requests[api->current];
	int status = 0;
	request->end = now();
	if (sscanf(api->answer, "HTTP/%*d.%*d %d", &status) != 1)
		return fail(api, "%s %s was not answered in HTTP", request->method, request->path);
	if (status / 100 != 2)
		return refused(api, request, status, said);
	if (++api->current < api->count)
		return ask(api);
	api->state = API_DONE;
	return 0;
}

static int listen_to(struct api *api)
{
	struct api_request *request = &api->requests[api->current];
	ssize_t n = recv(api->socket, api->answer + api->received, API_ANSWER_MAX - api->received, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		fail(api, "%s %s was not answered: %s", request->method, request->path,
		     n ? strerror(errno) : "the API was closed");
		api->state = API_CLOSED;
		return -1;
	}
	api->received += (size_t)n;
	api->answer[api->received] = 0;
	char *said = body(api);
	if (said)
		return settle(api, said);
	return api->received < API_ANSWER_MAX ? 0 : fail(api, "%s %s has too long an answer",
							 request->method, request->path);
}

enum api_state api_advance(struct api *api)
{
	if (api->state == API_WAITING)
		try_to_connect(api);
	else if (api->state == API_ASKING)
		listen_to(api);
	return api->state;
}

size_t api_steps(const struct api *api, int64_t start, char *to, size_t size)
{
	size_t used = 0;
	*to = 0;
	if (api->connected)
		used += (size_t)snprintf(to, size, "firstlight step api.connect %" PRId64 " %" PRId64 "\n",
					 start, api->connected);
	for (const struct api_request *request = api->requests;
	     request < api->requests + api->count && request->end && used < size; request++)
		used += (size_t)snprintf(to + used, size - used,
					 "firstlight step api%.64s %" PRId64 " %" PRId64 "\n",
					 request->path, request->start, request->end);
	return used < size ? used : size - 1;
}

void api_end(struct api *api)
{
	int *descriptors[] = {&api->fd, &api->created, &api->timer, &api->socket};
	for (size_t i = 0; i < sizeof descriptors / sizeof *descriptors; i++) {
		if (*descriptors[i] >= 0)
			close(*descriptors[i]);
		*descriptors[i] = -1;
	}
}
