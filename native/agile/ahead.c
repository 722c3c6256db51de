/* What the next start opens and no function decides, opened while the node has nothing to do: its control
 * socket, and on cgroups of version 1 the files by which it joins the cgroup that is taken next. A clone
 * that finds nothing ahead opens its own.
 */
#include "node.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

enum { REST = 500000 }; /* ns, after a start */

static bool is_made;
static struct ahead ahead;

/* Nothing is killed in the cgroup until it is taken. */
static void open_tasks(void)
{
	char name[32];
	if (node.house.unified)
		return;
	ahead.cgroup = node.parts[node.cgroups.first].order.cgroup;
	ahead.out_of_memory = sandbox_out_of_memory(&node.house, ahead.cgroup);
	snprintf(name, sizeof name, "%u/tasks", ahead.cgroup);
	ahead.has_tasks = true;
	for (int i = 0; i < node.house.top_count && ahead.has_tasks; i++) {
		ahead.tasks[i] = openat(node.house.tops[i], name, O_WRONLY | O_CLOEXEC);
		ahead.has_tasks = ahead.tasks[i] >= 0;
	}
}

int64_t ahead_next(void)
{
	bool has_parts = node.house.unified || node.cgroups.count;
	return is_made || node.starting || !has_parts ? INT64_MAX : node.last_run + REST;
}

void ahead_make(void)
{
	ahead = (struct ahead){.control = {NOBODY, NOBODY}};
	for (int i = 0; i < TOPS_MAX; i++)
		ahead.tasks[i] = NOBODY;
	is_made = true;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ahead.control))
		ahead.control[0] = ahead.control[1] = NOBODY;
	open_tasks();
}

const struct ahead *ahead_made(void)
{
	return is_made ? &ahead : NULL;
}

int ahead_control(int ends[2])
{
	if (!is_made || ahead.control[0] < 0)
		return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) ? -errno : 0;
	for (int i = 0; i < 2; i++) {
		ends[i] = ahead.control[i];
		ahead.control[i] = NOBODY;
	}
	return 0;
}

void ahead_drop(void)
{
	if (!is_made)
		return;
	for (int i = 0; i < 2; i++)
		descriptor_close(&ahead.control[i]);
	for (int i = 0; i < TOPS_MAX; i++)
		descriptor_close(&ahead.tasks[i]);
	is_made = false;
}
