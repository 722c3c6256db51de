/* PID 1 of a sandbox that serves its function again and again, one instance at a time.
 *
 * The instance is a child, confined like any other. When it has ended, all processes are killed, and
 * everything that it could have changed is replaced, or compared with its earlier state: /tmp, the
 * IPC namespace, pids, mounts, the host name. A difference ends the sandbox, but a changed network is
 * only given up, and the next start brings another. See docs/security.md, and
 * tests/host/agile/test_reuse.py, which leaves each of these traces.
 *
 * PID 1 is root in the host's user namespace, with the few capabilities that this takes. So it
 * touches the instance's things only by calls that follow none of the instance's paths. No instance
 * sees it in /proc or can send it a signal.
 */
#include "common/clock.h"
#include "common/socket.h"
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STACK = 64 * 1024, TEXT = 8192, LINE = 128, PAUSE = 10 /* ms */ };

/* What changes with any packet and with most failed calls, and, of what only root can change, what is
 * quick to read. A socket reports changes of links, addresses, routes, rules and neighbours. */
static const struct {
	const char *path;
	size_t most; /* bytes to read: of a sysctl the kernel allocates and clears as many */
} counters[] = {
	{"/proc/self/net/dev", TEXT},
	{"/proc/self/net/snmp", TEXT},
	{"/proc/sys/net/ipv4/ip_local_port_range", LINE},
	{"/proc/sys/net/ipv4/ip_unprivileged_port_start", LINE},
};
enum { COUNTERS = sizeof counters / sizeof *counters };

/* The identifiers that the next SysV objects will get, if they were set. The kernel resets one to -1
 * when it uses it, so a value that still stands shows that no object was made. */
static const char *const next_ids[] = {
	"sys/kernel/msg_next_id",
	"sys/kernel/sem_next_id",
	"sys/kernel/shm_next_id",
};
enum { NEXT_IDS = sizeof next_ids / sizeof *next_ids };
/* Place 0 with the last sequence number. The kernel fills the place of an object that got such an
 * identifier next, but counts its sequence from 0: the identifier is not given again soon. */
#define NEXT_ID "2147450880"

/* For entering networks, mounting /tmp, killing processes, and setting an instance's streams,
 * limits and user. */
static const uint64_t rights_kept =
	1ULL << CAP_SYS_ADMIN | 1ULL << CAP_KILL | 1ULL << CAP_CHOWN | 1ULL << CAP_SYS_RESOURCE |
	1ULL << CAP_SETUID | 1ULL << CAP_SETGID |
	1ULL << CAP_DAC_READ_SEARCH; /* to /tmp, whoever owns the root */

struct text {
	int file;
	ssize_t size;
	char bytes[TEXT];
};

struct init {
	const struct sandbox_common *common;
	struct sandbox_spec spec;
	int control, proc, last_pid, mounts, home, sockets, changes, out_of_memory, processes, null;
	int routes; /* written to, the kernel drops those that it keeps */
	bool in_network, has_words; /* has_words: those of the function alone are read */
	struct text texts[COUNTERS];
	int next_ids[NEXT_IDS], queues; /* queues: the directory of the POSIX queues */
	struct stat tmp, no_queues;
	struct statfs tmp_use;
	char **argv, **envp, *directory;
	struct progress *progress;
};

static struct init init;
static char stack[STACK] __attribute__((aligned(16)));

static void look_at_tmp(struct stat *status, struct statfs *use)
{
	memset(status, 0, sizeof *status);
	memset(use, 0, sizeof *use);
	if (stat("/tmp", status) || statfs("/tmp", use))
		_exit(127);
}

static ssize_t read_text(int file, char *bytes, size_t most)
{
	return file < 0 ? -1 : pread(file, bytes, most, 0);
}

/* A socket that reports all changes except those of multicast routing, which take a capability. */
static int open_changes(void)
{
	struct sockaddr_nl all = {
		.nl_family = AF_NETLINK,
		.nl_groups =
			~(1U << (RTNLGRP_IPV4_MROUTE_R - 1) | 1U << (RTNLGRP_IPV6_MROUTE_R - 1)),
	};
	/* From Linux 6.14 on: multicast groups that a socket joined, which the kernel announces on
	 * the network for a while after the socket is gone. */
	static const int later[] = {37 /* RTNLGRP_IPV4_MCADDR */, 38 /* RTNLGRP_IPV6_MCADDR */};
	int opened = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (opened >= 0 && bind(opened, (struct sockaddr *)&all, sizeof all))
		descriptor_close(&opened);
	for (size_t i = 0; i < sizeof later / sizeof *later && opened >= 0; i++)
		(void)setsockopt(opened, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &later[i],
				 sizeof later[i]);
	return opened;
}

