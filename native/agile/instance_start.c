/* The start of an instance: the parts that it takes, its process, and what its sandbox is told. One
 * file, because each step undoes another's when a start fails.
 */
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

/* Keeps its own few of the node's descriptors: a namespace that it held would not end. */
static int keep_own(int control, int self)
{
	if (dup3(control, CONTROL, O_CLOEXEC) < 0 || dup3(self, SELF, O_CLOEXEC) < 0)
		return -1;
	for (int i = 0; i < node.house.top_count; i++) {
		if (dup3(node.house.tops[i], FIRST_TOP + i, O_CLOEXEC) < 0)
			return -1;
		node.house.tops[i] = FIRST_TOP + i; /* in this process only */
	}
	return close_range(FIRST_TOP + (unsigned)node.house.top_count, ~0U, 0);
}

/* A generic sandbox: waits for its function. Its end of the socket closes with the exec. */
_Noreturn static void be_waiting(int index, int control, uint32_t cgroup)
{
	struct progress *progress = &node.progress[index];
	struct place place = {.cgroup = cgroup};
	struct enter enter;
	struct rights rights;
	char ready = 1;
	instance_be_child();
	int failed = sandbox_find_pid(progress), self = failed ? failed : sandbox_open_self();
	if (self < 0 || sandbox_make(&node.house, ahead_made(), cgroup, progress) ||
	    sandbox_lead_session() || keep_own(control, self))
		_exit(127);
	progress->stamps[STEP_WAIT] = clock_now();
	progress->step = STEP_WAIT;
	if (send(CONTROL, &ready, 1, MSG_NOSIGNAL) != 1)
		_exit(0);
	ssize_t size = socket_receive(CONTROL, &enter, sizeof enter, 0, &rights);
	if (size != sizeof enter ||
	    rights.count < PLACE_RIGHTS - 2 + !!enter.has_words + !!enter.has_hosts)
		_exit(0); /* not needed any more, or the node is gone */
	place.function = enter.function;
	place.limits = enter.limits;
	place.set_limits = enter.set_limits;
	place.has_words = enter.has_words;
	place.has_hosts = enter.has_hosts;
	place.terminal = enter.terminal;
	place.tree = rights.descriptors[0];
	place.network = rights.descriptors[1];
	memcpy(place.streams, &rights.descriptors[2], sizeof place.streams);
	place.words = rights.descriptors[5];
	place.hosts = enter.has_hosts ? rights.descriptors[6] : NOBODY;
	place.own_words = enter.has_words ? rights.descriptors[6 + !!enter.has_hosts] : NOBODY;
	if (place.function.reuse == REUSE_SANDBOX)
		keeper_run(&node.house, &place, CONTROL, SELF, node.progress, (uint32_t)index);
	sandbox_enter(&node.house, &place, SELF, progress);
	_exit(127);
}

/* What is mounted in it of ours. A function whose root has no /etc/hosts gets none. */
static int clone_mounts(struct place *place, int root)
{
	place->tree = root_clone(root);
	if (place->tree < 0)
		return place->tree;
	place->hosts = place->has_hosts ? hosts_clone(place->network_part) : NOBODY;
	return place->has_hosts && place->hosts < 0 ? place->hosts : 0;
}

