/* Prepares, while the node is idle, what the next start needs whatever its function: its control
 * socket; with cgroups of version 1, the files by which it joins the next cgroup; and those of its
 * namespaces that can be entered by a descriptor and do not show an earlier use. A clone that finds
 * nothing prepared makes its own.
 */
#include "node.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

enum { REST = 500000 }; /* ns, after a start */

static int own, mounts, ipc; /* own: directory of the node's namespaces */

void ahead_open(void)
{
	node.ahead = (struct ahead){.control = {NOBODY, NOBODY}, .mounts = NOBODY, .ipc = NOBODY};
	for (int i = 0; i < TOPS_MAX; i++)
		node.ahead.tasks[i] = NOBODY;
	own = open("/proc/self/ns", O_PATH | O_DIRECTORY | O_CLOEXEC);
	mounts = openat(own, "mnt", O_RDONLY | O_CLOEXEC);
	ipc = openat(own, "ipc", O_RDONLY | O_CLOEXEC);
	if (own < 0 || mounts < 0 || ipc < 0)
		node_die("open its own namespaces", -errno);
}

static int return_to_own(void)
{
	return setns(mounts, CLONE_NEWNS) || setns(ipc, CLONE_NEWIPC) ? -errno : 0;
}

/* The node enters it and comes back. Nothing is mounted yet: the times of a /tmp would tell an
 * instance when the previous start was, perhaps of another function. */
static void make_spaces(void)
{
	if (node.ahead.mounts >= 0)
		return;
	if (!sandbox_enter_blank(&node.common) && !unshare(CLONE_NEWIPC)) {
		node.ahead.mounts = openat(own, "mnt", O_RDONLY | O_CLOEXEC);
		node.ahead.ipc = openat(own, "ipc", O_RDONLY | O_CLOEXEC);
	}
	int failed = return_to_own();
	if (failed)
		failed = return_to_own(); /* the kernel had no memory for it */
	if (failed)
		node_die("return to its own namespaces", failed);
	if (node.ahead.mounts < 0 || node.ahead.ipc < 0) {
		descriptor_close(&node.ahead.mounts);
		descriptor_close(&node.ahead.ipc);
	}
}

/* Nothing is killed in a cgroup before it is taken. */
static void open_tasks(void)
{
	char name[32];
	if (node.common.unified)
		return;
	node.ahead.cgroup = node.parts[node.cgroups.first].order.cgroup;
	node.ahead.out_of_memory = sandbox_out_of_memory(&node.common, node.ahead.cgroup);
	snprintf(name, sizeof name, "%u/tasks", node.ahead.cgroup);
	node.ahead.has_tasks = true;
	for (int i = 0; i < node.common.top_count && node.ahead.has_tasks; i++) {
		node.ahead.tasks[i] = openat(node.common.tops[i], name, O_WRONLY | O_CLOEXEC);
		node.ahead.has_tasks = node.ahead.tasks[i] >= 0;
	}
}

int64_t ahead_next(void)
{
	bool has_parts = node.common.unified || node.cgroups.count;
	return node.is_ahead || node.starting || !has_parts ? INT64_MAX : node.last_run + REST;
}

void ahead_make(void)
{
	node.is_ahead = true;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, node.ahead.control))
		node.ahead.control[0] = node.ahead.control[1] = NOBODY;
	open_tasks();
	make_spaces();
}

int ahead_control(int ends[2])
{
	if (node.ahead.control[0] < 0)
		return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) ? -errno : 0;
	for (int i = 0; i < 2; i++) {
		ends[i] = node.ahead.control[i];
		node.ahead.control[i] = NOBODY;
	}
	return 0;
}

void ahead_drop(bool entered)
{
	for (int i = 0; i < 2; i++)
		descriptor_close(&node.ahead.control[i]);
	for (int i = 0; i < TOPS_MAX; i++)
		descriptor_close(&node.ahead.tasks[i]);
	if (entered) {
		descriptor_close(&node.ahead.mounts);
		descriptor_close(&node.ahead.ipc);
	}
	node.ahead.has_tasks = node.is_ahead = false;
}
