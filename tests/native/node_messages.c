/* Gives the node's parsers messages from standard input, its clients' and its manager's.
 *
 * Input: records of a byte (0: a client's message, 1: the manager's, 2: a reading of what was answered, 3:
 * the client leaves, 4: the kernel has no memory to send, or has it again), a byte that says how many
 * descriptors come along, two bytes of length, and the message. No process is made and nothing is mounted: parts are never there to start from, and
 * roots are stand-ins. Fails if a client that reads all is owed an answer, or a descriptor is left open at
 * the end.
 */
#include "agile/node.h"
#include "agile/root.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { INPUT = 1 << 20, INSTANCES = 16 };
#define LONGEST ((UINT32_MAX + 60000000LL) * 1000) /* ns: between sandboxes, and waits for parts */

static jmp_buf ended; /* the node would have */
static int client_peer = -1, manager_peer = -1;
static bool is_short, in_turn;

_Noreturn void __wrap_node_die(const char *what, int failed)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-failed));
	abort();
}

int root_attach(unsigned number, unsigned version, int tree, bool writable,
		const struct root_text *text)
{
	(void)writable;
	(void)number;
	(void)version;
	if (strlen(text->host_name) > 64 || strlen(text->resolvers) > 1 << 20)
		abort();
	return fcntl(tree, F_GETFD) < 0 ? -errno : 0;
}

void root_detach(unsigned number, unsigned version, int *root)
{
	(void)number;
	(void)version;
	descriptor_close(root);
}

int root_clone(int root)
{
	return fcntl(root, F_DUPFD_CLOEXEC, 3);
}

int root_has_hosts(int root)
{
	return root >= 0;
}

int hosts_open(void)
{
	return 0;
}

int hosts_write(int index, uint32_t address)
{
	return index < 0 || address == 7 ? -EIO : 0;
}

int hosts_clone(int index)
{
	(void)index;
	return -ENOENT;
}

void hosts_remove(int index)
{
	(void)index;
}

int __wrap_part_take(enum part_kind kind, struct function *function)
{
	(void)kind;
	(void)function;
	return NOBODY;
}

/* Filters above all. */
long __wrap_syscall(long number, ...)
{
	(void)number;
	errno = ENOSYS;
	return -1;
}

ssize_t __real_sendmsg(int socket, const struct msghdr *message, int flags);
ssize_t __wrap_sendmsg(int socket, const struct msghdr *message, int flags)
{
	if (!is_short || !in_turn)
		return __real_sendmsg(socket, message, flags);
	errno = ENOBUFS;
	return -1;
}

_Noreturn void __wrap_exit(int status)
{
	(void)status;
	longjmp(ended, 1);
}

static int open_files(void)
{
	int count = 0;
	DIR *directory = opendir("/proc/self/fd");
	if (!directory)
		abort();
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

static void connect_client(void)
{
	int ends[2];
	if (client_peer >= 0)
		close(client_peer);
	client_ready(0, EPOLLIN | EPOLLHUP);
	if (node.clients[0].descriptor >= 0)
		client_end(0);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends))
		abort();
	node.clients[0] = (struct client){.descriptor = ends[0],
					  .generation = node.clients[0].generation + 1,
					  .first = NOBODY};
	node.client_count = 1;
	node.free_client = NOBODY;
	client_peer = ends[1];
	if (node_watch(ends[0], ON_CLIENT, 0, EPOLLIN))
		abort();
}

static void connect_manager(void)
{
	int ends[2];
	if (manager_peer >= 0)
		close(manager_peer);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends))
		abort();
	descriptor_close(&node.manager);
	node.manager = ends[0];
	node.stays = true;
	node.manager_blocked = false;
	manager_peer = ends[1];
	if (node_watch(ends[0], ON_MANAGER, 0, EPOLLIN))
		abort();
}

static void drain(int from)
{
	static char bytes[1 << 17];
	struct rights rights;
	while (socket_receive(from, bytes, sizeof bytes, MSG_DONTWAIT, &rights) > 0)
		rights_close(&rights);
}

static void send_message(int to, const uint8_t *bytes, size_t size, int descriptors)
{
	int given[RIGHTS_MAX];
	for (int i = 0; i < descriptors; i++) {
		given[i] = i % 2 ? open("/dev/null", O_RDWR | O_CLOEXEC)
				 : memfd_create("given", MFD_CLOEXEC);
		if (given[i] < 0)
			abort();
	}
	if (size)
		(void)socket_send(to, bytes, size, given, descriptors);
	for (int i = 0; i < descriptors; i++)
		close(given[i]);
}

