#include "common/clock.h"
#include "node.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ACCEPT_PAUSE = 100000000 }; /* ns */

/* After this time, in ns, a client without instances may lose its place to another: one that has not
 * asked for anything, and one whose starts have been answered, as those that wait for parts are. */
static const int64_t SILENT = 1000000000, IDLE = 90000000000;

static int reserve(void)
{
	int index = node.free_client;
	if (index != NOBODY)
		node.free_client = node.clients[index].next_free;
	else if (node.client_count < node.client_most)
		index = node.client_count++;
	return index;
}

static void give_back(int index)
{
	node.clients[index].next_free = node.free_client;
	node.free_client = index;
}

static void leave(int index)
{
	give_back(index);
	node_watch_again(node.clients_listener, ON_CLIENTS, 0, EPOLLIN);
}

static void listen_for(uint32_t events)
{
	node_watch_again(node.clients_listener, ON_CLIENTS, 0, events);
	node_watch_again(node.managers_listener, ON_MANAGERS, 0, events);
}

static void pause_accepting(void)
{
	node.accepts_at = clock_now() + ACCEPT_PAUSE;
	listen_for(0);
}

/* A connection, or a negative number. Without a descriptor or memory for it the listener stays
 * readable: both are left alone for a moment, since what is needed may come from anywhere. */
int client_accept_one(int listener)
{
	int descriptor = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (descriptor < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
		pause_accepting();
	return descriptor;
}

void clients_accept_again(void)
{
	if (!node.accepts_at || clock_now() < node.accepts_at)
		return;
	node.accepts_at = 0;
	listen_for(EPOLLIN);
}

/* Of all places, which are taken, that of the client that has been silent longest. A client that is held
 * has asked. */
static int take_place(void)
{
	int64_t now = clock_now(), longest = 0;
	int silent = NOBODY;
	for (int i = 0; i < node.client_count; i++) {
		const struct client *client = &node.clients[i];
		int64_t over = now - client->active_at - (client->fast ? IDLE : SILENT);
		if (client->descriptor >= 0 && client->first == NOBODY && !client->held &&
		    over > longest) {
			longest = over;
			silent = i;
		}
	}
	if (silent == NOBODY)
		return NOBODY;
	client_end(silent);
	return reserve();
}

/* When all places are taken, a new client waits in the listener's queue. */
void clients_accept(void)
{
	int index = reserve();
	if (index == NOBODY)
		index = take_place();
	if (index == NOBODY) {
		pause_accepting();
		return;
	}
	int descriptor = client_accept_one(node.clients_listener);
	if (descriptor < 0) {
		give_back(index);
		return;
	}
	struct client *client = &node.clients[index];
	*client = (struct client){.descriptor = descriptor,
				  .generation = client->generation + 1,
				  .first = NOBODY,
				  .active_at = clock_now()};
	if (node_watch(descriptor, ON_CLIENT, index, EPOLLIN)) {
		descriptor_close(&client->descriptor);
		leave(index);
	}
}

/* The client has gone: so do its instances, but for those that it detached. */
void client_end(int index)
{
	struct client *client = &node.clients[index];
	node_unwatch(&client->descriptor);
	for (int at = client->first; at != NOBODY;) {
		struct instance *instance = &node.instances[at];
		int next = instance->next;
		instance->client = NOBODY;
		instance->owed_client = 0;
		if (!instance->detached)
			instance_kill(at);
		instance_settle(at);
		at = next;
	}
	client->first = NOBODY;
	leave(index);
}

/* 0 or a negative errno; after -EAGAIN the client is not read from until it has read. */
static int tell(int index, const struct answer *answer)
{
	struct client *client = &node.clients[index];
	if (client->blocked)
		return -EAGAIN;
	int failed = socket_send(client->descriptor, answer, sizeof *answer, NULL, 0);
	if (!failed)
		return 0;
	if (failed != -EAGAIN && failed != -ENOBUFS && failed != -ENOMEM) {
		shutdown(client->descriptor, SHUT_RDWR); /* or it would wait for what is lost */
		return failed;
	}
	client->blocked = true;
	node_watch_again(client->descriptor, ON_CLIENT, index, EPOLLOUT);
	return -EAGAIN;
}

/* What is owed is made from the instances' own records: a client that does not read costs no
 * memory, and is not read from either until it does. */
void client_tell(int index)
{
	struct client *client = &node.clients[index];
	for (int at = client->first; at != NOBODY && !client->blocked;) {
		struct instance *instance = &node.instances[at];
		int next = instance->next;
		if (instance->owed_client & OWES_STARTED) {
			struct answer answer = instance_answer(at, ANSWER_STARTED);
			if (tell(index, &answer) == -EAGAIN)
				return;
			instance->owed_client &= (uint8_t)~OWES_STARTED;
		}
		if (instance->owed_client & OWES_ENDED) {
			struct answer answer = instance_answer(at, instance->failed ? ANSWER_REFUSED
										    : ANSWER_ENDED);
			if (tell(index, &answer) == -EAGAIN)
				return;
			instance->owed_client &= (uint8_t)~OWES_ENDED;
			instance_settle(at);
		}
		at = next;
	}
}

/* Of what is no instance yet. -EAGAIN: the client does not read. */
int client_refuse(int index, const struct ask *ask, int error, enum step step)
{
	struct answer answer = {.magic = ASK_MAGIC,
				.verb = ANSWER_REFUSED,
				.tag = ask->tag,
				.instance = ask->instance,
				.error = error,
				.step = step};
	int failed = tell(index, &answer);
	if (failed && failed != -EAGAIN)
		client_end(index);
	return failed == -EAGAIN ? failed : 0;
}

/* The answer to what was just read: there is room for one that has to wait. */
static void answer_now(int index, const struct ask *ask, int error, enum step step)
{
	struct client *client = &node.clients[index];
	struct answer answer = {.magic = ASK_MAGIC,
				.verb = error ? ANSWER_REFUSED : ANSWER_PONG,
				.tag = ask->tag,
				.instance = ask->instance,
				.error = error,
				.step = error ? step : 0};
	int failed = tell(index, &answer);
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
	leave(index);
	client_flush_rich();
}

void client_flush_rich(void)
{
	while (node.rich_count && node.manager >= 0) {
		struct event event = {.verb = EVENT_RICH};
		int failed = manager_message(&event, sizeof event, &node.rich[0], 1);
		if (failed && failed != -ETOOMANYREFS)
			return;
		descriptor_close(&node.rich[0]);
		node.rich_count--;
		memmove(node.rich, node.rich + 1, (size_t)node.rich_count * sizeof *node.rich);
	}
}

/* Reads one request, so that each client has its turn. */
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
		if (client->has_unsent && tell(index, &client->unsent) == -EAGAIN)
			return;
		client->has_unsent = false;
		client_tell(index);
		return;
	}
	/* Requests stay in their socket while no more starts can be held here. */
	if (node.pending_count == PENDING) {
		client->held = node.holds = true;
		node_watch_again(client->descriptor, ON_CLIENT, index, 0);
		return;
	}
	read_one(index);
}

void clients_release(void)
{
	node.holds = false;
	for (int i = 0; i < node.client_count; i++)
		if (node.clients[i].descriptor >= 0 && node.clients[i].held) {
			node.clients[i].held = false;
			if (!node.clients[i].blocked) /* else it has to read first */
				node_watch_again(node.clients[i].descriptor, ON_CLIENT, i, EPOLLIN);
		}
}
