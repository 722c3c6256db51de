/* The steps of a new process before it executes a function's program, in order: namespaces, mounts,
 * root, identity, filter. It is one file because the order is the isolation, and a reader must see all
 * of it. Nothing is allocated here: the process is a clone.
 */
#include "sandbox.h"
#include "common/clock.h"
#include "common/socket.h"
#include "masked.h"
#include "tmpfs.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/mount.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* What only root may read is closed to an instance anyway: see common->mask. */
_Static_assert(MASKED == sizeof((struct sandbox_common *)0)->mask, "one flag for each path");

static const uint64_t tmpfs_default = 16 << 20;

static int failure(int result)
{
	return result < 0 ? -errno : 0;
}

int sandbox_write(int directory, const char *name, const char *text)
{
	int file = openat(directory, name, O_WRONLY | O_CLOEXEC);
	if (file < 0)
		return -errno;
	int failed = write(file, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -errno;
	close(file);
	return failed;
}

/* A thread that moves itself by the "tasks" file spares the kernel the write side of its
 * thread-group lock, and with it an RCU grace period of 8 ms that "cgroup.procs" costs. On
 * version 2 it was born there. */
static int join_cgroup(const struct sandbox_common *common, uint32_t cgroup)
{
	char name[32];
	int failed = 0;
	snprintf(name, sizeof name, "%u/tasks", cgroup);
	for (int i = 0; i < common->top_count && !common->unified && !failed; i++)
		failed = sandbox_write(common->tops[i], name, "0");
	return failed;
}

int sandbox_lead_session(void)
{
	return getsid(0) == getpid() || setsid() >= 0 ? 0 : -errno;
}

/* In a reused sandbox, PID 1 leads the session, and each instance a group of its own. */
static int lead(void)
{
	return getsid(0) == 1 && getpid() != 1 ? failure(setpgid(0, 0)) : sandbox_lead_session();
}

/* By files that were opened ahead, if they are of this cgroup. */
static int join_cgroup_ahead(const struct sandbox_common *common, const struct ahead *ahead,
			     uint32_t cgroup, struct progress *progress)
{
	bool has = ahead->has_tasks && ahead->cgroup == cgroup;
	for (int i = 0; i < common->top_count && has; i++)
		has = write(ahead->tasks[i], "0", 1) == 1;
	int failed = has ? 0 : join_cgroup(common, cgroup);
	progress->out_of_memory =
		has ? ahead->out_of_memory : sandbox_out_of_memory(common, cgroup);
	return failed;
}

static int set_limit(int top, uint32_t cgroup, const char *file, const char *text, bool must)
{
	char name[64];
	snprintf(name, sizeof name, "%u/%s", cgroup, file);
	int failed = sandbox_write(top, name, text);
	return !must && (failed == -ENOENT || failed == -EOPNOTSUPP) ? 0 : failed;
}

static int set_cgroup_limits(const struct sandbox_common *common, uint32_t cgroup,
			     const struct limits *limits)
{
	char memory[32], quota[64], pids[32];
	int cpu = common->tops[0];
	int top = common->unified ? cpu : common->tops[1],
	    counted = common->unified ? cpu : common->tops[2];
	int failed;
	snprintf(memory, sizeof memory, "%llu", (unsigned long long)limits->memory);
	snprintf(pids, sizeof pids, "%u", limits->pids);
	if (common->unified) {
		snprintf(quota, sizeof quota, "%u 100000", limits->quota);
		failed = set_limit(top, cgroup, "memory.max", memory, true);
		if (!failed)
			failed = set_limit(cpu, cgroup, "cpu.max", quota, true);
	} else {
		snprintf(quota, sizeof quota, "%u", limits->quota);
		/* Memory may not exceed memory with swap, so the order depends on the old limits. */
		failed = set_limit(top, cgroup, "memory.limit_in_bytes", memory, true);
		int swap = set_limit(top, cgroup, "memory.memsw.limit_in_bytes", memory, false);
		if (failed && !swap)
			failed = set_limit(top, cgroup, "memory.limit_in_bytes", memory, true);
		if (!failed)
			failed = swap;
		/* What waits in sockets is not counted with the rest. */
		if (!failed)
			failed = set_limit(top, cgroup, "memory.kmem.tcp.limit_in_bytes", memory,
					   false);
		if (!failed)
			failed = set_limit(cpu, cgroup, "cpu.cfs_quota_us", quota, true);
	}
	return failed ? failed : set_limit(counted, cgroup, "pids.max", pids, true);
}

void sandbox_find_masks(struct sandbox_common *common)
{
	for (int i = 0; i < MASKED; i++) {
		struct stat status;
		common->mask[i] = !stat(masked[i].path, &status) && status.st_mode & 0007;
	}
}

static int mask_proc(const struct sandbox_common *common)
{
	for (int i = 0; i < MASKED; i++)
		if (common->mask[i] && mount(masked[i].directory ? "/empty" : "/null",
					     masked[i].path, NULL, MS_BIND, NULL))
			return -errno;
	return 0;
}

int sandbox_enter_blank(const struct sandbox_common *common)
{
	return failure(setns(common->blank, CLONE_NEWNS) || unshare(CLONE_NEWNS) ? -1 : 0);
}

static int enter_ahead(const struct ahead *ahead)
{
	return failure(setns(ahead->mounts, CLONE_NEWNS) || setns(ahead->ipc, CLONE_NEWIPC) ? -1
											    : 0);
}

static int mount_proc(void)
{
	return failure(
		mount("proc", "/proc", "proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
}

static void tmpfs_options(char *options, size_t size, uint64_t bytes)
{
	snprintf(options, size, TMPFS_OPTIONS, (unsigned long long)bytes);
}

static int mount_tmpfs(void)
{
	char options[TMPFS_OPTIONS_MAX];
	tmpfs_options(options, sizeof options, tmpfs_default);
	return failure(mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options));
}

int sandbox_renew_tmpfs(uint64_t bytes)
{
	char options[TMPFS_OPTIONS_MAX];
	tmpfs_options(options, sizeof options, bytes);
	return failure(umount2("/tmp", MNT_DETACH)
			       ? -1
			       : mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options));
}

static int resize_tmpfs(uint64_t bytes)
{
	char options[TMPFS_OPTIONS_MAX];
	if (bytes == tmpfs_default)
		return 0;
	tmpfs_options(options, sizeof options, bytes);
	return failure(mount(NULL, "/tmp", NULL, MS_REMOUNT | MS_NOSUID | MS_NODEV, options));
}

static int mount_hosts(const struct sandbox_spec *spec)
{
	return failure(spec->has_hosts ? (int)syscall(SYS_move_mount, spec->hosts, "", AT_FDCWD,
						      "/etc/hosts", MOVE_MOUNT_F_EMPTY_PATH)
				       : 0);
}

/* In a reused sandbox, another network brings another /etc/hosts. */
int sandbox_enter_network(const struct sandbox_spec *spec)
{
	if (setns(spec->network, CLONE_NEWNET) ||
	    (spec->has_hosts && umount2("/etc/hosts", MNT_DETACH)))
		return -errno;
	return mount_hosts(spec);
}

/* The tree is mounted over the blank root, /proc and /tmp below it, and becomes the root. An
 * empty tmpfs stays beneath; removing it would wait for a grace period. */
static int enter_tree(const struct sandbox_spec *spec)
{
	int tree = spec->tree, failed = resize_tmpfs(spec->function.scratch);
	if (failed)
		return failed;
	if (syscall(SYS_move_mount, tree, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) ||
	    fchdir(tree) || syscall(SYS_move_mount, AT_FDCWD, "/proc", AT_FDCWD, "proc", 0) ||
	    syscall(SYS_move_mount, AT_FDCWD, "/tmp", AT_FDCWD, "tmp", 0) || chroot("."))
		return -errno;
	failed = mount_hosts(spec);
	/* After the limits: where cgroups are delegated (nsdelegate), none can be set from within
	 * a namespace whose root is the cgroup. */
	return failed ? failed : failure(unshare(CLONE_NEWCGROUP));
}

/* Refuses a socket in the directory where the node listens: an instance could command the runtime
 * by it. */
static bool is_of_runtime(const struct sandbox_common *common, int stream,
			  int (*name_of)(int, struct sockaddr *, socklen_t *))
{
	struct sockaddr_un name = {0};
	socklen_t size = sizeof name - 1;
	size_t directory = (size_t)(strrchr(common->socket, '/') + 1 - common->socket);
	return !name_of(stream, (struct sockaddr *)&name, &size) && name.sun_family == AF_UNIX &&
	       !strncmp(name.sun_path, common->socket, directory);
}

/* An anonymous pipe is given to the instance's user, so that it can be opened as /dev/stdout. */
static int take_stream(const struct sandbox_common *common, const struct sandbox_spec *spec,
		       int number)
{
	int stream = spec->streams[number];
	struct stat status;
	if (fstat(stream, &status))
		return -errno;
	if (S_ISDIR(status.st_mode)) /* the way out of its root */
		return -EISDIR;
	if (S_ISFIFO(status.st_mode) && status.st_dev == common->pipes &&
	    fchown(stream, spec->function.uid, (gid_t)-1))
		return -errno;
	if (S_ISSOCK(status.st_mode) && (is_of_runtime(common, stream, getpeername) ||
					 is_of_runtime(common, stream, getsockname)))
		return -ENOTSUP;
	return failure(dup2(stream, number));
}

static int take_streams(const struct sandbox_common *common, const struct sandbox_spec *spec)
{
	int failed = 0;
	for (int i = 0; i < 3 && !failed; i++)
		failed = take_stream(common, spec, i);
	return failed ? failed : lead();
}

/* Only if requested: the mount would be a twentieth of a start. The host reserves terminals for
 * itself, whatever instances take. */
static int mount_terminals(void)
{
	if (!access("/dev/pts/ptmx", F_OK)) /* a session uses its instance's */
		return 0;
	return failure(mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
			     "ptmxmode=0666,mode=0620,max=16"));
}

