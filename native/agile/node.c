/* firstlight-node: owns the instances of one machine, and starts them.
 *
 *   firstlight-node DIRECTORY INSTANCES 3>PIPE
 *
 * It listens in DIRECTORY: for clients at "socket", for its manager at "node". To start a function that
 * the manager has registered, a client sends one message, which is answered here. Instances outlive the
 * manager. None outlives the node, which is PID 1 of the PID namespace that holds them all. It closes
 * descriptor 3 when clients can connect.
 *
 * It is C because all of it lies inside a start, which begins with a clone of it.
 */
#include "node.h"
#include "common/clock.h"
#include "root.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BACKLOG = 4096, MANAGERS = 4, READY_MAX = 64, READY = 3 };

/* Called before anything is opened that would get the number of a closed standard stream. READY,
 * the starter's, moves away from the numbers that a waiting sandbox uses. */
static int open_standard(void)
{
	int opened, ready = fcntl(READY, F_DUPFD_CLOEXEC, FIRST_RESERVED + RESERVED);
	if (ready < 0)
		node_die("start: descriptor 3 is not open", 0);
	close(READY);
	do
		opened = open("/dev/null", O_RDWR | O_CLOEXEC);
	while (opened >= 0 && opened < FIRST_RESERVED + RESERVED - 1);
	if (opened > FIRST_RESERVED + RESERVED - 1)
		close(opened);
	for (int i = 0; i < 3; i++)
		(void)fcntl(i, F_SETFD, 0);
	if (opened < 0 || syscall(SYS_close_range, (unsigned)ready + 1, ~0U, 0))
		node_die("open the standard streams", -errno);
	return ready;
}

/* The last instance's number, which outlives us: an id never means two instances. */
static void open_serial(const char *directory)
{
	char path[sizeof node.common.socket];
	snprintf(path, sizeof path, "%s/serial", directory);
	int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	int failed = file < 0 ? errno : posix_fallocate(file, 0, sizeof *node.serial);
	if (failed == EOPNOTSUPP) /* musl's has no second way */
		failed = ftruncate(file, sizeof *node.serial) ? errno : 0;
	if (failed)
		node_die("keep the last id", -failed);
	node.serial = mmap(NULL, sizeof *node.serial, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (node.serial == MAP_FAILED)
		node_die("keep the last id", -errno);
	close(file);
}

/* We continue as PID 1 of a PID namespace that holds all instances: whatever they do, none
 * outlives us. /proc, mounted before, shows the pids that the host knows them by. */
static void enter_cage(void)
{
	if (unshare(CLONE_NEWPID))
		node_die("make a PID namespace", -errno);
	pid_t child = fork();
	if (child < 0)
		node_die("fork", -errno);
	if (child > 0)
		_exit(0);
	if (setsid() < 0)
		node_die("lead a session", -errno);
	/* Again, because clients are told the pid of the process that listens. */
	if (listen(node.clients_listener, BACKLOG) || listen(node.managers_listener, MANAGERS))
		node_die("listen", -errno);
}

static void find_pipes(void)
{
	int ends[2];
	struct stat status;
	if (pipe2(ends, O_CLOEXEC) || fstat(ends[0], &status))
		node_die("open a pipe", -errno);
	node.common.pipes = status.st_dev;
	close(ends[0]);
	close(ends[1]);
}

static int watch_children(void)
{
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGINT); /* Ctrl-C is for the manager to handle, in order */
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &signals, NULL))
		return -1;
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGTERM);
	return signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* Clients may take a part of the descriptors; instances need most. */
static void set_open_files(void)
{
	struct rlimit files;
	node.client_most = CLIENTS;
	if (getrlimit(RLIMIT_NOFILE, &files))
		return;
	files.rlim_cur = files.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &files);
	if (files.rlim_max / 4 < CLIENTS)
		node.client_most = (int)files.rlim_max / 4;
}

