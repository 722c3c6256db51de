/* What runs inside an instance: stamps its first instruction, prints the stamp and waits.
 *
 *   payload ready [ADDRESS]  print "firstlight ready STAMP", wait for standard input to end; with
 *                            ADDRESS, first exchange an echo with it:
 *                            "firstlight step packet START END"
 *   payload reach ADDRESS    the same, but the answer is the end point: "firstlight step payload
 *                            FIRST-INSTRUCTION START", the step packet, and "firstlight ready END"
 *   payload once [ADDRESS]   the same as ready, or as reach with an address, then exit
 *   payload hold             keep a pod's namespaces until SIGTERM or SIGINT, as a pause container
 *   payload clone FLAGS COMMAND [ARG...]
 *                            the floor: one clone3 with these flags, a number, then exec COMMAND;
 *                            exits with its status
 *   payload read DIRECTORY COMMAND [ARG...]
 *                            read the files in a directory, as a program reads its image, and
 *                            exec COMMAND
 *
 * It is C because its first instruction is what is measured: nothing may run before it.
 */
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/error.h"
#include "lab/echo.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct timespec first_instruction;

/* The program's entry point: the stamp is taken before any run-time set-up. */
#if defined(__x86_64__)
__asm__(".globl first_light\n"
	"first_light:\n"
	"  mov %rdx, %r12\n"
	"  mov $228, %eax\n" /* clock_gettime */
	"  mov $1, %edi\n" /* CLOCK_MONOTONIC */
	"  lea first_instruction(%rip), %rsi\n"
	"  syscall\n"
	"  mov %r12, %rdx\n"
	"  jmp _start\n");
#elif defined(__aarch64__)
__asm__(".globl first_light\n"
	"first_light:\n"
	"  mov x19, x0\n"
	"  mov x8, #113\n"
	"  mov x0, #1\n"
	"  adrp x1, first_instruction\n"
	"  add x1, x1, :lo12:first_instruction\n"
	"  svc #0\n"
	"  mov x0, x19\n"
	"  b _start\n");
#else
#error "payload: no entry point for this architecture"
#endif

static int ready(const char *address, bool reaches, struct error *error)
{
	struct echo echo = {0};
	struct error why = {0};
	int64_t first = first_instruction.tv_sec * CLOCK_SECOND + first_instruction.tv_nsec;
	if (address && echo_ask(address, ECHO_PATIENCE_MS, &echo, &why))
		return error_set(error, 0, "first packet: %s", why.text);
	if (reaches)
		printf("firstlight step payload %jd %jd\n", (intmax_t)first, (intmax_t)echo.start);
	if (address)
		printf("firstlight step packet %jd %jd\n", (intmax_t)echo.start,
		       (intmax_t)echo.end);
	printf("firstlight ready %jd\n", (intmax_t)(reaches ? echo.end : first));
	return fflush(stdout) ? error_set(error, errno, "cannot write to standard output") : 0;
}

static void wait_for_the_end(void)
{
	char rest[64];
	ssize_t n;
	do
		n = read(STDIN_FILENO, rest, sizeof rest);
	while (n > 0 || (n < 0 && errno == EINTR));
}

static int hold(struct error *error)
{
	sigset_t ends;
	int ended_by;
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	/* Orphans of the pod, where it shares a PID namespace, are reaped by the kernel. */
	if (signal(SIGCHLD, SIG_IGN) == SIG_ERR || sigprocmask(SIG_BLOCK, &ends, NULL))
		return error_set(error, errno, "signals");
	return sigwait(&ends, &ended_by) != 0;
}

/* Returns the command's exit status. */
static int clone_into(const char *flags, char **command, struct error *error)
{
	struct clone_args args = {.flags = strtoul(flags, NULL, 0), .exit_signal = SIGCHLD};
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
	if (pid < 0)
		return error_set(error, errno, "clone3");
	if (pid == 0) {
		execv(command[0], command);
		error_set(error, errno, "execve");
		error_print(error);
		_exit(1);
	}
	int status;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return error_set(error, errno, "waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int read_file(int directory, const char *name, struct error *error)
{
	static char part[1 << 16];
	int file FILE_SCOPE = openat(directory, name, O_RDONLY | O_CLOEXEC);
	ssize_t length;
	if (file < 0)
		return error_set(error, errno, "%s", name);
	while ((length = read(file, part, sizeof part)) > 0)
		;
	return length < 0 ? error_set(error, errno, "read %s", name) : 0;
}

static int read_files(const char *path, char **command, struct error *error)
{
	DIR *directory = opendir(path);
	if (!directory)
		return error_set(error, errno, "%s", path);
	int bad = 0;
	for (struct dirent *entry; !bad && (entry = readdir(directory));)
		if (entry->d_type == DT_REG)
			bad = read_file(dirfd(directory), entry->d_name, error);
	closedir(directory);
	if (bad)
		return bad;
	execv(command[0], command);
	return error_set(error, errno, "execve");
}

static int usage(void)
{
	fputs("usage: payload ready [ADDRESS] | payload reach ADDRESS |"
	      " payload once [ADDRESS] | payload hold |"
	      " payload clone FLAGS COMMAND [ARG...] | payload read DIRECTORY COMMAND [ARG...]\n",
	      stderr);
	return 2;
}

int main(int argc, char **argv)
{
	struct error error = {0};
	const char *verb = argc > 1 ? argv[1] : "", *address = argc == 3 ? argv[2] : NULL;
	int status;
	if (argc > 3 && !strcmp(verb, "clone")) {
		status = clone_into(argv[2], argv + 3, &error);
	} else if (argc > 3 && !strcmp(verb, "read")) {
		status = read_files(argv[2], argv + 3, &error);
	} else if (argc == 2 + !!address && !strcmp(verb, "once")) {
		status = ready(address, address, &error);
	} else if ((argc == 2 + !!address && !strcmp(verb, "ready")) ||
		   (address && !strcmp(verb, "reach"))) {
		status = ready(address, !strcmp(verb, "reach"), &error);
		if (!status)
			wait_for_the_end();
	} else if (argc == 2 && !strcmp(verb, "hold")) {
		status = hold(&error);
	} else {
		status = usage();
	}
	if (status >= 0)
		return status;
	error_print(&error);
	return 1;
}
