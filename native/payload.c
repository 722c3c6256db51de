/* What runs inside an instance: stamps its first instruction, then says so and waits.
 *
 *   payload ready [ADDRESS]  print "firstlight ready STAMP", wait for standard input to end; before
 *                            it speaks, send ADDRESS an echo request and hear the answer, if given:
 *                            "firstlight step packet SENT HEARD"
 *   payload once             print it and exit
 *   payload clone NS[,NS] [--] COMMAND [ARG...]
 *                            the floor: one clone3 into new namespaces (net mount pid ipc uts user
 *                            cgroup time, or none), exec COMMAND, hand on its exit status
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sched.h>
#include <netinet/ip_icmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
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
	"  mov $1, %edi\n"   /* CLOCK_MONOTONIC */
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

static int fail(const char *step)
{
	printf("firstlight error %s: %s\n", step, strerror(errno));
	return 1;
}

static long long nanoseconds(struct timespec t)
{
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* The first packet: an echo request of an unprivileged socket, there and back. */
static int reach(const char *address)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	struct timeval patience = {.tv_sec = 5};
	struct icmphdr echo = {.type = ICMP_ECHO};
	struct timespec sent, heard;
	if (inet_pton(AF_INET, address, &to.sin_addr) != 1) {
		errno = EINVAL;
		return fail(address);
	}
	int echoes = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_ICMP);
	if (echoes < 0 || setsockopt(echoes, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) ||
	    connect(echoes, (struct sockaddr *)&to, sizeof to))
		return fail("first packet");
	clock_gettime(CLOCK_MONOTONIC, &sent);
	if (send(echoes, &echo, sizeof echo, 0) < 0 || recv(echoes, &echo, sizeof echo, 0) < 0)
		return fail("first packet");
	clock_gettime(CLOCK_MONOTONIC, &heard);
	close(echoes);
	printf("firstlight step packet %lld %lld\n", nanoseconds(sent), nanoseconds(heard));
	return 0;
}

static int ready(const char *address)
{
	if (address && reach(address))
		return 1;
	printf("firstlight ready %lld\n", nanoseconds(first_instruction));
	return fflush(stdout) ? 1 : 0;
}

static int wait_for_the_end(void)
{
	char rest[64];
	ssize_t n;
	do
		n = read(STDIN_FILENO, rest, sizeof(rest));
	while (n > 0 || (n < 0 && errno == EINTR));
	return 0;
}

static const struct {
	const char *name;
	__u64 flag;
} namespaces[] = {
	{"net", CLONE_NEWNET},	 {"mount", CLONE_NEWNS},	 {"pid", CLONE_NEWPID},
	{"ipc", CLONE_NEWIPC},	 {"uts", CLONE_NEWUTS},	 {"user", CLONE_NEWUSER},
	{"cgroup", CLONE_NEWCGROUP}, {"time", CLONE_NEWTIME}, {"none", 0},
};

static int parse_namespaces(char *list, __u64 *flags)
{
	for (char *name = strtok(list, ","); name; name = strtok(NULL, ",")) {
		size_t i, count = sizeof(namespaces) / sizeof(*namespaces);
		for (i = 0; i < count && strcmp(name, namespaces[i].name); i++)
			;
		if (i == count)
			return -1;
		*flags |= namespaces[i].flag;
	}
	return 0;
}

static int clone_into(char *list, char **command)
{
	struct clone_args args = {.exit_signal = SIGCHLD};
	if (parse_namespaces(list, &args.flags)) {
		errno = EINVAL;
		return fail(list);
	}
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		return fail("clone3");
	if (pid == 0) {
		execv(command[0], command);
		_exit(fail("execve"));
	}
	int status;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return fail("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
	if ((argc == 2 || argc == 3) && !strcmp(argv[1], "ready"))
		return ready(argv[2]) || wait_for_the_end();
	if (argc == 2 && !strcmp(argv[1], "once"))
		return ready(NULL);
	if (argc > 3 && !strcmp(argv[1], "clone")) {
		char **command = argv + 3;
		if (!strcmp(command[0], "--"))
			command++;
		if (command[0])
			return clone_into(argv[2], command);
	}
	fputs("usage: payload ready [ADDRESS] | payload once |"
	      " payload clone NS[,NS...] [--] COMMAND [ARG...]\n", stderr);
	return 2;
}