static void open_counters(void)
{
	init.changes = open_changes();
	for (int i = 0; i < COUNTERS; i++) {
		struct text *text = &init.texts[i];
		text->file = open(counters[i].path, O_RDONLY | O_CLOEXEC);
		text->size = read_text(text->file, text->bytes, counters[i].most);
	}
	init.sockets = open("/proc/self/net/sockstat", O_RDONLY | O_CLOEXEC);
	init.routes = openat(init.proc, "sys/net/ipv4/route/flush", O_WRONLY | O_CLOEXEC);
	init.in_network = true;
}

static void close_counters(void)
{
	for (int i = 0; i < COUNTERS; i++)
		descriptor_close(&init.texts[i].file);
	descriptor_close(&init.sockets);
	descriptor_close(&init.routes);
	descriptor_close(&init.changes);
	init.in_network = false;
}

static bool happened(int file, short event)
{
	struct pollfd events = {.fd = file, .events = event};
	return poll(&events, 1, 0) != 0;
}

/* No packet came or went, nothing changed, and the only socket is ours. */
static bool network_is_clean(void)
{
	static char now[TEXT];
	ssize_t size = read_text(init.sockets, now, sizeof now);
	if (size < 16 || memcmp(now, "sockets: used 1\n", 16) != 0)
		return false;
	if (init.changes < 0 || happened(init.changes, POLLIN))
		return false;
	for (int i = 0; i < COUNTERS; i++) {
		const struct text *text = &init.texts[i];
		size = read_text(text->file, now, counters[i].most);
		if (size < 0 || size == (ssize_t)counters[i].most || size != text->size ||
		    memcmp(now, text->bytes, (size_t)size) != 0)
			return false;
	}
	return true;
}

/* A route that the kernel keeps for an address tells when somebody asked for it. Until the next start
 * brings another network, it is in the one where waiting sandboxes are. */
static uint32_t leave_network(void)
{
	if (network_is_clean() && pwrite(init.routes, "1", 1, 0) == 1)
		return 1;
	close_counters();
	if (setns(init.home, CLONE_NEWNET))
		_exit(127);
	return 0;
}

static bool mounts_changed(void)
{
	return happened(init.mounts, POLLPRI);
}

static bool host_name_is_kept(void)
{
	struct utsname names;
	return !uname(&names) && !strcmp(names.nodename, init.spec.function.host_name) &&
	       !strcmp(names.domainname, "(none)");
}

static bool tmp_is_renewed(void)
{
	struct stat status;
	struct statfs use;
	look_at_tmp(&status, &use);
	if (!memcmp(&status, &init.tmp, sizeof status) && !memcmp(&use, &init.tmp_use, sizeof use))
		return true;
	if (sandbox_renew_tmpfs(init.spec.function.scratch))
		return false;
	look_at_tmp(&init.tmp, &init.tmp_use);
	(void)mounts_changed(); /* by ourselves */
	return true;
}

static bool reads(int file, const char *text)
{
	char now[16];
	ssize_t size = pread(file, now, sizeof now, 0);
	return size == (ssize_t)strlen(text) && !memcmp(now, text, (size_t)size);
}

/* True if the instance started no process: its own pid is the last that was assigned here, and
 * its cgroup, which it cannot leave, holds no process but ours. */
static bool nobody_came(void)
{
	return reads(init.last_pid, "2\n") && reads(init.processes, "1\n");
}

/* Whatever ends with its process ends here: sockets, locks, watches, timers, keys. kill(-1) is
 * expensive even if there is no process, and so is the second one, which verifies: the kernel
 * walks all processes of the host. */
static bool processes_are_gone(void)
{
	if (nobody_came())
		return true;
	if (kill(-1, SIGKILL))
		return errno == ESRCH;
	while (wait4(-1, NULL, __WALL, NULL) > 0 || errno == EINTR)
		;
	return kill(-1, 0) && errno == ESRCH;
}

static void close_ipc(void)
{
	for (int i = 0; i < NEXT_IDS; i++)
		descriptor_close(&init.next_ids[i]);
	descriptor_close(&init.queues);
}

