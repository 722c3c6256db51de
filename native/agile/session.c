/* Sessions: programs that an operator runs in an instance's namespaces, cgroup and confinement, beside
 * its own. They have records like instances, but no parts, and the manager is not told of them. */
#include "common/clock.h"
#include "node.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int find(uint64_t id)
{
	for (int i = 0; i < node.instance_count; i++) {
		const struct instance *instance = &node.instances[i];
		if (instance->id == id && instance->state == INSTANCE_RUNNING && !instance->session)
			return i;
	}
	return NOBODY;
}

_Noreturn static void be_session(int index, struct sandbox_spec *spec, int instance, int control)
{
	struct progress *progress = &node.progress[index];
	instance_be_child();
	if (!sandbox_find_pid(progress))
		sandbox_join(&node.common, spec, instance, control, progress);
	_exit(127);
}

/* In the PID namespace of the instance, as our child. */
static pid_t clone_into(int instance, uint32_t cgroup)
{
	int own FILE_SCOPE = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	if (own < 0 || setns(instance, CLONE_NEWPID))
		return -errno;
	pid_t pid = instance_clone(0, cgroup);
	if (pid && setns(own, CLONE_NEWPID))
		node_die("return to our PID namespace", -errno);
	return pid;
}

static int start(int index, int target, struct sandbox_spec *spec)
{
	struct instance *session = &node.instances[index];
	int ends[2],
		instance FILE_SCOPE = (int)syscall(SYS_pidfd_open, node.instances[target].pid, 0);
	if (instance < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
		return -errno;
	session->control = ends[0];
	session->requested = node.progress[index].stamps[STEP_CLONE] = clock_now();
	pid_t pid = clone_into(instance, spec->cgroup);
	if (pid == 0)
		be_session(index, spec, instance, ends[1]);
	close(ends[1]);
	if (pid < 0)
		return pid;
	session->pid = pid;
	session->state = INSTANCE_STARTING;
	node.starting++;
	instance_cloned(index);
	return 0;
}

int session_start(const struct ask *ask, struct rights *rights, int client, enum step *step)
{
	int target = find(ask->instance);
	*step = STEP_FUNCTION;
	if (target == NOBODY)
		return -ESRCH;
	/* A sandbox is reused only if it had no other process, and this one counts. */
	if (node.instances[target].identity.flags & DEFINITION_ZYGOTE ||
	    node.instances[target].identity.reuse == REUSE_SANDBOX)
		return -EOPNOTSUPP;
	*step = STEP_STREAMS;
	if (rights->count != 4)
		return -EBADMSG;
	*step = STEP_CLONE;
	int index = instance_reserve();
	if (index == NOBODY)
		return -EUSERS;
	struct instance *session = &node.instances[index];
	session->session = true;
	session->tag = ask->tag;
	instance_link(index, client);
	struct sandbox_spec spec = {
		.function = node.instances[target].identity,
		.cgroup = node.parts[node.instances[target].cgroup].order.cgroup,
		.terminal = ask->flags & ASK_TERMINAL,
		.words = rights->descriptors[3],
		.own_words = NOBODY,
		.streams = {rights->descriptors[0], rights->descriptors[1], rights->descriptors[2]},
	};
	int failed = start(index, target, &spec);
	if (failed)
		instance_release(index);
	return failed;
}
