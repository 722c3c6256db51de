/* The system calls of 32-bit x86 programs, by their number in the 64-bit table, which events carry. It is
 * a file of its own because the two tables define the same names. */
#include "trace/calls.h"
#include "trace/tracer.h"

#if defined(__x86_64__)
#include <asm/unistd_32.h>
#include <linux/net.h>

#define __NR_newfstatat __NR_fstatat64
#define __NR_accept NUMBERS /* only within socketcall */

/* clang-format off */
/* Calls whose arguments have the places of another's. */
#define SAME(OTHER) \
	OTHER(stat64, stat) OTHER(lstat64, lstat) OTHER(fstat64, fstat) OTHER(statfs64, statfs) \
	OTHER(fstatfs64, fstatfs) OTHER(fcntl64, fcntl) OTHER(ftruncate64, ftruncate) \
	OTHER(_llseek, lseek) OTHER(sendfile64, sendfile) OTHER(umount, umount2) \
	OTHER(chown32, chown) OTHER(lchown32, lchown) OTHER(fchown32, fchown) \
	OTHER(setuid32, setuid) OTHER(setgid32, setgid) OTHER(setgroups32, setgroups) \
	OTHER(setresuid32, setresuid) OTHER(setresgid32, setresgid) OTHER(waitpid, wait4) \
	OTHER(sigaction, rt_sigaction) OTHER(sigprocmask, rt_sigprocmask) \
	OTHER(_newselect, select) OTHER(sigsuspend, rt_sigsuspend) \
	OTHER(futex_time64, futex) OTHER(clock_nanosleep_time64, clock_nanosleep) \
	OTHER(ppoll_time64, ppoll) OTHER(pselect6_time64, pselect6) \
	OTHER(rt_sigtimedwait_time64, rt_sigtimedwait) OTHER(recvmmsg_time64, recvmmsg)
#define SOCKETCALLS(OTHER) \
	OTHER(SYS_SOCKET, socket) OTHER(SYS_BIND, bind) OTHER(SYS_CONNECT, connect) \
	OTHER(SYS_LISTEN, listen) OTHER(SYS_ACCEPT, accept) OTHER(SYS_GETSOCKNAME, getsockname) \
	OTHER(SYS_SOCKETPAIR, socketpair) OTHER(SYS_SEND, sendto) OTHER(SYS_RECV, recvfrom) \
	OTHER(SYS_SENDTO, sendto) OTHER(SYS_RECVFROM, recvfrom) OTHER(SYS_SHUTDOWN, shutdown) \
	OTHER(SYS_SETSOCKOPT, setsockopt) OTHER(SYS_GETSOCKOPT, getsockopt) \
	OTHER(SYS_SENDMSG, sendmsg) OTHER(SYS_RECVMSG, recvmsg) OTHER(SYS_ACCEPT4, accept4) \
	OTHER(SYS_RECVMMSG, recvmmsg) OTHER(SYS_SENDMMSG, sendmmsg)
/* clang-format on */

enum place {
#define PLACE(name, take) AT_##name,
	CALLS(PLACE)
};

struct pair {
	int number;
	enum place place;
};
static const struct pair pairs[] = {
#define OWN(name, take) {__NR_##name, AT_##name},
	CALLS(OWN)
#define SAME_PLACES(name, other) {__NR_##name, AT_##other},
		SAME(SAME_PLACES)};
static const struct pair socketcalls[] = {
#define SOCKET_PLACES(number, other) {number, AT_##other},
	SOCKETCALLS(SOCKET_PLACES)};

static void fill(const struct pair *from, size_t count, const struct tracer_call *calls,
		 unsigned short *to, int size)
{
	for (size_t i = 0; i < count; i++)
		if (from[i].number < size)
			to[from[i].number] = (unsigned short)(calls[from[i].place].number + 1);
}

void tracer_translate(struct settings *settings, const struct tracer_call *calls)
{
	fill(pairs, sizeof pairs / sizeof *pairs, calls, settings->of32, NUMBERS);
	fill(socketcalls, sizeof socketcalls / sizeof *socketcalls, calls, settings->of_socketcall,
	     SOCKETCALLS_MAX);
}
#else
/* Calls of 32-bit programs are not reported. */
void tracer_translate(struct settings *settings, const struct tracer_call *calls)
{
	(void)settings;
	(void)calls;
}
#endif
