#include "launch_ask.h"
#include "launch_instance.h"
#include "common/message.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static void close_file(int *file)
{
	int error = errno;
	if (*file >= 0)
		close(*file);
	errno = error;
}

/* Waits for the answer to the greeting, and reads it. */
static int greeted(int connection, int64_t until, int control)
{
	struct pollfd ready[] = {{connection, POLLIN, 0}, {control, POLLRDHUP, 0}};
	int64_t left = (until - now()) / 1000000;
	char answer;
	int n = poll(ready, 2, left > 0 ? (int)left : 0);
	if (n < 0)
		return -1;
	if (n == 0 || ready[1].revents)
		return errno = n ? ECANCELED : ETIMEDOUT, -1;
	ssize_t size = recv(connection, &answer, 1, 0);
	if (size == 0)
		errno = ECONNRESET;
	return size > 0 ? 0 : -1;
}

int ask_connect(const char *path, const char *greeting, int64_t until, int control)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int64_t left = until - now() > 0 ? until - now() : 1000000;
	struct timeval limit = {left / 1000000000, left % 1000000000 / 1000};
	if (strlen(path) >= sizeof address.sun_path)
		return errno = ENAMETOOLONG, -1;
	memcpy(address.sun_path, path, strlen(path) + 1);
	int connection __attribute__((cleanup(close_file))) =
		socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (connection < 0 ||
	    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) ||
	    connect(connection, (struct sockaddr *)&address, sizeof address) ||
	    message_send(connection, greeting, strlen(greeting), NULL, 0) ||
	    greeted(connection, until, control) || fcntl(connection, F_SETFL, O_NONBLOCK))
		return -1;
	int open = connection;
	connection = -1;
	return open;
}

enum heard ask_hear(int connection, char *text, int size)
{
	ssize_t length = recv(connection, text, (size_t)size - 1, 0);
	if (length < 0 && (errno == EAGAIN || errno == EINTR))
		return HEARD_NOTHING;
	if (length <= 0)
		return HEARD_LAST;
	text[length] = 0;
	return message_is(text, "error")      ? HEARD_ERROR
	       : message_is(text, "ended")    ? HEARD_END
	       : message_is(text, "answered") ? HEARD_RESULT
					      : HEARD_ANSWER;
}
