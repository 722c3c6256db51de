#include "masked.h"
#include "spawner.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int64_t monotonic(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* A thread that moves itself by the "tasks" file spares the kernel the write side of its
 * thread-group lock, and with it an RCU grace period of 8 ms that "cgroup.procs" costs. */
static int enter_cgroups(const struct sandbox *sandbox, const struct parts *parts)
{
	for (int i = sandbox->flags & SANDBOX_CLONE_INTO ? 1 : 0; i < parts->cgroup_count; i++)
		if (write(parts->cgroups[i], "0", 1) != 1)
			return -1;
	return 0;
}

static int mask_proc(void)
{
	for (int i = 0; i < MASKED; i++)
		if (mount(masked[i].directory ? "/dev/.empty" : "/dev/null", masked[i].path, NULL,
			  MS_BIND, NULL) &&
		    errno != ENOENT)
			return -1;
	return 0;
}

static int set_limits(const struct sandbox *sandbox)
{
	struct rlimit files = {sandbox->files, sandbox->files}, none = {0, 0};
	struct rlimit locked = {65536, 65536};
	umask(022);
	return setrlimit(RLIMIT_NOFILE, &files) || setrlimit(RLIMIT_CORE, &none) ||
	       setrlimit(RLIMIT_MEMLOCK, &locked);
}

static int write_file(int directory, const char *name, const char *text)
{
	int file = openat(directory, name, O_WRONLY | O_CLOEXEC);
	if (file < 0)
		return -1;
	ssize_t written = write(file, text, strlen(text));
	int error = errno;
	close(file);
	errno = error;
	return written == (ssize_t)strlen(text) ? 0 : -1;
}

static int set_capabilities(uint64_t keep)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {
		{.effective = (uint32_t)keep, .permitted = (uint32_t)keep},
		{.effective = (uint32_t)(keep >> 32), .permitted = (uint32_t)(keep >> 32)},
	};
	return (int)syscall(SYS_capset, &header, data);
}

/* One identity is mapped: the instance's own, to root for a zygote and to itself otherwise. */
static int enter_user_namespace(const struct sandbox *sandbox, int self)
{
	char map[64];
	bool zygote = sandbox->flags & SANDBOX_ZYGOTE;
	/* Some hosts let nobody make one who has no privilege. */
	if (prctl(PR_SET_DUMPABLE, 1) || set_capabilities(1ULL << CAP_SYS_ADMIN) ||
	    unshare(CLONE_NEWUSER) || write_file(self, "setgroups", "deny"))
		return -1;
	snprintf(map, sizeof map, "%u %u 1", zygote ? 0 : sandbox->uid, sandbox->uid);
	if (write_file(self, "uid_map", map))
		return -1;
	snprintf(map, sizeof map, "%u %u 1", zygote ? 0 : sandbox->gid, sandbox->gid);
	if (write_file(self, "gid_map", map))
		return -1;
	/* What the zygote mounts later must be its user namespace's own. */
	return zygote ? unshare(CLONE_NEWNS) : 0;
}

static int become_user(const struct sandbox *sandbox, int self)
{
	if (sandbox->flags & SANDBOX_USER_NAMESPACE && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
		return -1;
	if (setgroups(0, NULL) || setresgid(sandbox->gid, sandbox->gid, sandbox->gid) ||
	    setresuid(sandbox->uid, sandbox->uid, sandbox->uid))
		return -1;
	if (sandbox->flags & SANDBOX_USER_NAMESPACE)
		return enter_user_namespace(sandbox, self);
	return 0;
}

static int drop_bounding(uint64_t keep)
{
	for (unsigned capability = 0; capability < 64; capability++) {
		if (keep & 1ULL << capability)
			continue;
		if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) && errno != EINVAL)
			return -1;
	}
	return 0;
}

static int drop_capabilities(const struct sandbox *sandbox)
{
	/* To enter namespaces, that of mounts by a change of root, and for its forks to drop these. */
	uint64_t keep =
		sandbox->flags & SANDBOX_ZYGOTE
			? 1ULL << CAP_SYS_ADMIN | 1ULL << CAP_SYS_CHROOT | 1ULL << CAP_SETPCAP
			: 0;
	/* A new user namespace came with all of them. */
	if (sandbox->flags & SANDBOX_USER_NAMESPACE && drop_bounding(keep))
		return -1;
	if (set_capabilities(keep))
		return -1;
	/* Cleared by the change of user, so it is asked for after it. */
	return prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static int confine(const struct sock_fprog *profile)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, profile);
}

static int enter_network(const struct parts *parts)
{
	return setns(parts->network, CLONE_NEWNET);
}

static int mount_proc(void)
{
	return mount("proc", "/proc", "proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

#define DO(name, call)                      \
	do {                                \
		*step = name;               \
		stamps[name] = monotonic(); \
		if (call)                   \
			return -1;          \
	} while (0)

int sandbox_enter(const struct sandbox *sandbox, struct parts *parts,
		  const struct sock_fprog *profile, int64_t stamps[STEPS], enum step *step)
{
	/* A zygote's forks mount their own /proc, which the kernel grants only to those that see
	 * the whole of one already; what is masked otherwise is closed to its user anyway. */
	bool whole = sandbox->flags & SANDBOX_ZYGOTE;
	DO(STEP_CGROUP, enter_cgroups(sandbox, parts));
	DO(STEP_NETWORK, enter_network(parts));
	DO(STEP_ROOT, setns(parts->root, CLONE_NEWNS));
	DO(STEP_MOUNT_NAMESPACE, unshare(CLONE_NEWNS | CLONE_NEWCGROUP));
	DO(STEP_PROC, mount_proc());
	DO(STEP_MASK, whole ? 0 : mask_proc());
	DO(STEP_TMPFS, mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, sandbox->tmpfs));
	DO(STEP_HOST_NAME, sethostname(sandbox->host_name, strlen(sandbox->host_name)));
	DO(STEP_LIMITS, set_limits(sandbox));
	DO(STEP_USER, drop_bounding(0) || become_user(sandbox, parts->self));
	DO(STEP_CAPABILITIES, drop_capabilities(sandbox));
	DO(STEP_SECCOMP, confine(profile));
	return 0;
}
