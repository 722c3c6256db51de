/* The descriptors that the node's event loop watches, and the connections that it accepts. */
#include "common/clock.h"
#include "node.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { ACCEPT_PAUSE = 100000000, SEND_PAUSE = 10000000 }; /* ns */

struct node node __attribute__((aligned(4096)));
_Static_assert(sizeof node <= 4096, "a page");

_Noreturn void node_die(const char *what, int failed)
{
	fprintf(stderr, "firstlight-node: cannot %s%s%s\n", what, failed ? ": " : "",
		failed ? strerror(-failed) : "");
	exit(1);
}

static uint64_t word(enum source source, int index)
{
	return (uint64_t)source << 32 | (uint32_t)index;
}

int node_watch(int descriptor, enum source source, int index, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.u64 = word(source, index)};
	return epoll_ctl(node.epoll, EPOLL_CTL_ADD, descriptor, &event) ? -errno : 0;
}

int node_watch_again(int descriptor, enum source source, int index, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.u64 = word(source, index)};
	return epoll_ctl(node.epoll, EPOLL_CTL_MOD, descriptor, &event) ? -errno : 0;
}

/* Until its exec, a child holds copies of all open descriptors. Meanwhile, a descriptor that is
 * only closed stays in the set, and one that has ended stays ready. */
void node_unwatch(int *descriptor)
{
	if (*descriptor >= 0)
		(void)epoll_ctl(node.epoll, EPOLL_CTL_DEL, *descriptor, NULL);
	descriptor_close(descriptor);
}

void node_watch_room(int descriptor, enum source source, int index, int failed)
{
	node_watch_again(descriptor, source, index, failed == -EAGAIN ? EPOLLOUT : 0);
	if (failed != -EAGAIN && !node.sends_at)
		node.sends_at = clock_now() + SEND_PAUSE;
}

static void listen_for(uint32_t events)
{
	node_watch_again(node.clients_listener, ON_CLIENTS, 0, events);
	node_watch_again(node.managers_listener, ON_MANAGERS, 0, events);
}

void node_pause_accepting(void)
{
	node.accepts_at = clock_now() + ACCEPT_PAUSE;
	listen_for(0);
}

/* Without a descriptor or memory for it, the listener stays readable. Both are left alone for a
 * moment: what is needed may come from anywhere. */
int node_accept(int listener)
{
	int descriptor = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (descriptor < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
		node_pause_accepting();
	return descriptor;
}

void node_accept_again(void)
{
	if (!node.accepts_at || clock_now() < node.accepts_at)
		return;
	node.accepts_at = 0;
	listen_for(EPOLLIN);
}