/* Its loop would spin. */
static void expect_no_room(void)
{
	struct epoll_event events[8];
	int count = epoll_wait(node.epoll, events, 8, 0);
	for (int i = 0; i < count; i++)
		if (events[i].events & EPOLLOUT && node.sends_at)
			abort();
}

/* As the node's loop does. */
static void turn(void)
{
	struct epoll_event events[8];
	int count = epoll_wait(node.epoll, events, 8, 0);
	in_turn = true;
	for (int i = 0; i < count; i++)
		if (events[i].data.u64 >> 32 == ON_MANAGER)
			manager_ready(events[i].events);
		else if (events[i].data.u64 >> 32 == ON_CLIENT)
			client_ready((int)(uint32_t)events[i].data.u64, events[i].events);
	rest_judge();
	pending_serve();
	waiting_make();
	manager_send_again();
	manager_tell(node.part_count % 2);
	in_turn = false;
	if (is_short)
		expect_no_room();
	int64_t timeout = deadline_timeout();
	if (timeout < -1 || timeout > LONGEST)
		abort();
	/* A deadline for nothing would have the loop come round for ever. */
	if (manager_next() != INT64_MAX && !node.rested.count && !node.dirty.count &&
	    !node.waiting_changed)
		abort();
}

static void forget_all(void)
{
	struct order drop = {.verb = ORDER_DROP};
	connect_manager();
	for (drop.count = 0; drop.count < KEPT; drop.count++) {
		send_message(manager_peer, (uint8_t *)&drop, sizeof drop, 0);
		turn();
		drain(manager_peer);
	}
	for (int i = 0; i < FUNCTIONS; i++)
		if (node.functions[i].known)
			function_forget((uint32_t)i);
	for (int i = 0; i < PARTS; i++)
		(void)part_withdraw((uint32_t)i);
	for (int i = 0; i < node.pending_count; i++)
		rights_close(&node.pending[i].rights);
	for (int i = 0; i < node.rich_count; i++)
		descriptor_close(&node.rich[i]);
	for (int i = 0; i < node.common.top_count; i++)
		descriptor_close(&node.common.tops[i]);
	node.pending_count = node.rich_count = node.common.top_count = 0;
	descriptor_close(&node.log);
	descriptor_close(&node.manager);
	if (node.clients[0].descriptor >= 0)
		descriptor_close(&node.clients[0].descriptor);
	descriptor_close(&manager_peer);
	descriptor_close(&client_peer);
	node.telling = 0;
	node.has_done = node.holds = false;
}

static void feed(const uint8_t *at, size_t left)
{
	connect_manager();
	connect_client();
	while (left >= 4) {
		uint8_t to = at[0] % 5;
		int descriptors = at[1] % (RIGHTS_MAX + 1);
		size_t size = at[2] | (size_t)at[3] << 8;
		at += 4;
		left -= 4;
		size = size < left ? size : left;
		if (node.manager < 0)
			connect_manager();
		if (node.clients[0].descriptor < 0 || to == 3)
			connect_client();
		if (to < 2)
			send_message(to ? manager_peer : client_peer, at, size, descriptors);
		if (to == 2) {
			drain(client_peer);
			drain(manager_peer);
		}
		if (to == 4)
			is_short = !is_short;
		turn();
		at += size;
		left -= size;
	}
}

static void read_all(void)
{
	is_short = false;
	if (node.sends_at)
		node.sends_at = 1; /* the moment is over */
	for (int i = 0; i < 20; i++) {
		drain(client_peer);
		drain(manager_peer);
		turn();
	}
	if (node.clients[0].descriptor >= 0 && node.clients[0].blocked)
		abort();
}

int main(void)
{
	static uint8_t input[INPUT];
	static uint64_t serial;
	size_t size = fread(input, 1, sizeof input, stdin);
	node.manager = node.log = node.free_client = NOBODY;
	node.serial = &serial;
	instances_open(INSTANCES);
	ahead_open();
	node.clients[0].descriptor = NOBODY;
	node.epoll = epoll_create1(EPOLL_CLOEXEC);
	int before = open_files();
	if (setjmp(ended))
		_exit(0); /* with all that it has open */
	feed(input, size);
	read_all();
	forget_all();
	int after = open_files();
	if (after != before) {
		fprintf(stderr, "%d descriptors were open, and %d are\n", before, after);
		return 1;
	}
	return 0;
}