static void handle(const struct epoll_event *event)
{
	struct signalfd_siginfo info;
	int index = (int)(uint32_t)event->data.u64;
	switch ((enum source)(event->data.u64 >> 32)) {
	case ON_CHILDREN:
		while (read(node.children, &info, sizeof info) > 0)
			if (info.ssi_signo == SIGTERM && node.manager < 0)
				exit(0); /* the host is stopping: a manager would end us in order */
		instances_reap();
		return;
	case ON_CLIENTS:
		clients_accept();
		return;
	case ON_MANAGERS:
		managers_accept();
		return;
	case ON_MANAGER:
		manager_ready(event->events);
		return;
	case ON_CLIENT:
		client_ready(index, event->events);
		return;
	case ON_INSTANCE:
		instance_read(index);
		return;
	}
}

static void listen_at(const char *directory)
{
	char path[sizeof node.common.socket];
	int length =
		snprintf(node.common.socket, sizeof node.common.socket, "%s/socket", directory);
	snprintf(path, sizeof path, "%s/node", directory);
	if (length >= (int)sizeof node.common.socket)
		node_die("listen", -ENAMETOOLONG);
	node.clients_listener =
		socket_listen(node.common.socket, SOCK_SEQPACKET | SOCK_NONBLOCK, BACKLOG);
	node.managers_listener = socket_listen(path, SOCK_SEQPACKET | SOCK_NONBLOCK, MANAGERS);
	if (node.clients_listener < 0 || node.managers_listener < 0)
		node_die("listen", node.clients_listener < 0 ? node.clients_listener
							     : node.managers_listener);
}

static int wait_for_events(struct epoll_event *events)
{
	int64_t timeout = deadline_timeout();
	const struct timespec left = {timeout / 1000000000, timeout % 1000000000};
	return (int)syscall(SYS_epoll_pwait2, node.epoll, events, READY_MAX,
			    timeout < 0 ? NULL : &left, NULL, 0);
}

int main(int argc, char **argv)
{
	int limit = argc == 3 ? atoi(argv[2]) : 0, failed;
	if (limit < 1 || limit > 100000) {
		fputs("usage: firstlight-node DIRECTORY INSTANCES\n", stderr);
		return 2;
	}
	node.manager = node.log = node.free_client = node.free_instance = NOBODY;
	int ready = open_standard();
	set_open_files();
	listen_at(argv[1]);
	open_serial(argv[1]);
	failed = root_prune();
	if (failed)
		node_die("prune the mounts", failed);
	failed = hosts_open();
	if (failed)
		node_die("make a place for /etc/hosts", failed);
	node.common.blank = root_blank();
	if (node.common.blank < 0)
		node_die("make the sandboxes' mount namespace", node.common.blank);
	enter_cage();
	failed = inherit_set();
	if (failed)
		node_die("set what instances inherit", failed);
	find_pipes();
	sandbox_find_masks(&node.common);
	if (madvise(node.serial, sizeof *node.serial, MADV_DONTFORK))
		node_die("keep the last id", -errno);
	instances_open(limit);
	rest_open();
	ahead_open();
	node.epoll = epoll_create1(EPOLL_CLOEXEC);
	node.children = watch_children();
	if (node.epoll < 0 || node.children < 0 ||
	    node_watch(node.children, ON_CHILDREN, 0, EPOLLIN) ||
	    node_watch(node.clients_listener, ON_CLIENTS, 0, EPOLLIN) ||
	    node_watch(node.managers_listener, ON_MANAGERS, 0, EPOLLIN))
		node_die("watch", -errno);
	close(ready);
	for (;;) {
		struct epoll_event events[READY_MAX];
		int count = wait_for_events(events);
		if (count < 0 && errno != EINTR)
			node_die("wait", -errno);
		if (!count && ahead_next() <= clock_now())
			ahead_make();
		for (int i = 0; i < count; i++)
			handle(&events[i]);
		node_accept_again();
		manager_send_again();
		rest_judge();
		reuse_expire();
		pending_serve();
		waiting_make();
		manager_tell(false);
	}
}
