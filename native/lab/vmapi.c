#include "lab/vmapi.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/http.h"
#include "common/socket.h"

#include <cJSON.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static const int64_t SOCKET_NS = 20 * CLOCK_SECOND; /* until the socket is given up */
static const int64_t RETRY_NS = 100000; /* between bind(2) and listen(2) of the server */

static int parse(struct vmapi *api, const char *file)
{
	char *line, *rest = api->text;
	while ((line = strsep(&rest, "\n")) && *line) {
		if (api->count == VMAPI_REQUESTS)
			return error_set(&api->error, 0, "%s has more than %d requests", file,
					 VMAPI_REQUESTS);
		struct vmapi_request *request = &api->requests[api->count++];
		request->method = strsep(&line, " ");
		request->path = strsep(&line, " ");
		request->body = line;
		if (!line || strlen(line) > VMAPI_REQUEST_MAX / 2)
			return error_set(&api->error, 0, "%s:%zu is not METHOD PATH BODY", file,
					 api->count);
	}
	return api->count ? 0 : error_set(&api->error, 0, "%s has no request", file);
}

static int load(struct vmapi *api, const char *file)
{
	int fd FILE_SCOPE = open(file, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, api->text, sizeof api->text - 1);
	if (n < 0)
		return error_set(&api->error, errno, "cannot read %s", file);
	api->text[n] = 0;
	return parse(api, file);
}

static int watch(struct vmapi *api, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};
	return epoll_ctl(api->fd, EPOLL_CTL_ADD, fd, &event);
}

static int watch_directory(struct vmapi *api, const char *socket)
{
	char path[SOCKET_MAX + 1];
	strcpy(path, socket);
	api->fd = epoll_create1(EPOLL_CLOEXEC);
	api->created = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	api->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (api->fd < 0 || api->created < 0 || api->timer < 0 || watch(api, api->created) ||
	    watch(api, api->timer) || inotify_add_watch(api->created, dirname(path), IN_CREATE) < 0)
		return error_set(&api->error, errno, "cannot wait for %s", socket);
	return 0;
}

static int wake_at(struct vmapi *api, int64_t stamp)
{
	struct itimerspec when = {.it_value = {stamp / CLOCK_SECOND, stamp % CLOCK_SECOND}};
	if (!timerfd_settime(api->timer, TFD_TIMER_ABSTIME, &when, NULL))
		return 0;
	return error_set(&api->error, errno, "timerfd_settime");
}

int vmapi_begin(struct vmapi *api, const char *socket, const char *requests)
{
	*api = (struct vmapi){
		.fd = -1, .created = -1, .timer = -1, .socket = -1, .address = socket};
	api->limit = clock_now() + clock_longer(SOCKET_NS);
	if (strlen(socket) > SOCKET_MAX)
		return error_set(&api->error, 0, "the API socket's path is longer than %d: %s",
				 SOCKET_MAX, socket);
	int bad = load(api, requests);
	bad = bad ? bad : watch_directory(api, socket);
	return bad ? bad : wake_at(api, clock_now() + RETRY_NS); /* it may be there already */
}

static int ask(struct vmapi *api)
{
	char text[VMAPI_REQUEST_MAX];
	struct vmapi_request *request = &api->requests[api->current];
	int size = http_request(text, sizeof text, request->method, request->path, request->body);
	if (size < 0)
		return error_set(&api->error, 0, "the request %s is too long", request->path);
	api->received = 0;
	request->start = clock_now();
	if (send(api->socket, text, (size_t)size, MSG_NOSIGNAL) == size)
		return 0;
	if (errno == EPIPE || errno == ECONNRESET)
		api->state = VMAPI_CLOSED;
	return error_set(&api->error, errno, "cannot send %s %s", request->method, request->path);
}

