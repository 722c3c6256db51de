/* The floor for any runtime that starts an instance on request: one clone and exec into prepared
 * parts, by a resident process that does nothing else. It sets no mask, limit, user, capability or
 * filter.
 *
 *   start-floor SOCKET TREE PARTS COMMAND [ARG...]
 *
 * It serves clients as the agile runtime does: a message with three descriptors is a start, one
 * without is a greeting. PARTS are our descriptors "NETWORK,CGROUP,...;" for each future start: a
 * network namespace, and "tasks" files of cgroups to enter, or the directory of a version 2 cgroup to
 * be born in. It prints "ready" when clients can connect.
 *
 * It is C because an interpreter's work would be measured too, and that is no floor.
 */
#include "common/message.h"
#include "common/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CGROUPS_MAX = 4, CLIENTS = 1024, LISTENER = 0, CHILDREN = 1, FIRST = 2 };

static struct pollfd polled[FIRST + CLIENTS];
static pid_t started[FIRST + CLIENTS];
static nfds_t count = FIRST;
static int root;
static char *parts; /* of the starts to come */

_Noreturn static void die(const char *what)
{
	fprintf(stderr, "start-floor: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int is_directory(int descriptor)
{
	struct stat status;
	return !fstat(descriptor, &status) && S_ISDIR(status.st_mode);
}

/* The parts of the next start; their count, 0 if none are left. */
static int take_parts(int taken[1 + CGROUPS_MAX])
{
	int given = 0;
	while (*parts && *parts != ';' && given <= CGROUPS_MAX) {
		taken[given++] = (int)strtol(parts, &parts, 10);
		parts += *parts == ',';
	}
	parts += *parts == ';';
	return given;
}

/* The mount namespace whose root is the tree, of a process that has ended. */
static int make_template(const char *tree)
{
	int ready[2], opened = -1;
	char path[64], byte = 0;
	if (pipe2(ready, O_CLOEXEC))
		die("pipe2");
	pid_t child = fork();
	if (child == 0) {
		int at =
			(int)syscall(SYS_open_tree, AT_FDCWD, tree, OPEN_TREE_CLONE | AT_RECURSIVE);
		if (at < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) || unshare(CLONE_NEWNS) ||
		    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
		    mount("tmpfs", "/tmp", "tmpfs", 0, NULL) || mkdir("/tmp/root", 0700) ||
		    chdir("/tmp") ||
		    syscall(SYS_move_mount, at, "", AT_FDCWD, "root", MOVE_MOUNT_F_EMPTY_PATH) ||
		    chdir("root") || syscall(SYS_pivot_root, ".", ".") ||
		    umount2(".", MNT_DETACH) || write(ready[1], &byte, 1) != 1)
			die("make the root");
		pause();
		_exit(1);
	}
	close(ready[1]);
	if (child > 0 && read(ready[0], &byte, 1) == 1) {
		snprintf(path, sizeof path, "/proc/%d/ns/mnt", child);
		opened = open(path, O_RDONLY | O_CLOEXEC);
	}
	if (opened < 0)
		die("open the root");
	if (kill(child, SIGKILL) || waitpid(child, NULL, 0) < 0)
		die("end the process that made the root");
	close(ready[0]);
	return opened;
}

_Noreturn static void be_instance(const int streams[3], const int *taken, int given, char **command)
{
	sigset_t none;
	sigemptyset(&none);
	if (sigprocmask(SIG_SETMASK, &none, NULL))
		_exit(126);
	for (int i = 1; i < given; i++)
		if (!is_directory(taken[i]) && write(taken[i], "0", 1) != 1)
			_exit(126);
	if (setns(taken[0], CLONE_NEWNET) || setns(root, CLONE_NEWNS) ||
	    unshare(CLONE_NEWNS | CLONE_NEWCGROUP) ||
	    mount("proc", "/proc", "proc", MS_RDONLY, NULL) || dup2(streams[0], 0) < 0 ||
	    dup2(streams[1], 1) < 0 || dup2(streams[2], 2) < 0 || close_range(3, ~0U, 0) ||
	    prctl(PR_SET_PDEATHSIG, SIGKILL))
		_exit(126);
	execv(command[0], command);
	_exit(127);
}

static void say(int client, const char *text)
{
	(void)socket_send(client, text, strlen(text), NULL, 0); /* it may be gone */
}

static void start(nfds_t client, const int streams[3], char **command)
{
	struct clone_args args = {.flags = CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS,
				  .exit_signal = SIGCHLD};
	int taken[1 + CGROUPS_MAX], given = take_parts(taken);
	if (given > 1 && is_directory(taken[1])) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (__u64)taken[1];
	}
	pid_t pid = given ? (pid_t)syscall(SYS_clone3, &args, sizeof args) : -1;
	if (pid == 0)
		be_instance(streams, taken, given, command);
	if (pid < 0) {
		say(polled[client].fd,
		    "{\"type\":\"error\",\"message\":\"cannot clone, or no parts are left\"}");
		return;
	}
	started[client] = pid;
	say(polled[client].fd, "{\"type\":\"started\"}");
}

