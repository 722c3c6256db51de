/* Starts a command the way a runtime does that meets a known storm, or the way of one that avoids it.
 *
 *   storm cgroup DIRECTORY moved|born COMMAND [ARG...]
 *                   the command in a control group: written to its cgroup.procs after its clone, or
 *                   cloned into it
 *   storm layers DIRECTORY COUNT COMMAND [ARG...]
 *                   the command, after mounting each of COUNT layers (the directories DIRECTORY/0 and
 *                   so on) once more with its ids mapped, and unmounting it
 *   storm daemon SOCKET MEBIBYTES MILLISECONDS fork|vfork COMMAND [ARG...]
 *                   a process that uses MEBIBYTES of memory; for each connection it sleeps for
 *                   MILLISECONDS, then starts the command with the received descriptors as standard
 *                   input and output; prints "listening"
 *   storm ask SOCKET
 *                   ask the daemon, with our own descriptors, and wait for the command's end
 *
 * It is C because another language's own overhead would be measured instead.
 */
#include "common/cleanup.h"
#include "common/error.h"
#include "common/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BACKLOG = 16, MEBIBYTE = 1 << 20, STREAMS = 2, PAGE = 4096, DETACH = 2 };

static int end_of(pid_t pid, struct error *error)
{
	int status;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return error_set(error, errno, "waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static _Noreturn void become(char **command)
{
	execv(command[0], command);
	_exit(127);
}

static int enter(const char *directory, pid_t pid, struct error *error)
{
	char path[PAGE], number[16];
	int length = snprintf(number, sizeof number, "%d", pid);
	snprintf(path, sizeof path, "%s/cgroup.procs", directory);
	int file FILE_SCOPE = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0 || write(file, number, (size_t)length) != length)
		return error_set(error, errno, "%s", path);
	return 0;
}

static int start_moved(const char *directory, char **command, struct error *error)
{
	int gate[2];
	if (pipe2(gate, O_CLOEXEC))
		return error_set(error, errno, "pipe");
	int open_end FILE_SCOPE = gate[0], shut FILE_SCOPE = gate[1];
	pid_t pid = fork();
	if (pid < 0)
		return error_set(error, errno, "fork");
	if (pid == 0) {
		char byte;
		close(shut);
		if (read(open_end, &byte, 1) != 1)
			_exit(127);
		become(command);
	}
	int bad = enter(directory, pid, error);
	if (!bad && write(shut, "", 1) != 1)
		bad = error_set(error, errno, "write to the child");
	descriptor_close(&shut);
	int status = end_of(pid, error);
	return bad ? bad : status;
}

static int start_born(const char *directory, char **command, struct error *error)
{
	int group FILE_SCOPE = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (group < 0)
		return error_set(error, errno, "%s", directory);
	struct clone_args args = {
		.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (__u64)group};
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
	if (pid < 0)
		return error_set(error, errno, "clone3");
	if (pid == 0)
		become(command);
	return end_of(pid, error);
}

/* A descriptor of a user namespace in which root is the host's user 100000. */
static int user_namespace(struct error *error)
{
	int gate[2];
	if (pipe2(gate, O_CLOEXEC))
		return error_set(error, errno, "pipe");
	int open_end FILE_SCOPE = gate[0], shut FILE_SCOPE = gate[1];
	struct clone_args args = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
	if (pid < 0)
		return error_set(error, errno, "clone3 of a user namespace");
	if (pid == 0) {
		char byte;
		close(shut);
		_exit(read(open_end, &byte, 1) < 0);
	}
	static const char *const maps[] = {"uid_map", "gid_map"};
	static const char map[] = "0 100000 65536";
	int bad = 0, namespace = -1;
	for (size_t each = 0; each < 2 && !bad; each++) {
		char path[PAGE];
		snprintf(path, sizeof path, "/proc/%d/%s", pid, maps[each]);
		int file FILE_SCOPE = open(path, O_WRONLY | O_CLOEXEC);
		if (file < 0 || write(file, map, sizeof map - 1) < 0)
			bad = error_set(error, errno, "%s", path);
	}
	if (!bad) {
		char path[PAGE];
		snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
		namespace = open(path, O_RDONLY | O_CLOEXEC);
		if (namespace < 0)
			bad = error_set(error, errno, "%s", path);
	}
	descriptor_close(&shut);
	int status = end_of(pid, error);
	return bad ? bad : status ? error_set(error, EPROTO, "the namespace's process") : namespace;
}

static int map_ids(const char *directory, unsigned layer, int namespace, struct error *error)
{
	char path[PAGE];
	snprintf(path, sizeof path, "%s/%u", directory, layer);
	int tree FILE_SCOPE =
		(int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (tree < 0)
		return error_set(error, errno, "open_tree %s", path);
	struct mount_attr attributes = {.attr_set = MOUNT_ATTR_IDMAP,
					.userns_fd = (__u64) namespace};
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes))
		return error_set(error, errno, "mount_setattr of %s", path);
	if (syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH))
		return error_set(error, errno, "move_mount to %s", path);
	if (syscall(SYS_umount2, path, DETACH))
		return error_set(error, errno, "umount %s", path);
	return 0;
}

