/* Asks the node's agent. */
#include "cni/plugin.h"
#include "common/clock.h"
#include "common/socket.h"

#include <sys/socket.h>
#include <time.h>

enum { RETRY_NS = 10 * 1000 * 1000 };

static int ask_once(const struct call *call, int descriptor, struct agent_answer *answer,
		    int *received)
{
	struct rights rights RIGHTS_SCOPE = {0};
	int64_t left = call->deadline - clock_now();
	if (left < 1000) /* 0 would be for ever */
		return -ETIMEDOUT;
	int file FILE_SCOPE = socket_connect(call->socket, SOCK_SEQPACKET, left);
	if (file < 0)
		return file;
	int bad = socket_send(file, &call->request, sizeof call->request, &descriptor,
			      descriptor >= 0);
	if (bad)
		return bad;
	ssize_t size = socket_receive(file, answer, sizeof *answer, 0, &rights);
	if (size <= 0)
		return size ? (int)size : -ECONNRESET; /* it was killed */
	answer->text[sizeof answer->text - 1] = answer->link[sizeof answer->link - 1] = 0;
	if (size != sizeof *answer || answer->magic != AGENT_MAGIC)
		return -EPROTO;
	if (rights.count)
		*received = descriptor_take(&rights.descriptors[0]);
	return 0;
}

/* What an agent looks like that is not there yet, or was killed. */
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
