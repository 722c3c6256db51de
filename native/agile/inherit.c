/* Sets, once and in the node itself, what all instances inherit. All that a process gets from its
 * parent is set here or in sandbox.c; tests/host/agile/test_inherited.py compares each of it with
 * what an instance reads of itself. */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/ioprio.h>
#include <linux/keyctl.h>
#include <linux/mempolicy.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PR_SET_MEMORY_MERGE /* headers before 6.4 */
#define PR_SET_MEMORY_MERGE 67
#endif

enum { HASTE = -10 };

static const struct {
	int resource;
	struct rlimit limit;
} limits[] = {
	{RLIMIT_CORE,
	 {1, 1}}, /* with 0, a core_pattern that is a pipe is still started; with 1 it is not */
	{RLIMIT_MEMLOCK, {65536, 65536}},
	{RLIMIT_STACK, {8 << 20, 8 << 20}},
	{RLIMIT_NICE, {0, 0}},
	{RLIMIT_RTPRIO, {0, 0}},
	{RLIMIT_MSGQUEUE, {819200, 819200}},
	{RLIMIT_SIGPENDING, {4096, 4096}},
	{RLIMIT_CPU, {RLIM_INFINITY, RLIM_INFINITY}},
	{RLIMIT_FSIZE, {RLIM_INFINITY, RLIM_INFINITY}},
	{RLIMIT_DATA, {RLIM_INFINITY, RLIM_INFINITY}},
	{RLIMIT_AS, {RLIM_INFINITY, RLIM_INFINITY}},
	{RLIMIT_RTTIME, {RLIM_INFINITY, RLIM_INFINITY}},
	{RLIMIT_RSS, {RLIM_INFINITY, RLIM_INFINITY}},
	{RLIMIT_LOCKS, {RLIM_INFINITY, RLIM_INFINITY}},
	/* A cgroup counts them; this limit would count those of all instances of a function
	 * together. */
	{RLIMIT_NPROC, {RLIM_INFINITY, RLIM_INFINITY}},
};

/* A lower hard limit stays: it cannot be raised without the privilege. */
static int set_limit(int resource, struct rlimit wanted)
{
	struct rlimit now;
	if (getrlimit(resource, &now))
		return -errno;
	if (!setrlimit(resource, &wanted))
		return 0;
	if (wanted.rlim_max > now.rlim_max)
		wanted.rlim_max = now.rlim_max;
	if (wanted.rlim_cur > wanted.rlim_max)
		wanted.rlim_cur = wanted.rlim_max;
	return setrlimit(resource, &wanted) ? -errno : 0;
}

/* A kernel without it has none to inherit. */
static int write_own(const char *path, const char *text)
{
	int failed = sandbox_write(AT_FDCWD, path, text);
	return failed == -ENOENT ? 0 : failed;
}

/* The time of a write to a merged page tells what other instances' pages hold; the other settings
 * affect speed. What a kernel does not know it does not hand down either. */
static int set_memory(void)
{
	if (prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0) && errno != EINVAL)
		return -errno;
	if (prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0) && errno != EINVAL)
		return -errno;
	if (prctl(PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0) && errno != EINVAL)
		return -errno;
	/* Filters of containers refuse it. */
	if (syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0) && errno != ENOSYS && errno != EPERM)
		return -errno;
	int failed = write_own("/proc/self/coredump_filter", "0x33");
	return failed ? failed : write_own("/proc/self/oom_score_adj", "0");
}

/* Children begin as ordinary processes, whatever the node's own priority. By the system call,
 * which some C libraries lack. */
static int set_scheduling(void)
{
	cpu_set_t all;
	memset(&all, 0xff, sizeof all);
	if (syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &(struct sched_param){0}) ||
	    sched_setaffinity(0, sizeof all, &all) ||
	    syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 0))
		return -errno;
	/* Without the privilege, a node that was started at a lower priority keeps it, and so do its children. */
	if (setpriority(PRIO_PROCESS, 0, 0) && errno != EACCES)
		return -errno;
	/* Without the privilege a start only waits longer for a CPU. */
	if (!setpriority(PRIO_PROCESS, 0, HASTE) &&
	    syscall(SYS_sched_setscheduler, 0, SCHED_OTHER | SCHED_RESET_ON_FORK,
		    &(struct sched_param){0}))
		return -errno;
	return 0;
}

static int drop_bounding(void)
{
	for (unsigned capability = 0; capability < 64; capability++)
		if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) && errno != EINVAL)
			return -errno;
	return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) ? -errno : 0;
}

/* The permitted set stays the node's own: none of it survives an exec or a change of user. */
static int clear_inheritable(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	if (syscall(SYS_capget, &header, data))
		return -errno;
	data[0].inheritable = data[1].inheritable = 0;
	if (syscall(SYS_capset, &header, data))
		return -errno;
	/* Locked bits stay, and give nothing to a process without capabilities. */
	(void)prctl(PR_SET_SECUREBITS, SECUREBITS_DEFAULT, 0, 0, 0);
	return 0;
}

/* By the system call: the C library reserves two signals, which the caller may have ignored all
 * the same. All zeros are the default, whatever the order of the fields. */
static void set_dispositions(void)
{
	unsigned long usual[8] = {0};
	sigset_t none;
	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL); /* fails for a wrong number only */
	for (int number = 1; number <= 64; number++)
		(void)syscall(SYS_rt_sigaction, number, usual, NULL, 8);
}

int inherit_set(void)
{
	int failed = 0;
	set_dispositions();
	umask(022);
	personality(PER_LINUX);
	for (size_t i = 0; i < sizeof limits / sizeof *limits && !failed; i++)
		failed = set_limit(limits[i].resource, limits[i].limit);
	if (!failed)
		failed = set_memory();
	if (!failed)
		failed = set_scheduling();
	if (failed)
		return failed;
	if (setgroups(0, NULL) || prctl(PR_SET_TIMERSLACK, 50000, 0, 0, 0) ||
	    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	/* An empty one; instances may not call keyctl. A kernel without keys has none to inherit. */
	if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 && errno != ENOSYS)
		return -errno;
	failed = drop_bounding();
	return failed ? failed : clear_inheritable();
}