static int start_on_layers(const char *directory, unsigned layers, char **command,
			   struct error *error)
{
	int namespace FILE_SCOPE = user_namespace(error);
	if (namespace < 0)
		return namespace;
	for (unsigned layer = 0; layer < layers; layer++)
		if (map_ids(directory, layer, namespace, error))
			return -error->code;
	execv(command[0], command);
	return error_set(error, errno, "%s", command[0]);
}

static int ask(const char *path, struct error *error)
{
	char byte = 0;
	int peer FILE_SCOPE = socket_connect(path, SOCK_STREAM, 0);
	int bad = peer < 0 ? peer
			   : socket_send(peer, &byte, 1, (int[]){STDIN_FILENO, STDOUT_FILENO}, 2);
	if (bad)
		return error_set(error, -bad, "%s", path);
	while (read(peer, &byte, 1) > 0)
		;
	return 0;
}

/* The child keeps the connection, so its end reaches the client. */
static int start_for(int peer, useconds_t pause, int shares_memory, char **command,
		     struct error *error)
{
	char byte;
	struct rights streams RIGHTS_SCOPE = {0};
	if (socket_receive(peer, &byte, 1, 0, &streams) != 1 || streams.count != STREAMS)
		return error_set(error, EPROTO, "a connection");
	if (pause)
		usleep(pause);
	pid_t pid = shares_memory ? vfork() : fork();
	if (pid == 0) {
		if (dup2(streams.descriptors[0], STDIN_FILENO) < 0 ||
		    dup2(streams.descriptors[1], STDOUT_FILENO) < 0)
			_exit(127);
		become(command);
	}
	return pid < 0 ? error_set(error, errno, "fork") : 0;
}

static int serve(const char *path, size_t mebibytes, useconds_t pause, int shares_memory,
		 char **command, struct error *error)
{
	size_t size = mebibytes * MEBIBYTE;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || madvise(memory, size, MADV_NOHUGEPAGE))
		return error_set(error, errno, "%zu MiB", mebibytes);
	for (size_t at = 0; at < size; at += PAGE)
		memory[at] = 1;
	int listening FILE_SCOPE = socket_listen(path, SOCK_STREAM, BACKLOG);
	if (listening < 0 || signal(SIGCHLD, SIG_IGN) == SIG_ERR)
		return error_set(error, listening < 0 ? -listening : errno, "%s", path);
	puts("listening");
	fflush(stdout);
	for (;;) {
		int peer FILE_SCOPE = accept(listening, NULL, NULL);
		if (peer < 0)
			return error_set(error, errno, "%s", path);
		if (start_for(peer, pause, shares_memory, command, error))
			return -error->code;
	}
}

int main(int argc, char **argv)
{
	struct error error = {0};
	int status;
	if (argc > 4 && !strcmp(argv[1], "cgroup") && !strcmp(argv[3], "moved"))
		status = start_moved(argv[2], argv + 4, &error);
	else if (argc > 4 && !strcmp(argv[1], "cgroup") && !strcmp(argv[3], "born"))
		status = start_born(argv[2], argv + 4, &error);
	else if (argc > 4 && !strcmp(argv[1], "layers"))
		status = start_on_layers(argv[2], (unsigned)strtoul(argv[3], NULL, 10), argv + 4,
					 &error);
	else if (argc > 6 && !strcmp(argv[1], "daemon"))
		status = serve(argv[2], strtoul(argv[3], NULL, 10),
			       1000 * (useconds_t)strtoul(argv[4], NULL, 10),
			       !strcmp(argv[5], "vfork"), argv + 6, &error);
	else if (argc == 3 && !strcmp(argv[1], "ask"))
		status = ask(argv[2], &error);
	else
		status = error_set(&error, EINVAL,
				   "usage: storm cgroup DIRECTORY moved|born COMMAND... | "
				   "layers DIRECTORY COUNT COMMAND... | "
				   "daemon SOCKET MEBIBYTES MILLISECONDS fork|vfork COMMAND... | "
				   "ask SOCKET");
	if (status >= 0)
		return status;
	error_print(&error);
	return 1;
}