_Noreturn static void be_instance(int index, struct place *place, int root)
{
	struct progress *progress = &node.progress[index];
	instance_be_child();
	bool own_users = place->function.flags & DEFINITION_USER_NAMESPACE;
	int self = own_users ? sandbox_open_self() : NOBODY;
	int failed = own_users && self < 0 ? self : sandbox_find_pid(progress);
	if (!failed)
		failed = clone_mounts(place, root);
	if (failed) {
		progress->step = STEP_ROOT;
		progress->error = -failed;
	} else if (!sandbox_make(&node.house, ahead_made(), place->cgroup, progress)) {
		sandbox_enter(&node.house, place, self, progress);
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
	kill(instance->pid, SIGKILL); /* its end is told as any */
}

pid_t instance_clone(uint64_t spaces, uint32_t cgroup)
{
	struct clone_args args = {.flags = spaces, .exit_signal = SIGCHLD};
	int directory FILE_SCOPE = NOBODY;
	char name[16];
	if (node.house.unified) {
		snprintf(name, sizeof name, "%u", cgroup);
		directory = openat(node.house.tops[0], name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (directory < 0)
			return -errno;
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (__u64)directory;
	}
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
	return pid < 0 ? -errno : pid;
}

/* The process of an instance, whose number and socket it gets: 0 in the child. */
static pid_t clone_child(int index, uint32_t cgroup, int *theirs)
{
	struct instance *instance = &node.instances[index];
	int ends[2], failed = ahead_control(ends);
	if (failed)
		return failed;
	instance->control = ends[0];
	node.progress[index].stamps[STEP_CLONE] = clock_now();
	pid_t pid = instance_clone(CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS, cgroup);
	*theirs = ends[1];
	if (pid == 0)
		return 0;
	ahead_drop();
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
	pid_t pid = clone_child(index, cgroup, &control);
	if (pid == 0)
		be_waiting(index, control, cgroup);
	return pid < 0 ? pid : 0;
}

static bool same_limits(const struct limits *a, const struct limits *b)
{
	return a->memory == b->memory && a->quota == b->quota && a->pids == b->pids;
}

static int enter_waiting(int index, struct place *place, int root)
{
	struct instance *instance = &node.instances[index];
	struct enter enter = {.function = place->function,
			      .limits = place->limits,
			      .set_limits = place->set_limits,
			      .has_words = place->has_words,
			      .has_hosts = place->has_hosts,
			      .terminal = place->terminal};
	int failed = clone_mounts(place, root);
	int given[PLACE_RIGHTS] = {place->tree,       place->network,    place->streams[0],
				   place->streams[1], place->streams[2], place->words};
	int count = PLACE_RIGHTS - 2;
	if (place->has_hosts)
		given[count++] = place->hosts;
	if (place->has_words)
		given[count++] = place->own_words;
	if (!failed)
		failed = socket_send(instance->control, &enter, sizeof enter, given, count);
	descriptor_close(&place->tree);
	descriptor_close(&place->hosts);
	return failed;
}

static int clone_instance(int index, struct place *place, int root)
{
	int control;
	pid_t pid = clone_child(index, place->cgroup, &control);
	if (pid == 0)
		be_instance(index, place, root);
	return pid < 0 ? pid : 0;
}

static int refusal(enum step *step, int error, enum step failed)
{
	*step = failed;
	return error;
}

/* The parts of a start. A sandbox of its function, renewed, has a cgroup, and may have a network. */
struct parts {
	int network, cgroup;
	bool again, warm; /* again: in such a sandbox; warm: in that or one that waits */
	bool other_network; /* than the sandbox has */
};

/* -EAGAIN: they have to be waited for. */
static int take_parts(const struct ask *ask, struct parts *parts, enum step *step)
{
	struct function *function = &node.functions[ask->function];
	parts->cgroup = NOBODY;
	parts->again = function->sandboxes.count;
	parts->warm = parts->again || node.waiting.count;
	if (!parts->warm && node.up >= node.instance_limit)
		return reuse_make_room() ? -EAGAIN : refusal(step, EUSERS, STEP_CLONE);
	parts->network = parts->again ? node.instances[function->sandboxes.first].network : NOBODY;
	parts->other_network = parts->network == NOBODY;
	if (parts->other_network)
		parts->network = part_take(PART_NETWORK, function);
	if (!parts->warm && node.high_waiting)
		waiting_fill(true);
	if (parts->network != NOBODY && !parts->warm)
		parts->cgroup = part_take(PART_CGROUP, NULL);
	bool has_network = parts->network != NOBODY;
	if (has_network && (parts->warm || parts->cgroup != NOBODY))
		return 0;
	if (has_network && parts->other_network)
		part_give_back(parts->network, (int)ask->function);
	if (function->definition.flags & DEFINITION_REFUSES)
		return refusal(step, EAGAIN, has_network ? STEP_CGROUP : STEP_NETWORK);
	manager_want(has_network ? PART_CGROUP : PART_NETWORK,
		     has_network ? 0 : function->definition.reach);
	return -EAGAIN;
}

/* The record of a start, with its parts; NOBODY if all are of instances whose ends nobody has read. */
static int begin(const struct ask *ask, const struct parts *parts, int client)
{
	struct function *function = &node.functions[ask->function];
	int index = parts->again  ? queue_pop(&function->sandboxes, instance_next)
		    : parts->warm ? waiting_take()
				  : instance_reserve();
	if (index == NOBODY) {
		part_give_back(parts->network, (int)ask->function);
		part_give_back(parts->cgroup, NOBODY);
		return NOBODY;
	}
	struct instance *instance = &node.instances[index];
	if (!parts->warm)
		instance->cgroup = parts->cgroup;
	node.last_start = clock_now();
	instance->network = parts->network;
	instance->first_network = parts->network;
	instance->first_cgroup = instance->cgroup;
	instance->address = node.parts[parts->network].order.address;
	instance->function = (int)ask->function;
	instance->version = function->definition.version;
	instance->tag = ask->tag;
	instance->requested = ask->asked ? ask->asked : clock_now();
	instance->detached = ask->flags & ASK_DETACHED;
	instance->awaited = ask->flags & ASK_AWAITED;
	instance->flags = parts->warm ? ANSWER_WARM : 0;
	instance->state = INSTANCE_STARTING;
	node.starting++;
	instance_link(index, client);
	return index;
}

/* What the sandbox of a start needs to know. */
static struct place place_of(const struct ask *ask, const struct rights *rights, int index,
			     bool reuses)
{
	const struct function *function = &node.functions[ask->function];
	const struct instance *instance = &node.instances[index];
	const struct part *network = &node.parts[instance->network];
	bool words = ask->flags & ASK_WORDS;
	struct place place = {
		.function = function->definition,
		.limits = function->definition.limits,
		.cgroup = node.parts[instance->cgroup].order.cgroup,
		.has_words = words,
		.terminal = ask->flags & ASK_TERMINAL,
		.has_hosts = function->has_hosts && network->order.address,
		.network_part = instance->network,
		.tree = NOBODY,
		.hosts = NOBODY,
		.network = network->network,
		.words = function->words,
		.own_words = words ? rights->descriptors[3] : NOBODY,
		.streams = {rights->descriptors[0], rights->descriptors[1], rights->descriptors[2]},
	};
	place.limits.pids += reuses; /* PID 1 is not the function's */
	/* Its cgroup may have those of another function. */
	place.set_limits = !same_limits(&node.parts[instance->cgroup].order.limits, &place.limits);
	if (!reuses && place.function.reuse == REUSE_SANDBOX)
		place.function.reuse = REUSE_NETWORK;
	if (place.function.flags & DEFINITION_OWN_IDENTITY) {
		if (place.function.gid == place.function.uid) /* else it was asked for */
			place.function.gid += (uint32_t)index;
		place.function.uid += (uint32_t)index;
	}
	return place;
}

/* ``has_sandbox`` is set when there is one, whose end will be told. */
static int enter_or_clone(int index, struct place *place, const struct parts *parts, bool reuses,
			  bool *has_sandbox)
{
	int root = node.functions[node.instances[index].function].root, failed;
	if (parts->again) {
		place->network = parts->other_network ? place->network : NOBODY;
		return reuse_enter(index, place);
	}
	if (parts->warm)
		return enter_waiting(index, place, root);
	if (!reuses)
		return clone_instance(index, place, root);
	failed = instance_clone_waiting(index);
	*has_sandbox = !failed;
	return failed ? failed : enter_waiting(index, place, root); /* read when it is ready */
}

int instance_try(const struct ask *ask, struct rights *rights, int client, enum step *step)
{
	struct function *function = &node.functions[ask->function];
	struct parts parts;
	if (!function->known)
		return refusal(step, ENOENT, STEP_FUNCTION);
	if (ask->version && ask->version != function->definition.version)
		return refusal(step, ESTALE, STEP_FUNCTION);
	if (rights->count != (ask->flags & ASK_WORDS ? 4 : 3))
		return refusal(step, EBADMSG, STEP_STREAMS);
	bool reuses = reuse_wanted(function);
	int failed = take_parts(ask, &parts, step);
	if (failed)
		return failed;
	int index = begin(ask, &parts, client);
	if (index == NOBODY)
		return refusal(step, EUSERS, STEP_CLONE);
	struct instance *instance = &node.instances[index];
	bool has_sandbox = parts.warm;
	int logged = ask->flags & ASK_LOG ? output_open(instance->id, rights) : 0;
	struct place place = place_of(ask, rights, index, reuses);
	instance->identity = place.function;
	failed = logged ? logged : enter_or_clone(index, &place, &parts, reuses, &has_sandbox);
	if (!failed) {
		/* A process is there to set them; where it fails, the cgroup is not used again. */
		node.parts[instance->cgroup].order.limits = place.limits;
		return 0;
	}
	if (!has_sandbox) {
		instance_release(index);
		return refusal(step, -failed, logged ? STEP_STREAMS : STEP_CLONE);
	}
	kill(instance->pid, SIGKILL); /* its end is told as that of any start that failed */
	node.progress[index].step = logged ? STEP_STREAMS : STEP_ROOT;
	node.progress[index].error = -failed;
	return 0;
}
