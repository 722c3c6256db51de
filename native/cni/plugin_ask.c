/* The plugin's question to the node's agent. */
#include "cni/plugin.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/socket.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

enum { RETRY_NS = 10 * 1000 * 1000 };

static int connect_agent(const struct call *call)
{
	int64_t left = (call->deadline - clock_now()) / 1000;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval wait = {.tv_sec = left / 1000000, .tv_usec = left % 1000000};
	memcpy(address.sun_path, call->socket, sizeof call->socket);
	if (left <= 0)
		return -ETIMEDOUT;
	int file FILE_SCOPE = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (file < 0 || setsockopt(file, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) ||
	    setsockopt(file, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) ||
	    connect(file, (struct sockaddr *)&address, sizeof address))
		return -errno;
	int opened = file;
	file = -1;
	return opened;
}

static int receive(int file, struct agent_answer *answer, int *received)
{
	_Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))];
	struct iovec part = {answer, sizeof *answer};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = space,
				 .msg_controllen = sizeof space};
	ssize_t size;
	do
		size = recvmsg(file, &message, MSG_CMSG_CLOEXEC);
	while (size < 0 && errno == EINTR);
	if (size < 0)
		return -errno;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_type == SCM_RIGHTS)
		memcpy(received, CMSG_DATA(header), sizeof *received);
	if (size == 0)
		return -ECONNRESET; /* it was killed */
	answer->text[sizeof answer->text - 1] = answer->link[sizeof answer->link - 1] = 0;
	return size == sizeof *answer && answer->magic == AGENT_MAGIC ? 0 : -EPROTO;
}

static int ask_once(const struct call *call, int descriptor, struct agent_answer *answer,
		    int *received)
{
	int file FILE_SCOPE = connect_agent(call);
	if (file < 0)
		return file;
	int bad = socket_send(file, &call->request, sizeof call->request, &descriptor,
			      descriptor >= 0);
	return bad ? bad : receive(file, answer, received);
}

/* What an agent that is not there yet, or that was killed, looks like. */
static bool is_absent(int error)
{
	return error == -ENOENT || error == -ECONNREFUSED || error == -ECONNRESET ||
	       error == -EPIPE || error == -ENOTDIR;
}

int call_agent(struct call *call, bool waits, int descriptor, struct agent_answer *answer,
	       int *received)
{
	const struct timespec rest = {.tv_nsec = RETRY_NS};
	*received = -1;
	for (;;) {
		int bad = ask_once(call, descriptor, answer, received);
		if (!bad && answer->code)
			return CALL_FAIL(call, answer->code, 0, "%s", answer->text);
		if (!bad)
			return 0;
		if (is_absent(bad) && !waits)
			return -ENOTCONN;
		if (bad == -EAGAIN)
			bad = -ETIMEDOUT; /* by the socket's deadline */
		if (!is_absent(bad) || clock_now() + RETRY_NS > call->deadline)
			return CALL_FAIL(call, CALL_TRY_AGAIN, -bad,
					 "no answer from firstlight's agent at %s", call->socket);
		(void)nanosleep(&rest, NULL);
	}
}
