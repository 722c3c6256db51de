#include "lab/launch_ask.h"

#include "agile/wire.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/message.h"
#include "common/socket.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>

#define NODE "node:"

int launch_ask_send(int connection, const char *text, const int *files, int count)
{
	struct ask ask = {.magic = ASK_MAGIC, .verb = ASK_PING, .asked = clock_now()};
	unsigned number, version;
	if (strncmp(text, NODE, strlen(NODE)))
		return socket_send(connection, text, strlen(text), files, count);
	if (sscanf(text + strlen(NODE), "start %u %u", &number, &version) == 2) {
		ask.verb = ASK_START;
		ask.function = number;
		ask.version = version;
	}
	return socket_send(connection, &ask, sizeof ask, files, count);
}

static void print_started(const struct answer *answer, char *text, size_t size)
{
	static const char *const names[] = STEP_NAMES;
	int at = snprintf(
		text, size,
		"{\"type\":\"started\",\"id\":\"%llu\",\"pid\":%d,\"warm\":%s,\"stamps\":{",
		(unsigned long long)answer->instance, answer->pid,
		answer->flags & ANSWER_WARM ? "true" : "false");
	for (int i = 0; i < STEPS; i++)
		if (answer->stamps[i])
			at += snprintf(text + at, size - (size_t)at, "\"%s\":%lld,", names[i],
				       (long long)answer->stamps[i]);
	snprintf(text + at, size - (size_t)at, "\"requested\":%lld,\"running\":%lld}}",
		 (long long)answer->stamps[STEPS], (long long)answer->stamps[STEPS + 1]);
}

/* What the node answers, in the words of the runtime's JSON. */
static enum launch_answer read_node(const struct answer *answer, char *text, size_t size)
{
	static const char *const names[] = STEP_NAMES;
	int killed = WIFSIGNALED(answer->status) ? WTERMSIG(answer->status) : 0;
	if (answer->verb == ANSWER_REFUSED) {
		snprintf(text, size,
			 "{\"type\":\"error\",\"message\":\"cannot start an instance: %s: %s\"}",
			 answer->step < STEPS ? names[answer->step] : "start",
			 strerror(answer->error));
		return ASK_ERROR;
	}
	if (answer->verb == ANSWER_ENDED) {
		snprintf(text, size,
			 "{\"type\":\"ended\",\"status\":%d,\"signal\":%d,\"user_ns\":%lld,"
			 "\"system_ns\":%lld}",
			 WEXITSTATUS(answer->status), killed, (long long)answer->user,
			 (long long)answer->system);
		return ASK_END;
	}
	print_started(answer, text, size);
	return ASK_ANSWER;
}

/* Waits for the answer to the greeting, and reads it. */
static int read_greeting(int connection, int64_t until, int control)
{
	struct pollfd ready[] = {{connection, POLLIN, 0}, {control, POLLRDHUP, 0}};
	int64_t left = (until - clock_now()) / 1000000;
	char answer;
	int n = poll(ready, 2, left > 0 ? (int)left : 0);
	if (n <= 0)
		return n ? -errno : -ETIMEDOUT;
	if (ready[1].revents)
		return -ECANCELED;
	ssize_t size = recv(connection, &answer, 1, 0);
	return size > 0 ? 0 : size ? -errno : -ECONNRESET;
}

int launch_ask_connect(const char *path, const char *greeting, int64_t until, int control)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int64_t left = until - clock_now() > 0 ? until - clock_now() : 1000000;
	struct timeval limit = {left / CLOCK_SECOND, left % CLOCK_SECOND / 1000};
	if (strlen(path) >= sizeof address.sun_path)
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path) + 1);
	int connection FILE_SCOPE = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (connection < 0 ||
	    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) ||
	    connect(connection, (struct sockaddr *)&address, sizeof address))
		return -errno;
	int bad = launch_ask_send(connection, greeting, NULL, 0);
	bad = bad ? bad : read_greeting(connection, until, control);
	if (!bad && fcntl(connection, F_SETFL, O_NONBLOCK))
		bad = -errno;
	int open = connection;
	if (!bad)
		connection = -1;
	return bad ? bad : open;
}

enum launch_answer launch_ask_read(int connection, char *text, int size)
{
	struct answer answer;
	ssize_t length = recv(connection, text, (size_t)size - 1, 0);
	if (length == sizeof answer) {
		memcpy(&answer, text, sizeof answer);
		if (answer.magic == ASK_MAGIC)
			return read_node(&answer, text, (size_t)size);
	}
	if (length < 0 && (errno == EAGAIN || errno == EINTR))
		return ASK_NOTHING;
	if (length <= 0)
		return ASK_CLOSED;
	text[length] = 0;
	return message_is(text, "error")     ? ASK_ERROR
	       : message_is(text, "ended")   ? ASK_END
	       : message_is(text, "invoked") ? ASK_RESULT
					     : ASK_ANSWER;
}
