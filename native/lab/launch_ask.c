#include "lab/launch_ask.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/message.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

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
	int bad = message_send(connection, greeting, strlen(greeting), NULL, 0);
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
	ssize_t length = recv(connection, text, (size_t)size - 1, 0);
	if (length < 0 && (errno == EAGAIN || errno == EINTR))
		return ASK_NOTHING;
	if (length <= 0)
		return ASK_CLOSED;
	text[length] = 0;
	return message_is(text, "error")      ? ASK_ERROR
	       : message_is(text, "ended")    ? ASK_END
	       : message_is(text, "answered") ? ASK_RESULT
					      : ASK_ANSWER;
}
