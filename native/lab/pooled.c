/* Takes a network out of a pool and runs a command that joins it: the timed part of
 * backends/pooled.py.
 *
 *   pooled SOCKET PATH COMMAND [ARG...]
 *
 * Connecting to the seqpacket SOCKET is the request: the answer is a network namespace's descriptor,
 * or a text that says why there is none. PATH becomes a link to it, for commands that need a path.
 * The namespace is ours until we end. The output is the protocol of backends/__init__.py.
 *
 * It is C because all of it lies inside a timed start.
 */
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/process.h"
#include "common/socket.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { TEXT_MAX = 256 };

/* The namespace's descriptor; with an error, the pool's message, if it gave one. */
static int take(const char *path, struct error *error)
{
	char text[TEXT_MAX];
	struct rights rights RIGHTS_SCOPE = {0};
	int pool FILE_SCOPE = socket_connect(path, SOCK_SEQPACKET, 0);
	if (pool < 0)
		return error_set(error, -pool, "take a network");
	ssize_t size = socket_receive(pool, text, sizeof text - 1, 0, &rights);
	if (size <= 0)
		return error_set(error, size ? (int)-size : ECONNRESET, "take a network");
	text[size] = 0;
	if (!rights.count)
		return error_set(error, 0, "take a network: %s", text);
	return descriptor_take(&rights.descriptors[0]);
}

static int take_and_run(char **argv, struct error *error)
{
	char path[64];
	int64_t start = clock_now();
	int network FILE_SCOPE = take(argv[1], error);
	if (network < 0)
		return network;
	snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), network);
	if (symlink(path, argv[2]))
		return error_set(error, errno, "%s", argv[2]);
	printf("firstlight step pool.take %jd %jd\n", (intmax_t)start, (intmax_t)clock_now());
	fflush(stdout);
	int bad = process_execute(argv + 3, error);
	(void)unlink(argv[2]);
	return bad;
}

int main(int argc, char **argv)
{
	struct error error = {0};
	if (argc < 4) {
		fputs("usage: pooled SOCKET PATH COMMAND [ARG...]\n", stderr);
		return 2;
	}
	if (!take_and_run(argv, &error))
		return 0;
	error_print(&error);
	return 1;
}