static int open_queues(void)
{
	int context FILE_SCOPE = (int)syscall(SYS_fsopen, "mqueue", FSOPEN_CLOEXEC);
	if (context < 0 || syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -1;
	return (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
}

static bool set_next_ids(void)
{
	bool works = true;
	for (int i = 0; i < NEXT_IDS; i++) {
		int file = works ? openat(init.proc, next_ids[i], O_RDWR | O_CLOEXEC) : -1;
		works = file >= 0 && pwrite(file, NEXT_ID, strlen(NEXT_ID), 0) > 0;
		init.next_ids[i] = file;
	}
	return works;
}

/* Where the kernel lacks any of this, each instance gets a new namespace. */
static void open_ipc(void)
{
	init.queues = set_next_ids() ? open_queues() : -1;
	memset(&init.no_queues, 0, sizeof init.no_queues);
	if (init.queues < 0 || fstat(init.queues, &init.no_queues))
		close_ipc();
}

/* No SysV object was made, and no POSIX queue made or removed. */
static bool ipc_is_unused(void)
{
	struct stat now;
	memset(&now, 0, sizeof now);
	for (int i = 0; i < NEXT_IDS; i++)
		if (!reads(init.next_ids[i], NEXT_ID "\n"))
			return false;
	return !fstat(init.queues, &now) && !memcmp(&now, &init.no_queues, sizeof now);
}

/* Looking costs more than a new namespace: a function that used one may use each. */
static bool ipc_is_renewed(void)
{
	if (ipc_is_unused())
		return true;
	close_ipc();
	if (unshare(CLONE_NEWIPC))
		return false;
	(void)set_next_ids(); /* so that its objects do not show that others were made */
	close_ipc();
	return true;
}

static bool pids_begin_again(void)
{
	return init.last_pid < 0 || pwrite(init.last_pid, "1", 1, 0) == 1;
}

static bool is_renewed(void)
{
	return processes_are_gone() && !mounts_changed() && host_name_is_kept() &&
	       tmp_is_renewed() && ipc_is_renewed() && pids_begin_again();
}

/* It takes memory of the cgroup, which may have none to spare. */
static void send_news(const struct news *news, const int *descriptor)
{
	int failed;
	while ((failed = socket_send(init.control, news, sizeof *news, descriptor,
				     descriptor ? 1 : 0)) == -ENOBUFS ||
	       failed == -ENOMEM)
		(void)poll(NULL, 0, PAUSE);
	if (failed)
		_exit(0); /* the node is gone */
}

/* Runs in our memory, with our descriptors unless it opens some, on a stack of its own, while we
 * wait for its exec or end. */
static int be_instance(void *unused)
{
	char pid[16];
	(void)unused;
	ssize_t size = readlinkat(init.proc, "self", pid, sizeof pid - 1);
	pid[size < 0 ? 0 : size] = 0;
	init.progress->pid = (int32_t)strtol(pid, NULL, 10);
	sandbox_execute(init.common, &init.spec, -1, init.argv, init.envp, init.directory,
			init.progress);
	_exit(127);
}

static void run(void)
{
	struct news news = {.kind = NEWS_RUNS};
	struct rusage usage = {0};
	int pidfd = -1, status = 0, flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD;
	bool opens = init.spec.terminal || init.spec.function.flags & DEFINITION_TERMINALS;
	pid_t ended, pid = clone(be_instance, stack + STACK, opens ? flags : flags | CLONE_FILES,
				 NULL, &pidfd);
	if (pid < 0) {
		init.progress->step = STEP_CLONE;
		init.progress->error = errno;
	} else if (init.progress->step == STEP_EXEC && !init.progress->error) {
		send_news(&news, &pidfd);
	}
	descriptor_close(&pidfd);
	for (int i = 0; i < 3; i++) {
		if (dup2(init.null, i) < 0) /* closes our copies of the instance's streams */
			_exit(127);
		descriptor_close(&init.spec.streams[i]);
	}
	descriptor_close(&init.spec.own_words);
	while (pid > 0 && (ended = wait4(-1, &status, __WALL, &usage)) != pid)
		if (ended < 0 && errno != EINTR)
			_exit(127);
	news = (struct news){.kind = NEWS_ENDED,
			     .status = status,
			     .user = clock_of(usage.ru_utime),
			     .system = clock_of(usage.ru_stime)};
	send_news(&news, NULL);
}

static void fail(enum step step, int error)
{
	struct news news = {.kind = NEWS_ENDED};
	init.progress->step = (int32_t)step;
	init.progress->error = -error;
	send_news(&news, NULL);
	_exit(127);
}

static void receive(struct progress *slots)
{
	struct rights rights;
	struct enter_again enter;
	struct sandbox_spec *spec = &init.spec;
	ssize_t size = socket_receive(init.control, &enter, sizeof enter, 0, &rights);
	if (size != sizeof enter ||
	    rights.count != (int)(3 + !!enter.has_network + !!enter.has_hosts + !!enter.has_words))
		_exit(0); /* not needed any more, or the node is gone */
	int at = 3;
	memcpy(spec->streams, rights.descriptors, sizeof spec->streams);
	spec->function.uid = enter.uid;
	spec->function.gid = enter.gid;
	spec->has_words = enter.has_words;
	spec->has_hosts = enter.has_hosts;
	spec->terminal = enter.terminal;
	spec->network = enter.has_network ? rights.descriptors[at++] : -1;
	spec->hosts = enter.has_hosts ? rights.descriptors[at++] : -1;
	spec->own_words = enter.has_words ? rights.descriptors[at] : -1;
	init.progress = &slots[enter.slot];
	if (spec->network < 0)
		return;
	init.progress->stamps[STEP_NETWORK] = clock_now();
	int failed = sandbox_enter_network(spec);
	if (failed)
		fail(STEP_NETWORK, failed);
	descriptor_close(&spec->network);
	descriptor_close(&spec->hosts);
	(void)mounts_changed(); /* by ourselves */
}

/* A kernel without CONFIG_CHECKPOINT_RESTORE has no ns_last_pid. */
static int open_own(int self)
{
	init.proc = openat(self, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (init.proc < 0)
		return -errno;
	init.last_pid = openat(init.proc, "sys/kernel/ns_last_pid", O_RDWR | O_CLOEXEC);
	if (init.last_pid < 0 && errno != ENOENT)
		return -errno;
	init.home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (init.home < 0)
		return -errno;
	init.null = open("/null", O_RDWR | O_CLOEXEC); /* of the blank root */
	if (init.null < 0)
		return -errno;
	init.out_of_memory = sandbox_open_out_of_memory(init.common, init.spec.cgroup);
	return init.out_of_memory < 0 ? -errno : 0;
}

static void settle(int self)
{
	struct sandbox_spec *spec = &init.spec;
	int failed = open_own(self);
	if (failed)
		fail(STEP_FUNCTION, failed);
	if (sandbox_settle(init.common, spec, init.progress)) {
		struct news news = {.kind = NEWS_ENDED};
		send_news(&news, NULL);
		_exit(127);
	}
	/* Hides PID 1, which would tell of earlier instances. */
	if (mount(NULL, "/proc", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
		  "hidepid=2"))
		fail(STEP_PROC, -errno);
	init.mounts = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
	if (init.mounts < 0)
		fail(STEP_PROC, -errno);
	init.processes = sandbox_open_processes(init.common, spec->cgroup);
	open_ipc();
	descriptor_close(&spec->tree);
	descriptor_close(&spec->network);
	descriptor_close(&spec->hosts);
	look_at_tmp(&init.tmp, &init.tmp_use);
	failed = sandbox_keep_capabilities(rights_kept);
	if (failed)
		fail(STEP_CAPABILITIES, failed);
}

/* The function's own files stay until a start brings others. */
static void read_words(void)
{
	init.progress->stamps[STEP_FUNCTION] = clock_now();
	init.progress->step = STEP_FUNCTION;
	if (init.has_words && !init.spec.has_words)
		return;
	sandbox_forget_words();
	init.has_words = !init.spec.has_words;
	int failed = sandbox_read_words(&init.spec, &init.argv, &init.envp, &init.directory);
	if (failed)
		fail(STEP_FUNCTION, failed);
}

void init_run(const struct sandbox_common *common, struct sandbox_spec *spec, int control, int self,
	      struct progress *slots, uint32_t slot)
{
	init = (struct init){
		.common = common, .spec = *spec, .control = control, .progress = &slots[slot]};
	init.spec.control = -1;
	settle(self);
	for (;;) {
		read_words();
		if (!init.in_network)
			open_counters();
		run();
		if (!is_renewed())
			_exit(0);
		struct news news = {.kind = NEWS_RENEWED,
				    .clean = leave_network(),
				    .out_of_memory =
					    sandbox_read_out_of_memory(init.out_of_memory)};
		send_news(&news, NULL);
		receive(slots);
	}
}
