/* Clients' requests, read in turn. */
#include "common/clock.h"
#include "node.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* Answers what was just read: there is room for one answer that has to wait. */
static void answer_now(int index, const struct ask *ask, int error, enum step step)
{
	struct client *client = &node.clients[index];
	struct answer answer = {.magic = ASK_MAGIC,
				.verb = error ? ANSWER_REFUSED : ANSWER_PONG,
				.tag = ask->tag,
				.instance = ask->instance,
				.error = error,
				.step = error ? step : 0};
	int failed = client_answer(index, &answer);
	if (failed == -EAGAIN) {
		client->unsent = answer;
		client->has_unsent = true;
	} else if (failed) {
		client_end(index);
	}
}

static void start(int index, const struct ask *ask, struct rights *rights)
{
	enum step step = STEP_FUNCTION;
	int failed = ask->function < FUNCTIONS ? pending_start(ask, rights, index, &step) : ENOENT;
	if (failed)
		answer_now(index, ask, failed, step);
}

static void run_session(int index, const struct ask *ask, struct rights *rights)
{
	enum step step = STEP_CLONE;
	int failed = session_start(ask, rights, index, &step);
	if (failed)
		answer_now(index, ask, -failed, step);
}

static void serve(int index, const struct ask *ask, struct rights *rights)
{
	switch (ask->verb) {
	case ASK_PING:
		answer_now(index, ask, 0, STEP_CLONE);
		return;
	case ASK_START:
		start(index, ask, rights);
		return;
	case ASK_EXEC:
		run_session(index, ask, rights);
		return;
	case ASK_SIGNAL:
		answer_now(index, ask, -instance_signal(ask->instance, ask->signal, 0), STEP_CLONE);
		return;
	default:
		answer_now(index, ask, EPROTO, STEP_CLONE);
	}
}

static void hand_over(int index)
{
	struct client *client = &node.clients[index];
	(void)epoll_ctl(node.epoll, EPOLL_CTL_DEL, client->descriptor, NULL);
	if (node.rich_count == RICH_HELD) {
		descriptor_close(&client->descriptor);
	} else {
		node.rich[node.rich_count++] = client->descriptor;
		client->descriptor = NOBODY;
	}
	client_leave(index);
}

/* Reads one request, so that clients take turns. */
static void read_one(int index)
{
	struct client *client = &node.clients[index];
	struct rights rights RIGHTS_SCOPE = {0};
	struct ask ask;
	char first;
	if (!client->fast) {
		ssize_t peeked = recv(client->descriptor, &first, 1, MSG_PEEK);
		if (peeked < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (peeked <= 0) {
			client_end(index);
			return;
		}
		if (first != (char)(ASK_MAGIC & 0xff)) {
			hand_over(index);
			return;
		}
		client->fast = true;
	}
	ssize_t size = socket_receive(client->descriptor, &ask, sizeof ask, 0, &rights);
	if (size == -EAGAIN)
		return;
	if (size != sizeof ask || ask.magic != ASK_MAGIC) {
		struct ask nothing = {.tag = size == sizeof ask ? ask.tag : 0};
		if (size == 0 || (size < 0 && size != -EMSGSIZE))
			client_end(index);
		else
			answer_now(index, &nothing, EPROTO, STEP_CLONE);
		return;
	}
	client->active_at = clock_now();
	serve(index, &ask, &rights);
}

void client_ready(int index, uint32_t events)
{
	struct client *client = &node.clients[index];
	if (client->descriptor < 0)
		return;
	if ((client->blocked || client->held) && events & (EPOLLERR | EPOLLHUP)) {
		client_end(index);
		return;
	}
	if (client->blocked && events & EPOLLOUT) {
		client->blocked = false;
		node_watch_again(client->descriptor, ON_CLIENT, index, EPOLLIN);
		if (client->has_unsent && client_answer(index, &client->unsent) == -EAGAIN)
			return;
		client->has_unsent = false;
		client_tell(index);
		return;
	}
	/* While no more starts can be held here, requests stay in their socket. */
	if (node.pending_count == PENDING) {
		client->held = node.holds = true;
		node_watch_again(client->descriptor, ON_CLIENT, index, 0);
		return;
	}
	read_one(index);
}
