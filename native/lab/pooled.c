/* Takes a network out of a pool and runs a command that joins it: the timed part of
 * backends/pooled.py.
 *
 *   pooled SOCKET PATH COMMAND [ARG...]
 *
 * To connect to the seqpacket SOCKET is to ask: the answer is a network namespace's descriptor, or a
 * text that says why there is none. PATH becomes a link to it, for who wants a path. The namespace
 * is ours until we end. What is said is the protocol of backends/__init__.py.
 */
#include <errno.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TEXT_MAX = 256 };

extern char **environ;

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static int fail(const char *what, const char *why)
{
	printf("firstlight error %s: %s\n", what, why);
	return 1;
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof address.sun_path)
		return errno = ENAMETOOLONG, -1;
	memcpy(address.sun_path, path, strlen(path) + 1);
	int pool = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (pool >= 0 && connect(pool, (struct sockaddr *)&address, sizeof address)) {
		int wrong = errno;
		close(pool);
		return errno = wrong, -1;
	}
	return pool;
}

/* The namespace's descriptor; -1 with the pool's words, or with none and errno. */
static int receive(int pool, char text[TEXT_MAX])
{
	_Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {text, TEXT_MAX - 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space,
				 .msg_controllen = sizeof space};
	int network = -1;
	ssize_t size;
	while ((size = recvmsg(pool, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
		;
	text[size > 0 ? size : 0] = 0;
	if (size == 0)
		errno = ECONNRESET;
	struct cmsghdr *rights = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;
	if (rights && rights->cmsg_type == SCM_RIGHTS)
		memcpy(&network, CMSG_DATA(rights), sizeof network);
	return network;
}

static int run(char **argv)
{
	pid_t pid;
	int status;
	char text[64];
	int wrong = posix_spawn(&pid, argv[0], NULL, NULL, argv, environ);
	if (wrong)
		return fail(argv[0], strerror(wrong));
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return fail("waitpid", strerror(errno));
	snprintf(text, sizeof text, WIFSIGNALED(status) ? "killed by signal %d" : "ended with status %d",
		 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	return status ? fail(argv[0], text) : 0;
}

int main(int argc, char **argv)
{
	char text[TEXT_MAX] = "", path[64];
	if (argc < 4) {
		fputs("usage: pooled SOCKET PATH COMMAND [ARG...]\n", stderr);
		return 2;
	}
	int64_t start = now();
	int pool = connect_to(argv[1]);
	int network = pool < 0 ? -1 : receive(pool, text);
	if (network < 0)
		return fail("take a network", *text ? text : strerror(errno));
	snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), network);
	if (symlink(path, argv[2]))
		return fail(argv[2], strerror(errno));
	printf("firstlight step pool.take %jd %jd\n", (intmax_t)start, (intmax_t)now());
	fflush(stdout);
	int bad = run(argv + 3);
	unlink(argv[2]);
	return bad;
}
