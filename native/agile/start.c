/* The smallest client of the node.
 *
 *   firstlight-start SOCKET NUMBER VERSION
 *
 * Starts the function that is registered under NUMBER, with our standard streams, and ends as the
 * instance does. If the start fails, it prints "firstlight error TEXT" on standard output. If it is
 * killed, the instance ends. It is C for callers that cannot wait for an interpreter.
 */
#include "common/clock.h"
#include "common/socket.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SILENCE_SECONDS
#define SILENCE_SECONDS 10
#endif
enum { SILENCES_MAX = 3 };

static int fail(const char *what, int error)
{
	printf("firstlight error %s: %s\n", what, strerror(error));
	return 1;
}

/* If a standard stream were closed, our connection would get its number, and so the instance. */
static int open_standard(void)
{
	int opened;
	do
		opened = open("/dev/null", O_RDWR | O_CLOEXEC);
	while (opened >= 0 && opened < 3);
	if (opened < 0)
		return -errno;
	close(opened);
	return 0;
}

static int hangs(int node)
{
	struct ucred peer = {.pid = -1};
	socklen_t size = sizeof peer;
	(void)getsockopt(node, SOL_SOCKET, SO_PEERCRED, &peer, &size);
	printf("firstlight error the node, pid %d, does not answer\n", peer.pid);
	return 1;
}

/* Instances may run for ever, so a silent node is asked now and then whether it answers. */
static int read_answer(int node)
{
	static const char *const names[] = {WIRE_STEPS(WIRE_STEP_NAME)};
	const struct ask ping = {.magic = ASK_MAGIC, .verb = ASK_PING};
	struct answer answer;
	struct rights rights RIGHTS_SCOPE = {0};
	bool has_started = false;
	for (int silences = 0;;) {
		ssize_t size = socket_receive(node, &answer, sizeof answer, 0, &rights);
		if (size == -EAGAIN) {
			if (silences++ == SILENCES_MAX ||
			    socket_send(node, &ping, sizeof ping, NULL, 0) == -EAGAIN)
				return hangs(node);
			continue;
		}
		silences = 0;
		if (has_started && (size == 0 || size == -ECONNRESET))
			return 128 + SIGKILL; /* the node is gone, and with it all instances */
		if (size != sizeof answer || answer.magic != ASK_MAGIC)
			return fail("hear the node", size < 0 ? (int)-size : EPIPE);
		if (answer.verb == ANSWER_REFUSED)
			return fail(answer.step < STEPS ? names[answer.step] : "start",
				    answer.error);
		has_started |= answer.verb == ANSWER_STARTED;
		if (answer.verb == ANSWER_ENDED)
			return WIFSIGNALED(answer.status) ? 128 + WTERMSIG(answer.status)
							  : WEXITSTATUS(answer.status);
	}
}

int main(int argc, char **argv)
{
	struct ask ask = {.magic = ASK_MAGIC, .verb = ASK_START, .tag = 1};
	if (argc != 4) {
		fputs("usage: firstlight-start SOCKET NUMBER VERSION\n", stderr);
		return 2;
	}
	ask.asked = clock_now();
	ask.function = (uint32_t)strtoul(argv[2], NULL, 10);
	ask.version = (uint32_t)strtoul(argv[3], NULL, 10);
	int failed = open_standard();
	if (failed)
		return fail("open the standard streams", -failed);
	int node FILE_SCOPE = socket_connect(argv[1], SOCK_SEQPACKET,
					     clock_longer(SILENCE_SECONDS * CLOCK_SECOND));
	if (node < 0)
		return fail("reach the node", -node);
	failed = socket_send(node, &ask, sizeof ask, (int[]){0, 1, 2}, 3);
	if (failed == -EAGAIN)
		return hangs(node);
	return failed ? fail("ask the node", -failed) : read_answer(node);
}
