/* Clients' connections, and the answers to them. */
#include "common/clock.h"
#include "node.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* After this time, in ns, a client without instances may lose its place to a new one: SILENT if
 * it has never sent a request, IDLE if its starts have been answered. */
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

void client_leave(int index)
{
	give_back(index);
	node_watch_again(node.clients_listener, ON_CLIENTS, 0, EPOLLIN);
}

/* All places are taken: that of the client that has been silent longest. A client that is held
 * has a request under way. */
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
		node_pause_accepting();
		return;
	}
	int descriptor = node_accept(node.clients_listener);
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
		client_leave(index);
	}
}

/* The client is gone, and so are its instances, except those that it detached. */
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
	client_leave(index);
}

/* 0 or a negative errno. After -EAGAIN, nothing is read from the client until it has read. */
int client_answer(int index, const struct answer *answer)
{
	struct client *client = &node.clients[index];
	if (client->blocked)
		return -EAGAIN;
	int failed = socket_send(client->descriptor, answer, sizeof *answer, NULL, 0);
	if (!failed)
		return 0;
	if (failed != -EAGAIN && failed != -ENOBUFS && failed != -ENOMEM) {
		shutdown(client->descriptor,
			 SHUT_RDWR); /* or it would wait for an answer that is lost */
		return failed;
	}
	client->blocked = true;
	node_watch_room(client->descriptor, ON_CLIENT, index, failed);
	return -EAGAIN;
}

void clients_send_again(void)
{
	for (int i = 0; i < node.client_count; i++)
		if (node.clients[i].descriptor >= 0 && node.clients[i].blocked)
			node_watch_again(node.clients[i].descriptor, ON_CLIENT, i, EPOLLOUT);
}

/* Pending answers are made from the instances' own records, so a client that does not read costs
 * no memory. Nothing is read from it either, until it does. */
void client_tell(int index)
{
	struct client *client = &node.clients[index];
	for (int at = client->first; at != NOBODY && !client->blocked;) {
		struct instance *instance = &node.instances[at];
		int next = instance->next;
		if (instance->owed_client & OWES_STARTED) {
			struct answer answer = instance_answer(at, ANSWER_STARTED);
			if (client_answer(index, &answer) == -EAGAIN)
				return;
			instance->owed_client &= (uint8_t)~OWES_STARTED;
		}
		if (instance->owed_client & OWES_ENDED) {
			struct answer answer = instance_answer(at, instance->failed ? ANSWER_REFUSED
										    : ANSWER_ENDED);
			if (client_answer(index, &answer) == -EAGAIN)
				return;
			instance->owed_client &= (uint8_t)~OWES_ENDED;
			instance_settle(at);
		}
		at = next;
	}
}

/* The answer about something that is no instance yet. -EAGAIN: the client does not read. */
int client_refuse(int index, const struct ask *ask, int error, enum step step)
{
	struct answer answer = {.magic = ASK_MAGIC,
				.verb = ANSWER_REFUSED,
				.tag = ask->tag,
				.instance = ask->instance,
				.error = error,
				.step = step};
	int failed = client_answer(index, &answer);
	if (failed && failed != -EAGAIN)
		client_end(index);
	return failed == -EAGAIN ? failed : 0;
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