/* The slave is the three streams and the session's terminal; the master goes to the client, which
 * may have sent its size. */
static int take_terminal(const struct sandbox_spec *spec)
{
	struct winsize size;
	int locked = 0, terminal, master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	char there = 1;
	if (master < 0 || ioctl(master, TIOCSPTLCK, &locked))
		return -errno;
	terminal = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (terminal < 0 || fchown(terminal, spec->function.uid, spec->function.gid) ||
	    sandbox_lead_session() || ioctl(terminal, TIOCSCTTY, 0))
		return -errno;
	if (recv(spec->streams[0], &size, sizeof size, MSG_DONTWAIT) == sizeof size &&
	    ioctl(terminal, TIOCSWINSZ, &size))
		return -errno;
	int failed = socket_send(spec->streams[0], &there, 1, &master, 1);
	for (int i = 0; i < 3 && !failed; i++)
		failed = failure(dup2(terminal, i));
	return failed;
}

static int take(const struct sandbox_common *common, const struct sandbox_spec *spec)
{
	bool wants = spec->terminal || spec->function.flags & DEFINITION_TERMINALS;
	int failed = wants ? mount_terminals() : 0;
	if (failed)
		return failed;
	return spec->terminal ? take_terminal(spec) : take_streams(common, spec);
}

