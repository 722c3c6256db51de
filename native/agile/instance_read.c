/* Reads what instances and their sandboxes report, and their ends, which leave their parts behind. */
#include "common/clock.h"
#include "node.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* The memory, in bytes, that may still be charged to a cgroup that serves again: half of the
 * lowest limit. The kernel keeps this much in reserve on some CPUs. */
enum { LEFT_MOST = 1 << 20 };

/* A sandbox is ready or reports on its instance; or a start's control socket has ended, by its
 * exec or with the child. True if more may be unread. */
bool instance_read(int index)
{
	struct instance *instance = &node.instances[index];
	struct rights rights RIGHTS_SCOPE = {0};
	struct news news;
	if (instance->control < 0)
		return false;
	ssize_t size = socket_receive(instance->control, &news, sizeof news, MSG_DONTWAIT, &rights);
	if (size == -EAGAIN || size == -EINTR)
		return false;
	if (size == sizeof news) {
		reuse_news(index, &news, &rights);
		return true;
	}
	if (size == 1) {
		if (instance->state != INSTANCE_MAKING)
			return true; /* it has got its function already */
		node.making--;
		node.made++;
		instance->state = INSTANCE_WAITING;
		queue_push(&node.waiting, instance_next, index);
		node.waiting_changed = true;
		return true;
	}
	node_unwatch(&instance->control);
	if (instance->state != INSTANCE_STARTING || node.progress[index].error ||
	    node.progress[index].step != STEP_EXEC)
		return false; /* its end tells what failed */
	instance_runs(index);
	return false;
}

/* What an instance wrote to memory files, or to a volume in memory, stays charged to its cgroup
 * and would be missing for the next. Nothing else of it stays. */
static bool is_almost_empty(const struct instance *instance)
{
	return !(instance->identity.flags & DEFINITION_VOLUMES) ||
	       sandbox_memory_left(&node.common, node.parts[instance->cgroup].order.cgroup) <=
		       LEFT_MOST;
}

/* The cgroup of an instance that ended normally has no process, and no instance can read there
 * what another one left. */
static void leave_parts(struct instance *instance, bool clean)
{
	if (instance->cgroup != NOBODY && clean && is_almost_empty(instance)) {
		part_give_back(instance->cgroup, NOBODY);
		instance->cgroup = NOBODY;
	} else if (instance->cgroup != NOBODY) {
		part_leave(instance->cgroup);
	}
	instance->rests = instance->network != NOBODY && clean &&
			  rest_network(instance->network, instance->function, instance->version);
	if (instance->network != NOBODY && !instance->rests)
		part_leave(instance->network);
}

/* Its processes are gone. */
static void end(int index, int status, const struct rusage *usage)
{
	struct instance *instance = &node.instances[index];
	bool ran = instance->state == INSTANCE_RUNNING;
	if (instance->state == INSTANCE_MAKING)
		node.making--;
	if (instance->state == INSTANCE_WAITING)
		node.waiting_changed |= queue_cut(&node.waiting, instance_next, index);
	reuse_ended(index);
	instance->renewing = true; /* until its parts are settled */
	instance_finish(index, status, clock_of(usage->ru_utime), clock_of(usage->ru_stime));
	leave_parts(instance, ran);
	instance->renewing = false;
	instance_owe(index, OWES_ENDED);
}

void instances_reap(void)
{
	struct rusage usage;
	int status;
	pid_t pid;
	while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
		/* Its exec or its last report may be unread. */
		while (instance_hashed(pid) != NOBODY && instance_read(instance_hashed(pid)))
			;
		int index = instance_unhash(pid);
		if (index != NOBODY)
			end(index, status, &usage);
	}
}
