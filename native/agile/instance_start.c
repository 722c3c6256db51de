/* Starts an instance: takes its parts and instructs its sandbox. It is one file because each step
 * undoes those before it when a start fails.
 */
#include "common/clock.h"
#include "node.h"

#include <errno.h>
#include <signal.h>

static bool same_limits(const struct limits *a, const struct limits *b)
{
	return a->memory == b->memory && a->quota == b->quota && a->pids == b->pids;
}

static int refusal(enum step *step, int error, enum step failed)
{
	*step = failed;
	return error;
}

/* The parts of a start. A renewed sandbox of its function has a cgroup, and may have a network. */
struct parts {
	int network, cgroup;
	bool again, warm; /* again: in a renewed sandbox; warm: in that or in a generic one */
	bool other_network; /* than the sandbox has */
};

/* -EAGAIN: the start has to wait for them. */
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
		part_put_back(parts->network);
	if (function->definition.flags & DEFINITION_REFUSES)
		return refusal(step, EAGAIN, has_network ? STEP_CGROUP : STEP_NETWORK);
	part_want(has_network ? PART_CGROUP : PART_NETWORK,
		  has_network ? 0 : function->definition.reach);
	return -EAGAIN;
}

/* The record of a start, with its parts. NOBODY if all records are of ends that nobody has read. */
static int begin(const struct ask *ask, const struct parts *parts, int client)
{
	struct function *function = &node.functions[ask->function];
	int index = parts->again  ? queue_pop(&function->sandboxes, instance_next)
		    : parts->warm ? waiting_take()
				  : instance_reserve();
	if (index == NOBODY) {
		part_put_back(parts->network);
		part_put_back(parts->cgroup);
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

/* What the start's sandbox has to know. */
static struct sandbox_spec spec_of(const struct ask *ask, const struct rights *rights, int index,
				   bool reuses)
{
	const struct function *function = &node.functions[ask->function];
	const struct instance *instance = &node.instances[index];
	const struct part *network = &node.parts[instance->network];
	bool words = ask->flags & ASK_WORDS;
	struct sandbox_spec spec = {
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
	spec.limits.pids += reuses; /* PID 1 is ours, not the function's */
	/* Its cgroup may have another function's limits. */
	spec.set_limits = !same_limits(&node.parts[instance->cgroup].order.limits, &spec.limits);
	if (!reuses && spec.function.reuse == REUSE_SANDBOX)
		spec.function.reuse = REUSE_NETWORK;
	if (spec.function.flags & DEFINITION_OWN_IDENTITY) {
		if (spec.function.gid == spec.function.uid) /* else it was asked for */
			spec.function.gid += (uint32_t)index;
		spec.function.uid += (uint32_t)index;
	}
	return spec;
}

/* ``has_sandbox`` is set if there is one; its end is then reported. */
static int enter_or_clone(int index, struct sandbox_spec *spec, const struct parts *parts,
			  bool reuses, bool *has_sandbox)
{
	int root = node.functions[node.instances[index].function].root, failed;
	if (parts->again) {
		spec->network = parts->other_network ? spec->network : NOBODY;
		return reuse_enter(index, spec);
	}
	if (parts->warm)
		return instance_enter_waiting(index, spec, root);
	if (!reuses)
		return instance_clone_into(index, spec, root);
	failed = instance_clone_waiting(index);
	*has_sandbox = !failed;
	return failed ? failed
		      : instance_enter_waiting(index, spec, root); /* read when it is ready */
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
	struct sandbox_spec spec = spec_of(ask, rights, index, reuses);
	instance->identity = spec.function;
	failed = logged ? logged : enter_or_clone(index, &spec, &parts, reuses, &has_sandbox);
	if (!failed) {
		/* A process exists that sets the limits; if it fails, the cgroup is not used again. */
		node.parts[instance->cgroup].order.limits = spec.limits;
		return 0;
	}
	if (!has_sandbox) {
		instance_release(index);
		return refusal(step, -failed, logged ? STEP_STREAMS : STEP_CLONE);
	}
	kill(instance->pid, SIGKILL); /* its end is reported like that of any failed start */
	node.progress[index].step = logged ? STEP_STREAMS : STEP_ROOT;
	node.progress[index].error = -failed;
	return 0;
}