/* After everything that opens files: until the exec, the node's own descriptors count, too. */
static int set_limits(const struct definition *function)
{
	struct rlimit files = {function->files, function->files};
	return failure(setrlimit(RLIMIT_NOFILE, &files));
}

static int set_capabilities(uint64_t keep)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct have[2],
		wanted[2] = {
			{.effective = (uint32_t)keep, .permitted = (uint32_t)keep},
			{.effective = (uint32_t)(keep >> 32), .permitted = (uint32_t)(keep >> 32)},
		};
	if (syscall(SYS_capset, &header, wanted) || syscall(SYS_capget, &header, have))
		return -errno;
	return memcmp(wanted, have, sizeof wanted) ? -EPERM : 0;
}

/* Of those that this process has: a host may withhold some. */
int sandbox_keep_capabilities(uint64_t keep)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct have[2];
	if (syscall(SYS_capget, &header, have))
		return -errno;
	return set_capabilities(keep & (have[0].permitted | (uint64_t)have[1].permitted << 32));
}

/* One identity is mapped: the instance's own, to root for a zygote and otherwise to itself. */
static int enter_user_namespace(const struct definition *function, int self)
{
	char map[64];
	bool zygote = function->flags & DEFINITION_ZYGOTE;
	/* Some hosts require a privilege for it. */
	int failed = set_capabilities(1ULL << CAP_SYS_ADMIN);
	if (failed)
		return failed;
	if (prctl(PR_SET_DUMPABLE, 1) || unshare(CLONE_NEWUSER))
		return -errno;
	failed = sandbox_write(self, "setgroups", "deny");
	snprintf(map, sizeof map, "%u %u 1", zygote ? 0 : function->uid, function->uid);
	if (!failed)
		failed = sandbox_write(self, "uid_map", map);
	snprintf(map, sizeof map, "%u %u 1", zygote ? 0 : function->gid, function->gid);
	if (!failed)
		failed = sandbox_write(self, "gid_map", map);
	/* Mounts that the zygote makes later must belong to its user namespace. */
	return failed || !zygote ? failed : failure(unshare(CLONE_NEWNS));
}