/* Also where nothing has changed: any event may mean that the socket is there. */
static int try_to_connect(struct vmapi *api)
{
	char ignored[4096] __attribute__((aligned(8)));
	while (read(api->created, ignored, sizeof ignored) > 0 ||
	       read(api->timer, ignored, sizeof ignored) > 0)
		;
	api->socket = socket_connect(api->address, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (api->socket < 0) {
		int reason = -api->socket;
		if (clock_now() >= api->limit)
			return error_set(&api->error, reason,
					 "no API socket at %s after %" PRId64 " s", api->address,
					 clock_longer(SOCKET_NS) / CLOCK_SECOND);
		if (reason == ENOENT)
			return wake_at(api, api->limit);
		if (reason == ECONNREFUSED || reason == EAGAIN)
			return wake_at(api, clock_now() + RETRY_NS);
		return error_set(&api->error, reason, "cannot connect to %s", api->address);
	}
	api->connected = clock_now();
	api->state = VMAPI_ASKING;
	(void)epoll_ctl(api->fd, EPOLL_CTL_DEL, api->created, NULL);
	(void)epoll_ctl(api->fd, EPOLL_CTL_DEL, api->timer, NULL);
	if (watch(api, api->socket))
		return error_set(&api->error, errno, "epoll_ctl");
	return ask(api);
}

/* In Firecracker's own words, if the answer has them. */
static int refuse(struct vmapi *api, const struct vmapi_request *request,
		  const struct http_answer *answer)
{
	cJSON *json = cJSON_Parse(answer->body);
	const char *fault =
		cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "fault_message"));
	fault = fault ? fault : *answer->body ? answer->body : "no reason given";
	error_set(&api->error, 0, "%s %s answered %d: %.400s", request->method, request->path,
		  answer->status, fault);
	cJSON_Delete(json);
	return -api->error.code;
}

static int settle(struct vmapi *api, const struct http_answer *answer)
{
	struct vmapi_request *request = &api->requests[api->current];
	request->end = clock_now();
	if (!answer->status)
		return error_set(&api->error, 0, "%s %s was not answered in HTTP", request->method,
				 request->path);
	if (answer->status / 100 != 2)
		return refuse(api, request, answer);
	if (++api->current < api->count)
		return ask(api);
	api->state = VMAPI_DONE;
	return 0;
}

static int read_answer(struct vmapi *api)
{
	struct vmapi_request *request = &api->requests[api->current];
	struct http_answer answer;
	ssize_t n =
		recv(api->socket, api->answer + api->received, VMAPI_ANSWER_MAX - api->received, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		api->state = VMAPI_CLOSED;
		return error_set(&api->error, n ? errno : 0, "%s %s was not answered%s",
				 request->method, request->path, n ? "" : ": the API was closed");
	}
	api->received += (size_t)n;
	api->answer[api->received] = 0;
	if (http_parse(api->answer, &answer) &&
	    api->received - (size_t)(answer.body - api->answer) >= answer.size)
		return settle(api, &answer);
	if (api->received < VMAPI_ANSWER_MAX)
		return 0;
	return error_set(&api->error, 0, "%s %s has too long an answer", request->method,
			 request->path);
}

enum vmapi_state vmapi_advance(struct vmapi *api)
{
	int bad = 0;
	if (api->state == VMAPI_WAITING)
		bad = try_to_connect(api);
	else if (api->state == VMAPI_ASKING)
		bad = read_answer(api);
	if (bad && api->state != VMAPI_CLOSED)
		api->state = VMAPI_FAILED;
	return api->state;
}

size_t vmapi_steps(const struct vmapi *api, int64_t start, char *to, size_t size)
{
	size_t used = 0;
	*to = 0;
	if (api->connected)
		used += (size_t)snprintf(to, size,
					 "firstlight step api.connect %" PRId64 " %" PRId64 "\n",
					 start, api->connected);
	for (const struct vmapi_request *request = api->requests;
	     request < api->requests + api->count && request->end && used < size; request++)
		used += (size_t)snprintf(to + used, size - used,
					 "firstlight step api%.64s %" PRId64 " %" PRId64 "\n",
					 request->path, request->start, request->end);
	return used < size ? used : size - 1;
}

void vmapi_end(struct vmapi *api)
{
	int *descriptors[] = {&api->fd, &api->created, &api->timer, &api->socket};
	for (size_t i = 0; i < sizeof descriptors / sizeof *descriptors; i++) {
		if (*descriptors[i] >= 0)
			close(*descriptors[i]);
		*descriptors[i] = -1;
	}
}
