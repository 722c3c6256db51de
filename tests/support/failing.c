/* Has a system call of a process, or of its children before they execute a program, fail once.
 *
 *   failing FILE PID
 *   failing FILE PROGRAM [ARGUMENT]...
 *
 * FILE is a struct order in memory that is shared with who gives the orders: `left` calls of those below
 * pass, and the next fails with the error of its list that `which` counts to. What failed stands in `name`
 * and `error` then, and `left` is -1. The calls are those whose failure a host that lacks something may
 * bring about; it is traced from outside, so that the failing program is the one that is shipped.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PIDS = 1 << 22, ERRORS = 4 };

struct order {
	volatile int left, which, error, attached;
	volatile char name[32];
};

#define DESCRIPTOR                        \
	{                                 \
		EMFILE, ENFILE, ENOMEM, 0 \
	}
#define MEMORY            \
	{                 \
		ENOMEM, 0 \
	}
#define SPACE                     \
	{                         \
		ENOSPC, ENOMEM, 0 \
	}
#define CALL(name, ...)                        \
	{                                      \
		SYS_##name, #name, __VA_ARGS__ \
	}

static const struct {
	long number;
	const char *name;
	int errors[ERRORS];
} calls[] = {
	CALL(open, DESCRIPTOR),
	CALL(openat, DESCRIPTOR),
	CALL(openat2, DESCRIPTOR),
	CALL(open_tree, DESCRIPTOR),
	CALL(pipe2, DESCRIPTOR),
	CALL(socket, DESCRIPTOR),
	CALL(socketpair, DESCRIPTOR),
	CALL(accept4, DESCRIPTOR),
	CALL(pidfd_open, DESCRIPTOR),
	CALL(fsopen, DESCRIPTOR),
	CALL(fsmount, DESCRIPTOR),
	CALL(fsconfig, MEMORY),
	CALL(move_mount, SPACE),
	CALL(mount, SPACE),
	CALL(mount_setattr, MEMORY),
	CALL(umount2, {EBUSY, ENOMEM, 0}),
	CALL(mkdir, SPACE),
	CALL(mkdirat, SPACE),
	CALL(mknodat, SPACE),
	CALL(symlinkat, SPACE),
	CALL(chdir, MEMORY),
	CALL(fchdir, MEMORY),
	CALL(chroot, MEMORY),
	CALL(clone, {EAGAIN, ENOMEM, ENOSPC, 0}),
	CALL(clone3, {EAGAIN, ENOMEM, ENOSPC, 0}),
	CALL(setns, SPACE),
	CALL(unshare, SPACE),
	CALL(sendmsg, {EINTR, ENOBUFS, ENOMEM, 0}),
	CALL(recvmsg, {EINTR, 0}),
	CALL(sendto, {EINTR, ENOBUFS, ENOMEM, 0}),
	CALL(recvfrom, {EINTR, 0}),
	CALL(write, {EINTR, ENOMEM, EBUSY, ENOSPC}),
	CALL(read, {EINTR, ENOMEM, EIO, 0}),
	CALL(pread64, {EINTR, ENOMEM, EIO, 0}),
	CALL(pwrite64, {EINTR, ENOMEM, 0}),
	CALL(epoll_ctl, SPACE),
	CALL(epoll_pwait2, {EINTR, 0}),
	CALL(wait4, {EINTR, 0}),
	CALL(mmap, MEMORY),
	CALL(fchown, {EIO, ENOMEM, 0}),
	CALL(fchmod, {EIO, 0}),
	CALL(fcntl, {EINTR, ENOMEM, 0}),
	CALL(setresuid, {EAGAIN, ENOMEM, 0}),
	CALL(setresgid, MEMORY),
	CALL(capset, MEMORY),
	CALL(seccomp, MEMORY),
	CALL(execve, {ENOMEM, EMFILE, EAGAIN, 0}),
	CALL(setsid, {EPERM, 0}),
	CALL(setpgid, {EPERM, 0}),
	CALL(close_range, {EMFILE, ENOMEM, 0}),
	CALL(readlink, MEMORY),
	CALL(readlinkat, MEMORY),
	CALL(prctl, {EPERM, 0}),
	CALL(sethostname, {EPERM, 0}),
	CALL(fstat, MEMORY),
	CALL(newfstatat, MEMORY),
	CALL(statfs, MEMORY),
	CALL(setrlimit, {EPERM, 0}),
	CALL(prlimit64, {EPERM, 0}),
	CALL(poll, {EINTR, ENOMEM, 0}),
	CALL(ioctl, MEMORY),
	CALL(stat, MEMORY),
	CALL(connect, {EAGAIN, ENOMEM, 0}),
};
enum { CALLS = sizeof calls / sizeof *calls };

static struct order *order;
static pid_t first;
static struct {
	bool seen;
	short fails; /* with this error, in the call that it is in */
} * processes;