/* -1 would mean "unchanged", and 0 the host's root, so the values are verified. By the system
 * calls: a C library would first look for threads. */
static int set_user(const struct definition *function)
{
	uid_t uid = function->uid, uids[3];
	gid_t gid = function->gid, gids[3];
	if (uid == 0 || gid == 0 || uid == (uid_t)-1 || gid == (gid_t)-1)
		return -EINVAL;
	if (function->flags & DEFINITION_USER_NAMESPACE && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
		return -errno;
	if (syscall(SYS_setresgid, gid, gid, gid) || syscall(SYS_setresuid, uid, uid, uid) ||
	    getresuid(&uids[0], &uids[1], &uids[2]) || getresgid(&gids[0], &gids[1], &gids[2]))
		return -errno;
	for (int i = 0; i < 3; i++)
		if (uids[i] != uid || gids[i] != gid)
			return -EPERM;
	return 0;
}

static int become_user(const struct definition *function, int self)
{
	int failed = set_user(function);
	return failed || !(function->flags & DEFINITION_USER_NAMESPACE)
		       ? failed
		       : enter_user_namespace(function, self);
}

/* What does not belong to the instance is closed before anything there could look at us. */
static int keep_two(int control, int instance)
{
	if (dup3(control, FIRST_RESERVED, O_CLOEXEC) < 0 ||
	    dup3(instance, FIRST_RESERVED + 1, O_CLOEXEC) < 0)
		return -errno;
	return failure((int)syscall(SYS_close_range, FIRST_RESERVED + 2, ~0U, 0));
}

static int join_user(const struct definition *function, int control, int instance)
{
	bool own = function->flags & DEFINITION_USER_NAMESPACE;
	int failed = keep_two(control, instance);
	if (!failed && own)
		failed = failure(setns(FIRST_RESERVED + 1, CLONE_NEWUSER));
	return failed ? failed : set_user(function);
}

static int drop_bounding(uint64_t keep)
{
	for (unsigned capability = 0; capability < 64; capability++) {
		if (keep & 1ULL << capability)
			continue;
		if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) && errno != EINVAL)
			return -errno;
	}
	return 0;
}

static int drop_capabilities(const struct definition *function)
{
	/* For entering namespaces (for mounts, with a change of root), and for its forks to drop
	 * these. */
	uint64_t keep =
		function->flags & DEFINITION_ZYGOTE
			? 1ULL << CAP_SYS_ADMIN | 1ULL << CAP_SYS_CHROOT | 1ULL << CAP_SETPCAP
			: 0;
	/* A new user namespace came with all of them. */
	int failed = function->flags & DEFINITION_USER_NAMESPACE ? drop_bounding(keep) : 0;
	return failed ? failed : set_capabilities(keep);
}

