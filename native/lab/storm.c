/* Starts a command as a runtime would that meets a known storm, or one that avoids it.
 *
 *   storm cgroup DIRECTORY moved|born COMMAND [ARG...]
 *                   the command in a control group: written to its cgroup.procs after its clone, or
 *                   cloned into it
 *   storm daemon SOCKET MEBIBYTES fork|vfork COMMAND [ARG...]
 *                   a process with that much memory in use, which starts the command for each
 *                   connection, with the descriptors that it is sent as standard input and output;
 *                   prints "listening"
 *   storm ask SOCKET
 *                   ask it, with our own, and wait for the command's end
 *
 * It is C because what a runtime's own language adds would be measured instead.
 */
#include "common/cleanup.h"
#include "common/error.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BACKLOG = 16, MEBIBYTE = 1 << 20, STREAMS = 2, PAGE = 4096 };

union control {
	struct cmsghdr header;
	char space[CMSG_SPACE(STREAMS * sizeof(int))];
};

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
	close(shut);
	shut = -1;
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

static int address_of(const char *path, struct sockaddr_un *address, struct error *error)
{
	address->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof address->sun_path)
		return error_set(error, ENAMETOOLONG, "%s", path);
	memcpy(address->sun_path, path, strlen(path));
	return 0;
}

static int ask(const char *path, struct error *error)
{
	struct sockaddr_un address = {0};
	int streams[STREAMS] = {STDIN_FILENO, STDOUT_FILENO};
	char byte = 0;
	if (address_of(path, &address, error))
		return -error->code;
	int peer FILE_SCOPE = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (peer < 0 || connect(peer, (struct sockaddr *)&address, sizeof address))
		return error_set(error, errno, "%s", path);
	union control control = {0};
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control.space,
				 .msg_controllen = sizeof control.space};
	control.header.cmsg_len = CMSG_LEN(sizeof streams);
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	memcpy(CMSG_DATA(&control.header), streams, sizeof streams);
	if (sendmsg(peer, &message, 0) != 1)
		return error_set(error, errno, "%s", path);
	while (read(peer, &byte, 1) > 0)
		;
	return 0;
}

static int take_streams(int peer, int streams[STREAMS])
{
	char byte;
	union control control = {0};
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control.space,
				 .msg_controllen = sizeof control.space};
	if (recvmsg(peer, &message, MSG_CMSG_CLOEXEC) != 1)
		return -EPROTO;
	if (message.msg_controllen < CMSG_LEN(STREAMS * sizeof(int)))
		return -EPROTO;
	memcpy(streams, CMSG_DATA(&control.header), STREAMS * sizeof(int));
	return 0;
}

/* The child keeps the connection, so that its end is seen by who asked. */
static int start_for(int peer, int shares_memory, char **command, struct error *error)
{
	int streams[STREAMS];
	int bad = take_streams(peer, streams);
	if (bad)
		return error_set(error, -bad, "a connection");
	pid_t pid = shares_memory ? vfork() : fork();
	if (pid == 0) {
		if (dup2(streams[0], STDIN_FILENO) < 0 || dup2(streams[1], STDOUT_FILENO) < 0)
			_exit(127);
		become(command);
	}
	close(streams[0]);
	close(streams[1]);
	return pid < 0 ? error_set(error, errno, "fork") : 0;
}

static int serve(const char *path, size_t mebibytes, int shares_memory, char **command,
		 struct error *error)
{
	struct sockaddr_un address = {0};
	size_t size = mebibytes * MEBIBYTE;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || madvise(memory, size, MADV_NOHUGEPAGE))
		return error_set(error, errno, "%zu MiB", mebibytes);
	for (size_t at = 0; at < size; at += PAGE)
		memory[at] = 1;
	if (address_of(path, &address, error))
		return -error->code;
	int listening FILE_SCOPE = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listening < 0 || bind(listening, (struct sockaddr *)&address, sizeof address) ||
	    listen(listening, BACKLOG) || signal(SIGCHLD, SIG_IGN) == SIG_ERR)
		return error_set(error, errno, "%s", path);
	puts("listening");
	fflush(stdout);
	for (;;) {
		int peer FILE_SCOPE = accept(listening, NULL, NULL);
		if (peer < 0)
			return error_set(error, errno, "%s", path);
		if (start_for(peer, shares_memory, command, error))
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
	else if (argc > 5 && !strcmp(argv[1], "daemon"))
		status = serve(argv[2], strtoul(argv[3], NULL, 10), !strcmp(argv[4], "vfork"),
			       argv + 5, &error);
	else if (argc == 3 && !strcmp(argv[1], "ask"))
		status = ask(argv[2], &error);
	else
		status = error_set(&error, EINVAL,
				   "usage: storm cgroup DIRECTORY moved|born COMMAND... | "
				   "daemon SOCKET MEBIBYTES fork|vfork COMMAND... | ask SOCKET");
	if (status >= 0)
		return status;
	error_print(&error);
	return 1;
}
