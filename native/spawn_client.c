/* The smallest client of the resident runtime, for those who cannot wait for an interpreter.
 *
 *   spawn-client SOCKET REQUEST
 *
 * REQUEST is a file with one "start" message (src/firstlight/agile/protocol.py), sent with our
 * standard streams. We end as the instance did; if it could not be started, its error is said as
 * "firstlight error TEXT" on standard output. When we are killed, the instance ends.
 */
#include "common/message.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char message[MESSAGE_MAX + 1];

static int fail(const char *what)
{
	printf("firstlight error %s: %s\n", what, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (argc != 3 || strlen(argv[1]) >= sizeof address.sun_path) {
		fputs("usage: spawn-client SOCKET REQUEST\n", stderr);
		return 2;
	}
	memcpy(address.sun_path, argv[1], strlen(argv[1]) + 1);
	int file = open(argv[2], O_RDONLY | O_CLOEXEC);
	ssize_t size = file < 0 ? -1 : read(file, message, MESSAGE_MAX);
	if (size <= 0)
		return fail("read the request");
	int runtime = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (runtime < 0 || connect(runtime, (struct sockaddr *)&address, sizeof address))
		return fail("reach the runtime");
	if (message_send(runtime, message, (size_t)size, (int[]){0, 1, 2}, 3))
		return fail("send the request");
	for (;;) {
		size = recv(runtime, message, MESSAGE_MAX, 0);
		if (size < 0 && errno == EINTR)
			continue;
		if (size <= 0)
			return size < 0 ? fail("hear the runtime") : (errno = EPIPE, fail("hear the runtime"));
		message[size] = 0;
		if (message_is(message, "error")) {
			printf("firstlight error %s\n", message);
			return 1;
		}
		if (message_is(message, "ended")) {
			int killed = (int)message_number(message, "signal");
			return killed ? 128 + killed : (int)message_number(message, "status");
		}
	}
}