static int confine(const struct sock_fprog *profile)
{
	return failure((int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, profile));
}

/* As in a shell: the first that exists and may be executed. */
static int execute_found(char **argv, char **envp)
{
	char path[PATH_MAX];
	int failed = -ENOENT;
	const char *at = "";
	for (char **word = envp; *word; word++)
		if (!strncmp(*word, "PATH=", 5))
			at = *word + 5;
	for (const char *end; *at; at = *end ? end + 1 : end) {
		end = strchrnul(at, ':');
		int length = (int)(end - at);
		if (snprintf(path, sizeof path, "%.*s/%s", length, length ? at : ".", argv[0]) >=
		    (int)sizeof path)
			continue;
		execve(path, argv, envp);
		if (errno != ENOENT && errno != ENOTDIR)
			failed = -errno;
		if (failed != -ENOENT && failed != -EACCES)
			break;
	}
	return failed;
}

/* A directory or program of the function may be named through a descriptor, as /proc/self/fd/N,
 * and those of cgroups lead to the host's files. A process that shares its table with PID 1 of
 * its sandbox gets one of its own. */
static int close_all_but_streams(int control)
{
	if (control < 0)
		return failure(
			(int)syscall(SYS_close_range, FIRST_RESERVED, ~0U, CLOSE_RANGE_UNSHARE));
	if (control > FIRST_RESERVED &&
	    syscall(SYS_close_range, FIRST_RESERVED, (unsigned)control - 1, 0))
		return -errno;
	return failure((int)syscall(SYS_close_range, (unsigned)control + 1, ~0U, 0));
}

static int execute(char **argv, char **envp, const char *directory, int control)
{
	int failed = close_all_but_streams(control);
	if (failed || chdir(directory))
		return failed ? failed : -errno;
	if (!strchr(argv[0], '/'))
		return execute_found(argv, envp);
	execve(argv[0], argv, envp);
	return -errno;
}

static void begin(struct progress *progress, enum step step)
{
	progress->stamps[step] = clock_now();
	progress->step = (int32_t)step;
}

#define DO(name, call)                             \
	do {                                       \
		begin(progress, name);             \
		int failed = (call);               \
		if (failed) {                      \
			progress->error = -failed; \
			return failed;             \
		}                                  \
	} while (0)

int sandbox_find_pid(struct progress *progress)
{
	char pid[16];
	ssize_t size = readlink("/proc/self", pid, sizeof pid - 1);
	if (size < 0)
		return -errno;
	pid[size] = 0;
	progress->pid = (int32_t)strtol(pid, NULL, 10);
	return 0;
}

int sandbox_open_self(void)
{
	int self = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	return self < 0 ? -errno : self;
}

int sandbox_open_out_of_memory(const struct sandbox_common *common, uint32_t cgroup)
{
	char name[64];
	snprintf(name, sizeof name, "%u/%s", cgroup,
		 common->unified ? "memory.events" : "memory.oom_control");
	return openat(common->tops[common->unified ? 0 : 1], name, O_RDONLY | O_CLOEXEC);
}

int sandbox_open_processes(const struct sandbox_common *common, uint32_t cgroup)
{
	char name[64];
	snprintf(name, sizeof name, "%u/pids.current", cgroup);
	return openat(common->tops[common->unified ? 0 : 2], name, O_RDONLY | O_CLOEXEC);
}

uint32_t sandbox_read_out_of_memory(int file)
{
	static const char name[] = "oom_kill ";
	char text[1024], *at = text;
	ssize_t size = file < 0 ? -1 : pread(file, text, sizeof text - 1, 0);
	text[size < 0 ? 0 : size] = 0;
	/* A line at a time: to search for longer text, a C library makes a table first. */
	while (at && strncmp(at, name, strlen(name)) != 0) {
		at = strchr(at, '\n');
		at += at != NULL;
	}
	return at ? (uint32_t)strtoul(at + strlen(name), NULL, 10) : 0;
}

