/* Makes the sandboxes for a zygote's forks: one process, "place", for each zygote.
 *
 * A sandbox is a set of namespaces with a PID 1 of ours that has no rights and only reaps. The zygote
 * is not trusted, and only enters it. For that, the sandbox must belong to the zygote's user namespace,
 * and its PID namespace must lie below the zygote's, so this process enters both. The zygote can kill
 * it but not trace it: it has capabilities that the zygote lacks, and is not dumpable.
 *
 * It ends with descriptor 3; a sandbox ends with its own socket, and with the zygote.
 *
 * It is C because a copy of it stays as PID 1 of each sandbox, and must be small.
 */
#include "agile/place.h"
#include "common/socket.h"
#include "masked.h"
#include "tmpfs.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CONTROL = 3, ZYGOTE_PID = 0, ZYGOTE_MOUNT, ZYGOTE_USER, ZYGOTE_SPACES };
enum { HOLD = 0, NETWORK, FIRST_DOOR, PARTS = FIRST_DOOR + PLACE_DOORS };

static int failure(long result)
{
	return result < 0 ? -errno : 0;
}

static int mount_proc(void)
{
	return failure(
		mount("proc", "/proc", "proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
}

/* As root: a whole /proc, without which the kernel lets no user namespace mount one, and an empty
 * directory. */
static int enter_mounts(int mounts)
{
	if (setns(mounts, CLONE_NEWNS) || unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return -errno;
	int failed = mount_proc();
	return failed ? failed
		      : failure(mount("tmpfs", "/tmp", "tmpfs",
				      MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
				      "size=4k,nr_inodes=2,mode=555"));
}

static int become_zygotes_root(int user)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || setgroups(0, NULL) ||
	    setns(user, CLONE_NEWUSER) || setresgid(0, 0, 0) || setresuid(0, 0, 0) ||
	    prctl(PR_SET_DUMPABLE, 0) || prctl(PR_SET_PDEATHSIG, SIGKILL))
		return -errno;
	return failure(unshare(CLONE_NEWNS));
}

static int join_cgroups(const int *doors, int count)
{
	for (int i = 0; i < count; i++)
		if (write(doors[i], "0", 1) != 1)
			return -errno;
	return failure(unshare(CLONE_NEWCGROUP));
}

static int mount_own(uint64_t scratch)
{
	char options[TMPFS_OPTIONS_MAX];
	int failed = mount_proc();
	for (size_t i = 0; i < sizeof masked / sizeof *masked && !failed; i++)
		if (!access(masked[i].path, F_OK))
			failed = failure(mount(masked[i].directory ? "/tmp" : "/dev/null",
					       masked[i].path, NULL, MS_BIND, NULL));
	snprintf(options, sizeof options, TMPFS_OPTIONS, (unsigned long long)scratch);
	return failed ? failed
		      : failure(mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options));
}

static int give_up_rights(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {{0}};
	for (unsigned capability = 0; capability < 64; capability++)
		if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) && errno != EINVAL)
			return -errno;
	return failure(syscall(SYS_capset, &header, none));
}

#define DO(name, call)                           \
	do {                                     \
		report->step = name;             \
		int failed = (call);             \
		if (failed) {                    \
			report->error = -failed; \
			return;                  \
		}                                \
	} while (0)

static void make(const struct place_zygote *zygote, const int *parts, int count,
		 struct place_report *report)
{
	DO(PLACE_CGROUP, join_cgroups(parts + FIRST_DOOR, count - FIRST_DOOR));
	DO(PLACE_NETWORK, failure(setns(parts[NETWORK], CLONE_NEWNET)));
	DO(PLACE_MOUNT, mount_own(zygote->scratch));
	DO(PLACE_NAME, failure(sethostname(zygote->host_name, strlen(zygote->host_name))));
	DO(PLACE_RIGHTS, give_up_rights());
}

static void tell(int hold, const struct place_report *report)
{
	while (send(hold, report, sizeof *report, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

/* PID 1 of a sandbox: it reaps orphans, as SIGCHLD is ignored. */
_Noreturn static void be_first(const struct place_zygote *zygote, const int *parts, int count)
{
	struct place_report report = {0};
	char end;
	make(zygote, parts, count, &report);
	if (!report.error && (dup2(parts[HOLD], 0) < 0 || close_range(1, ~0U, 0)))
		report.error = errno;
	tell(report.error ? parts[HOLD] : 0, &report);
	while (!report.error && (read(0, &end, 1) > 0 || errno == EINTR))
		errno = 0;
	_exit(0);
}

/* The C library's clone needs a stack for the child. */
static pid_t clone_first(void)
{
	unsigned long flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD;
	return (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
}

/* 1, 0 at the end, or a negative errno. */
static int receive_parts(struct rights *parts)
{
	char request;
	ssize_t size = socket_receive(CONTROL, &request, sizeof request, 0, parts);
	if (size <= 0)
		return (int)size;
	return parts->count < FIRST_DOOR || parts->count > PARTS ? -EPROTO : 1;
}

/* Returns what receive_parts returns. */
static int receive_zygote(struct place_zygote *zygote, struct rights *spaces)
{
	ssize_t size = socket_receive(CONTROL, zygote, sizeof *zygote, 0, spaces);
	if (size <= 0)
		return (int)size;
	zygote->host_name[sizeof zygote->host_name - 1] = 0;
	return size != sizeof *zygote || spaces->count != ZYGOTE_SPACES ? -EPROTO : 1;
}

_Noreturn static void serve(const struct place_zygote *zygote)
{
	for (;;) {
		struct rights parts RIGHTS_SCOPE = {0};
		int result = receive_parts(&parts);
		if (result <= 0)
			_exit(-result);
		pid_t pid = clone_first();
		if (pid == 0)
			be_first(zygote, parts.descriptors, parts.count);
		if (pid < 0)
			tell(parts.descriptors[HOLD], &(struct place_report){PLACE_CLONE, errno});
	}
}

_Noreturn static void be_placer(const struct place_zygote *zygote, const int *spaces)
{
	int failed = enter_mounts(spaces[ZYGOTE_MOUNT]);
	if (!failed)
		failed = become_zygotes_root(spaces[ZYGOTE_USER]);
	if (failed || close_range(CONTROL + 1, ~0U, 0))
		_exit(1);
	serve(zygote);
}

int main(void)
{
	struct place_zygote zygote;
	struct rights spaces;
	int status;
	sigset_t all;
	sigfillset(&all);
	if (fcntl(CONTROL, F_SETFD, FD_CLOEXEC) || close_range(CONTROL + 1, ~0U, 0) ||
	    sigprocmask(SIG_BLOCK, &all, NULL) || signal(SIGCHLD, SIG_DFL) == SIG_ERR)
		return 1;
	int result = receive_zygote(&zygote, &spaces);
	if (result <= 0)
		return -result;
	if (setns(spaces.descriptors[ZYGOTE_PID], CLONE_NEWPID))
		return 1;
	pid_t pid = fork();
	if (pid == 0 && signal(SIGCHLD, SIG_IGN) != SIG_ERR)
		be_placer(&zygote, spaces.descriptors);
	/* The runtime learns of the child's end from its socket. */
	close(CONTROL);
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return pid < 0;
}
