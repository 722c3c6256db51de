/* Sandboxes that serve their function again; init.c is PID 1 of each.
 *
 * An instance has its sandbox's record. When it ends, the sandbox moves to another record, and the
 * manager is told of the end once the sandbox is renewed, when the remaining parts are known.
 */
#include "common/clock.h"
#include "node.h"

#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>

/* Of one function; further ones end. */
enum { KEPT_MOST = 64 };

static const int64_t renewal_most = 10 * CLOCK_SECOND;

static const uint32_t alone = DEFINITION_ZYGOTE | DEFINITION_USER_NAMESPACE;

bool reuse_wanted(const struct function *function)
{
	return function->definition.reuse == REUSE_SANDBOX && !(function->definition.flags & alone);
}

/* The sandbox has everything except what each start brings along, and a new network if it lost
 * its own. */
int reuse_enter(int index, const struct sandbox_spec *spec)
{
	struct instance *instance = &node.instances[index];
	struct enter_again enter = {
		.uid = spec->function.uid,
		.gid = spec->function.gid,
		.slot = (uint32_t)index,
		.has_words = spec->has_words,
		.terminal = spec->terminal,
		.has_network = spec->network >= 0,
		.has_hosts = spec->network >= 0 && spec->has_hosts,
	};
	int hosts FILE_SCOPE = enter.has_hosts ? hosts_clone(spec->network_part) : NOBODY;
	if (enter.has_hosts && hosts < 0)
		return hosts;
	int given[SPEC_RIGHTS] = {spec->streams[0], spec->streams[1], spec->streams[2]};
	int count = 3;
	if (enter.has_network)
		given[count++] = spec->network;
	if (enter.has_hosts)
		given[count++] = hosts;
	if (enter.has_words)
		given[count++] = spec->own_words;
	return socket_send(instance->control, &enter, sizeof enter, given, count);
}

/* The instance has ended; its sandbox continues in a record of its own. */
static void carry_on(int index, const struct news *news)
{
	struct instance *instance = &node.instances[index];
	node.up--; /* room for itself */
	int next = instance_reserve();
	node.up++;
	if (next == NOBODY) { /* all records are of ends that nobody has read */
		kill(instance->pid, SIGKILL);
		return;
	}
	struct instance *sandbox = &node.instances[next];
	sandbox->pid = instance->pid;
	sandbox->control = instance->control;
	sandbox->network = instance->network;
	sandbox->cgroup = instance->cgroup;
	sandbox->function = instance->function;
	sandbox->version = instance->version;
	sandbox->address = instance->address;
	sandbox->before = index;
	sandbox->state = INSTANCE_RENEWING;
	sandbox->until = clock_now() + clock_longer(renewal_most);
	queue_push(&node.renewing, instance_next, next);
	node.progress[next].pid = node.progress[index].pid;
	if (node_watch_again(sandbox->control, ON_INSTANCE, next, EPOLLIN))
		kill(sandbox->pid, SIGKILL);
	instance_unhash(instance->pid);
	instance_hash(next);
	instance->control = NOBODY;
	instance->renewing = true;
	instance_finish(index, news->status, news->user, news->system);
	instance->cgroup = NOBODY;
	instance->carried = true;
}

/* The manager gets the end of the previous instance, with the network if it has to be examined. */
static void settle_before(struct instance *sandbox, int network)
{
	if (sandbox->before == NOBODY)
		return;
	struct instance *before = &node.instances[sandbox->before];
	before->network = network;
	before->renewing = false;
	instance_owe(sandbox->before, OWES_ENDED);
	sandbox->before = NOBODY;
}

static void renewed(int index, const struct news *news)
{
	struct instance *sandbox = &node.instances[index];
	struct function *function = &node.functions[sandbox->function];
	int left = news->clean ? NOBODY : sandbox->network;
	if (!queue_cut(&node.renewing, instance_next, index))
		return; /* too late: it is killed */
	if (!news->clean) {
		part_leave(left);
		sandbox->network = NOBODY;
	}
	settle_before(sandbox, left);
	node.progress[index].out_of_memory = news->out_of_memory;
	if (!function->known || function->definition.version != sandbox->version ||
	    function->sandboxes.count >= KEPT_MOST) {
		kill(sandbox->pid, SIGKILL);
		return;
	}
	sandbox->state = INSTANCE_RENEWED;
	queue_push(&function->sandboxes, instance_next, index);
}

void reuse_news(int index, const struct news *news, struct rights *rights)
{
	struct instance *instance = &node.instances[index];
	if (news->kind == NEWS_RUNS && instance->state == INSTANCE_STARTING && rights->count) {
		instance->pidfd = rights->descriptors[0];
		rights->descriptors[0] = NOBODY;
		instance_runs(index);
	} else if (news->kind == NEWS_ENDED &&
		   (instance->state == INSTANCE_STARTING || instance->state == INSTANCE_RUNNING)) {
		carry_on(index, news);
	} else if (news->kind == NEWS_RENEWED && instance->state == INSTANCE_RENEWING) {
		renewed(index, news);
	}
}

/* PID 1 is gone: with it the sandbox. */
void reuse_ended(int index)
{
	struct instance *sandbox = &node.instances[index];
	settle_before(sandbox, NOBODY);
	if (sandbox->state == INSTANCE_RENEWING)
		(void)queue_cut(&node.renewing, instance_next, index);
	if (sandbox->state == INSTANCE_RENEWED)
		queue_cut(&node.functions[sandbox->function].sandboxes, instance_next, index);
}

/* If a process that cannot be killed holds up a renewal, the manager is told of the instance's
 * end without waiting for it. The sandbox ends when that process does. */
void reuse_expire(void)
{
	while (reuse_next() <= clock_now()) {
		struct instance *sandbox =
			&node.instances[queue_pop(&node.renewing, instance_next)];
		settle_before(sandbox, NOBODY);
		kill(sandbox->pid, SIGKILL);
	}
}

int64_t reuse_next(void)
{
	return node.renewing.count ? node.instances[node.renewing.first].until : INT64_MAX;
}

/* They are of a version that is no longer served. */
void reuse_drop(struct function *function)
{
	for (int left = function->sandboxes.count, at = function->sandboxes.first; left; left--) {
		int next = node.instances[at].next;
		queue_cut(&function->sandboxes, instance_next, at);
		node.instances[at].state = INSTANCE_RENEWING; /* nobody takes it */
		kill(node.instances[at].pid, SIGKILL);
		at = next;
	}
}

/* Ends one of any function, for a start of another. */
bool reuse_make_room(void)
{
	for (int i = 0; i < node.function_count; i++) {
		int index = queue_pop(&node.functions[i].sandboxes, instance_next);
		if (index == NOBODY)
			continue;
		node.instances[index].state = INSTANCE_RENEWING;
		kill(node.instances[index].pid, SIGKILL);
		return true;
	}
	return false;
}