static uint64_t read_number(int top, uint32_t cgroup, const char *file)
{
	char text[64];
	snprintf(text, sizeof text, "%u/%s", cgroup, file);
	int opened FILE_SCOPE = openat(top, text, O_RDONLY | O_CLOEXEC);
	ssize_t size = opened < 0 ? -1 : read(opened, text, sizeof text - 1);
	text[size < 0 ? 0 : size] = 0;
	return strtoull(text, NULL, 10);
}

uint64_t sandbox_memory_left(const struct sandbox_common *common, uint32_t cgroup)
{
	if (common->unified)
		return read_number(common->tops[0], cgroup, "memory.current");
	return read_number(common->tops[1], cgroup, "memory.usage_in_bytes") +
	       read_number(common->tops[1], cgroup, "memory.kmem.tcp.usage_in_bytes");
}

uint32_t sandbox_out_of_memory(const struct sandbox_common *common, uint32_t cgroup)
{
	int file FILE_SCOPE = sandbox_open_out_of_memory(common, cgroup);
	return sandbox_read_out_of_memory(file);
}

int sandbox_make(const struct sandbox_common *common, const struct ahead *ahead, bool in_ahead,
		 uint32_t cgroup, struct progress *progress)
{
	DO(STEP_CGROUP, join_cgroup_ahead(common, ahead, cgroup, progress));
	DO(STEP_MOUNT_NAMESPACE, in_ahead ? enter_ahead(ahead) : sandbox_enter_blank(common));
	DO(STEP_PROC, mount_proc());
	DO(STEP_MASK, mask_proc(common));
	DO(STEP_TMPFS, mount_tmpfs());
	return 0;
}

int sandbox_enter(const struct sandbox_common *common, struct sandbox_spec *spec, int self,
		  struct progress *progress)
{
	char **argv, **envp, *directory;
	DO(STEP_FUNCTION, sandbox_read_words(spec, &argv, &envp, &directory));
	int failed = sandbox_settle(common, spec, progress);
	return failed ? failed
		      : sandbox_execute(common, spec, self, argv, envp, directory, progress);
}

int sandbox_settle(const struct sandbox_common *common, struct sandbox_spec *spec,
		   struct progress *progress)
{
	const struct definition *function = &spec->function;
	DO(STEP_NETWORK, failure(setns(spec->network, CLONE_NEWNET)));
	if (spec->set_limits)
		DO(STEP_CGROUP_LIMITS, set_cgroup_limits(common, spec->cgroup, &spec->limits));
	DO(STEP_ROOT, enter_tree(spec));
	DO(STEP_HOST_NAME, failure(sethostname(function->host_name, strlen(function->host_name))));
	return 0;
}

int sandbox_execute(const struct sandbox_common *common, struct sandbox_spec *spec, int self,
		    char **argv, char **envp, const char *directory, struct progress *progress)
{
	const struct definition *function = &spec->function;
	DO(STEP_STREAMS, take(common, spec));
	DO(STEP_USER, become_user(function, self));
	DO(STEP_LIMITS, set_limits(function));
	DO(STEP_CAPABILITIES, drop_capabilities(function));
	DO(STEP_SECCOMP, confine(&common->profiles[function->profile]));
	DO(STEP_EXEC, execute(argv, envp, directory, spec->control));
	return 0;
}

int sandbox_join(const struct sandbox_common *common, struct sandbox_spec *spec, int instance,
		 int control, struct progress *progress)
{
	enum {
		SPACES = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
	};
	const struct definition *function = &spec->function;
	char **argv, **envp, *directory;
	DO(STEP_FUNCTION, sandbox_read_words(spec, &argv, &envp, &directory));
	DO(STEP_CGROUP, join_cgroup(common, spec->cgroup));
	DO(STEP_ROOT, failure(setns(instance, SPACES)));
	DO(STEP_STREAMS, take(common, spec));
	DO(STEP_USER, join_user(function, control, instance));
	DO(STEP_LIMITS, set_limits(function));
	DO(STEP_CAPABILITIES, drop_capabilities(function));
	DO(STEP_SECCOMP, confine(&common->profiles[function->profile]));
	DO(STEP_EXEC, execute(argv, envp, directory, FIRST_RESERVED));
	return 0;
}