static void serve(nfds_t client, char **command)
{
	static char text[MESSAGE_MAX];
	struct rights streams RIGHTS_SCOPE = {0};
	ssize_t size = socket_receive(polled[client].fd, text, sizeof text, 0, &streams);
	if (size <= 0) {
		if (started[client])
			kill(started[client], SIGKILL);
		close(polled[client].fd);
		polled[client].fd = -1;
	} else if (streams.count == MESSAGE_DESCRIPTORS) {
		start(client, streams.descriptors, command);
	} else {
		say(polled[client].fd, "{}");
	}
}

static void reap(void)
{
	struct signalfd_siginfo info;
	char text[128];
	int status;
	pid_t pid;
	(void)!read(polled[CHILDREN].fd, &info, sizeof info);
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (nfds_t client = FIRST; client < count; client++)
			if (started[client] == pid) {
				started[client] = 0;
				snprintf(text, sizeof text,
					 "{\"type\":\"ended\",\"status\":%d,\"signal\":%d}",
					 WEXITSTATUS(status),
					 WIFSIGNALED(status) ? WTERMSIG(status) : 0);
				say(polled[client].fd, text);
			}
}

int main(int argc, char **argv)
{
	sigset_t signals;
	if (argc < 5) {
		fputs("usage: start-floor SOCKET TREE PARTS COMMAND [ARG...]\n", stderr);
		return 2;
	}
	parts = argv[3];
	root = make_template(argv[2]);
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &signals, NULL))
		die("block signals");
	polled[CHILDREN] = (struct pollfd){signalfd(-1, &signals, SFD_CLOEXEC), POLLIN, 0};
	polled[LISTENER] =
		(struct pollfd){socket_listen(argv[1], SOCK_SEQPACKET, CLIENTS), POLLIN, 0};
	if (polled[CHILDREN].fd < 0)
		die("watch its children");
	if (polled[LISTENER].fd < 0) {
		errno = -polled[LISTENER].fd;
		die("listen");
	}
	/* A start must not queue behind the work of those before it; its child is born ordinary. */
	(void)sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK,
				 &(struct sched_param){.sched_priority = 1});
	puts("ready");
	fflush(stdout);
	for (;;) {
		if (poll(polled, count, -1) < 0) {
			if (errno != EINTR)
				die("poll");
			continue;
		}
		if (polled[LISTENER].revents && count < FIRST + CLIENTS)
			polled[count++] = (struct pollfd){
				accept4(polled[LISTENER].fd, NULL, NULL, SOCK_CLOEXEC), POLLIN, 0};
		if (polled[CHILDREN].revents)
			reap();
		for (nfds_t client = FIRST; client < count; client++)
			if (polled[client].revents)
				serve(client, argv + 4);
	}
}
