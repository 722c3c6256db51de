/* Clones an instance's process, which then runs this code until it is in its sandbox. */
#include "common/clock.h"
#include "node.h"
#include "root.h"

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

enum { CONTROL = FIRST_RESERVED, SELF, FIRST_TOP };

/* It keeps only a few of the node's descriptors: a namespace that it held would not end. */
static int keep_own(int control, int self)
{
	if (dup3(control, CONTROL, O_CLOEXEC) < 0 || dup3(self, SELF, O_CLOEXEC) < 0)
		return -1;
	for (int i = 0; i < node.common.top_count; i++) {
		if (dup3(node.common.tops[i], FIRST_TOP + i, O_CLOEXEC) < 0)
			return -1;
		node.common.tops[i] = FIRST_TOP + i; /* in this process only */
	}
	return (int)syscall(SYS_close_range, FIRST_TOP + (unsigned)node.common.top_count, ~0U, 0);
}

/* A generic sandbox: it waits for its function. Its end of the socket closes with the exec. */
_Noreturn static void be_waiting(int index, int control, uint32_t cgroup)
{
	struct progress *progress = &node.progress[index];
	struct sandbox_spec spec = {.cgroup = cgroup, .control = CONTROL};
	struct enter enter;
	struct rights rights;
	char ready = 1;
	instance_be_child();
	int failed = sandbox_find_pid(progress), self = failed ? failed : sandbox_open_self();
	if (self < 0 || sandbox_make(&node.common, &node.ahead, false, cgroup, progress) ||
	    sandbox_lead_session() || keep_own(control, self))
		_exit(127);
	progress->stamps[STEP_WAIT] = clock_now();
	progress->step = STEP_WAIT;
	if (send(CONTROL, &ready, 1, MSG_NOSIGNAL) != 1)
		_exit(0);
	ssize_t size = socket_receive(CONTROL, &enter, sizeof enter, 0, &rights);
	if (size != sizeof enter ||
	    rights.count < SPEC_RIGHTS - 2 + !!enter.has_words + !!enter.has_hosts)
		_exit(0); /* not needed any more, or the node is gone */
	spec.function = enter.function;
	spec.limits = enter.limits;
	spec.set_limits = enter.set_limits;
	spec.has_words = enter.has_words;
	spec.has_hosts = enter.has_hosts;
	spec.terminal = enter.terminal;
	spec.tree = rights.descriptors[0];
	spec.network = rights.descriptors[1];
	memcpy(spec.streams, &rights.descriptors[2], sizeof spec.streams);
	spec.words = rights.descriptors[5];
	spec.hosts = enter.has_hosts ? rights.descriptors[6] : NOBODY;
	spec.own_words = enter.has_words ? rights.descriptors[6 + !!enter.has_hosts] : NOBODY;
	if (spec.function.reuse == REUSE_SANDBOX)
		init_run(&node.common, &spec, CONTROL, SELF, node.progress, (uint32_t)index);
	sandbox_enter(&node.common, &spec, SELF, progress);
	_exit(127);
}

/* Our files that are mounted in the root. A function whose root has no /etc/hosts gets none. */
static int clone_mounts(struct sandbox_spec *spec, int root)
{
	spec->tree = root_clone(root);
	if (spec->tree < 0)
		return spec->tree;
	spec->hosts = spec->has_hosts ? hosts_clone(spec->network_part) : NOBODY;
	return spec->has_hosts && spec->hosts < 0 ? spec->hosts : 0;
}

_Noreturn static void be_instance(int index, struct sandbox_spec *spec, int root, bool in_ahead)
{
	struct progress *progress = &node.progress[index];
	instance_be_child();
	bool own_users = spec->function.flags & DEFINITION_USER_NAMESPACE;
	int self = own_users ? sandbox_open_self() : NOBODY;
	int failed = own_users && self < 0 ? self : sandbox_find_pid(progress);
	if (!failed)
		failed = clone_mounts(spec, root);
	if (failed) {
		progress->step = STEP_ROOT;
		progress->error = -failed;
	} else if (!sandbox_make(&node.common, &node.ahead, in_ahead, spec->cgroup, progress)) {
		sandbox_enter(&node.common, spec, self, progress);
	}
	_exit(127);
}

void instance_cloned(int index)
{
	struct instance *instance = &node.instances[index];
	instance_hash(index);
	int failed = node_watch(instance->control, ON_INSTANCE, index, EPOLLIN);
	if (!failed)
		return;
	node.progress[index].error = -failed;
	kill(instance->pid, SIGKILL); /* its end is reported like any other */
}

pid_t instance_clone(uint64_t spaces, uint32_t cgroup)
{
	struct clone_args args = {.flags = spaces, .exit_signal = SIGCHLD};
	int directory FILE_SCOPE = NOBODY;
	char name[16];
	if (node.common.unified) {
		snprintf(name, sizeof name, "%u", cgroup);
		directory = openat(node.common.tops[0], name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (directory < 0)
			return -errno;
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (__u64)directory;
	}
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
	return pid < 0 ? -errno : pid;
}

/* Clones an instance's process, with its number and socket; returns 0 in the child. in_ahead: it
 * enters the namespaces that were made ahead. */
static pid_t clone_child(int index, uint32_t cgroup, bool in_ahead, int *theirs)
{
	struct instance *instance = &node.instances[index];
	int ends[2], failed = ahead_control(ends);
	if (failed)
		return failed;
	instance->control = ends[0];
	node.progress[index].stamps[STEP_CLONE] = clock_now();
	pid_t pid =
		instance_clone(CLONE_NEWPID | CLONE_NEWUTS | (in_ahead ? 0 : CLONE_NEWIPC), cgroup);
	*theirs = ends[1];
	if (pid == 0)
		return 0;
	ahead_drop(in_ahead);
	close(ends[1]);
	if (pid < 0)
		return pid;
	instance->pid = pid;
	instance_cloned(index);
	return pid;
}

int instance_clone_waiting(int index)
{
	uint32_t cgroup = node.parts[node.instances[index].cgroup].order.cgroup;
	int control;
	pid_t pid = clone_child(index, cgroup, false, &control);
	if (pid == 0)
		be_waiting(index, control, cgroup);
	return pid < 0 ? pid : 0;
}

int instance_clone_into(int index, struct sandbox_spec *spec, int root)
{
	bool in_ahead = node.ahead.mounts >= 0;
	pid_t pid = clone_child(index, spec->cgroup, in_ahead, &spec->control);
	if (pid == 0)
		be_instance(index, spec, root, in_ahead);
	return pid < 0 ? pid : 0;
}

int instance_enter_waiting(int index, struct sandbox_spec *spec, int root)
{
	struct instance *instance = &node.instances[index];
	struct enter enter = {.function = spec->function,
			      .limits = spec->limits,
			      .set_limits = spec->set_limits,
			      .has_words = spec->has_words,
			      .has_hosts = spec->has_hosts,
			      .terminal = spec->terminal};
	int failed = clone_mounts(spec, root);
	int given[SPEC_RIGHTS] = {spec->tree,       spec->network,    spec->streams[0],
				  spec->streams[1], spec->streams[2], spec->words};
	int count = SPEC_RIGHTS - 2;
	if (spec->has_hosts)
		given[count++] = spec->hosts;
	if (spec->has_words)
		given[count++] = spec->own_words;
	if (!failed)
		failed = socket_send(instance->control, &enter, sizeof enter, given, count);
	descriptor_close(&spec->tree);
	descriptor_close(&spec->hosts);
	return failed;
}