/* Who does not wait is not interrupted. A node that cannot leave a namespace ends: that is said. */
static bool may_fail(pid_t pid, const struct __ptrace_syscall_info *info)
{
	return !(info->entry.nr == SYS_wait4 && info->entry.args[2] & WNOHANG) &&
	       !(info->entry.nr == SYS_setns && pid == first);
}

static int choose(long number, bool may)
{
	for (int i = 0; i < CALLS; i++) {
		int errors = 0;
		if (calls[i].number != number || !may || !order->attached || order->left < 0 ||
		    order->left--)
			continue;
		while (errors < ERRORS && calls[i].errors[errors])
			errors++;
		if (order->which < errors) {
			order->error = calls[i].errors[order->which];
			strcpy((char *)order->name, calls[i].name);
			return order->error;
		}
		strcpy((char *)order->name, "-"); /* its errors are fewer: done before */
	}
	return 0;
}

/* Another call takes the place of the one that fails: a filter may know none of number -1. */
static void at_call(pid_t pid)
{
	struct __ptrace_syscall_info info;
	if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) < 0)
		return;
	if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
		int error = choose((long)info.entry.nr, may_fail(pid, &info));
		processes[pid].fails = (short)error;
		if (error)
			ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, orig_rax),
			       SYS_getpid);
	} else if (info.op == PTRACE_SYSCALL_INFO_EXIT && processes[pid].fails) {
		ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, rax),
		       -(long)processes[pid].fails);
		processes[pid].fails = 0;
	}
}

static void at_stop(pid_t pid, int status)
{
	int event = status >> 16, number = WSTOPSIG(status), pass = 0;
	if (event == PTRACE_EVENT_EXEC && order->attached) {
		ptrace(PTRACE_DETACH, pid, 0, 0);
		return;
	}
	order->attached |= event == PTRACE_EVENT_EXEC;
	if (event == PTRACE_EVENT_STOP && number != SIGTRAP) {
		ptrace(PTRACE_LISTEN, pid, 0, 0);
		return;
	}
	if (number == (SIGTRAP | 0x80))
		at_call(pid);
	else if (!event)
		pass = number;
	ptrace(PTRACE_SYSCALL, pid, 0, pass);
}

static pid_t start(char **words)
{
	pid_t pid = fork();
	if (!pid) {
		raise(SIGSTOP);
		execv(words[0], words);
		_exit(127);
	}
	waitpid(pid, NULL, WUNTRACED);
	return pid;
}

int main(int argc, char **argv)
{
	int status, ended = 0, file = argc > 2 ? open(argv[1], O_RDWR) : -1;
	bool runs = argc > 2 && !atoi(argv[2]);
	order = mmap(NULL, sizeof *order, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	processes = calloc(PIDS, sizeof *processes);
	if (order != MAP_FAILED)
		first = runs ? start(argv + 2) : atoi(argv[2]);
	if (order == MAP_FAILED || !processes ||
	    ptrace(PTRACE_SEIZE, first, 0,
		   PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
			   PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC) ||
	    ptrace(PTRACE_INTERRUPT, first, 0, 0) || (runs && kill(first, SIGCONT))) {
		perror("failing");
		return 1;
	}
	order->attached = !runs; /* a program from its exec on */
	for (;;) {
		pid_t stopped = waitpid(-1, &status, __WALL);
		if (stopped < 0 && errno == ECHILD)
			return ended;
		if (stopped > 0 && WIFSTOPPED(status))
			at_stop(stopped, status);
		else if (stopped == first)
			ended = WEXITSTATUS(status);
	}
}
