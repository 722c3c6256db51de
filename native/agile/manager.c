/* The manager's orders, and the events that it gets, at once or when it next reads. */
#include "common/clock.h"
#include "node.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { HOLD = 10000000 }; /* ns */

enum telling { TELL_NOTHING, TELL_FUNCTIONS, TELL_PARTS, TELL_INSTANCES, TELL_KEPT, TELL_END };

static struct {
	struct order head;
	struct sock_filter rest[PROFILE_MAX];
} order;
static struct sock_filter programs[PROFILES][PROFILE_MAX];

/* Descriptors that a manager leaves to the next one: of its zygotes, forks and workers, which the
 * node knows nothing about. */
static struct rights kept[KEPT];
static int kept_count; /* that were ever used */

static void lose(void)
{
	node_unwatch(&node.manager);
	node.manager_blocked = node.has_done = node.managed = false;
	node.telling = TELL_NOTHING;
	if (!node.stays)
		exit(0); /* and everything that runs here with it */
	node_watch_again(node.managers_listener, ON_MANAGERS, 0, EPOLLIN);
}

/* Who comes while there is a manager waits for its end, in the listener's queue. One that has said
 * nothing is none. */
void managers_accept(void)
{
	if (node.managed) {
		node_watch_again(node.managers_listener, ON_MANAGERS, 0, 0);
		return;
	}
	int descriptor = node_accept(node.managers_listener);
	if (descriptor < 0)
		return;
	node_unwatch(&node.manager);
	node.manager = descriptor;
	node.manager_blocked = node.has_done = false;
	node.telling = TELL_NOTHING;
	if (node_watch(descriptor, ON_MANAGER, 0, EPOLLIN))
		lose();
}

/* 0, or a negative errno; retry when the manager reads. -ETOOMANYREFS: these descriptors cannot
 * be passed on, now or later, as their other ends have sent sockets in sockets (kernels before
 * 6.10). A user's limit of descriptors in flight has the same error, but the node's CAP_SYS_ADMIN
 * lifts it. */
static int send_message(const void *bytes, size_t size, const int *descriptors, int count)
{
	if (node.manager < 0 || node.manager_blocked)
		return -EAGAIN;
	int failed = socket_send(node.manager, bytes, size, descriptors, count);
	if (failed == -EAGAIN || failed == -ENOBUFS || failed == -ENOMEM) {
		node.manager_blocked = true;
		node_watch_room(node.manager, ON_MANAGER, 0, failed);
	}
	return failed;
}

static void done(const struct order *asked, int failed)
{
	struct event event = {.verb = EVENT_DONE, .id = asked->id, .error = -failed};
	if (send_message(&event, sizeof event, NULL, 0)) {
		node.done = event;
		node.has_done = true;
	}
}

static int hello(const struct order *asked, struct rights *rights)
{
	if (asked->count != WIRE_VERSION)
		return -EPROTONOSUPPORT;
	if (rights->count < 1 || rights->count > TOPS_MAX)
		return -EPROTO;
	for (int i = 0; i < node.common.top_count; i++)
		close(node.common.tops[i]);
	node.common.top_count = rights->count;
	memcpy(node.common.tops, rights->descriptors, sizeof node.common.tops);
	rights->count = 0;
	node.managed = true;
	node.stays = asked->flags & HELLO_STAY;
	node.common.unified = asked->flags & HELLO_UNIFIED;
	memset(node.wants, 0, sizeof node.wants);
	while (node.rested.count)
		part_acknowledge(node.rested.first); /* the state says it */
	node.telling = TELL_FUNCTIONS;
	node.telling_at = 0;
	return 0;
}

/* A long filter is slow to load. So the node itself has it, with the calls that make sandboxes
 * allowed, and an instance adds the few lines that deny those. */
static int confine_node(unsigned short length, const struct sock_filter *program)
{
	static bool confined;
	struct sock_fprog base = {length, (struct sock_filter *)program};
	if (!confined && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &base))
		return -errno;
	confined = true;
	return 0;
}

static int set_profile(const struct order *asked, const struct sock_filter *program, size_t size)
{
	if (asked->count > PROFILE_BASE || !asked->length || asked->length > PROFILE_MAX ||
	    size != asked->length * sizeof *program)
		return -EPROTO;
	if (asked->count == PROFILE_BASE)
		return confine_node((unsigned short)asked->length, program);
	memcpy(programs[asked->count], program, size);
	node.common.profiles[asked->count] =
		(struct sock_fprog){(unsigned short)asked->length, programs[asked->count]};
	return 0;
}

static int set_resolvers(const struct order *asked, const void *text, size_t size)
{
	return asked->length == size ? function_set_resolvers(text, size) : -EPROTO;
}

static int set_function(const struct order *asked, struct rights *rights)
{
	if (rights->count != 2)
		return -EPROTO;
	int failed =
		function_set(&asked->definition, rights->descriptors[0], rights->descriptors[1]);
	if (!failed)
		rights->count = 0; /* they are the function's */
	return failed;
}

static int add_part(const struct order *asked, struct rights *rights)
{
	int failed = part_add(&asked->part, rights->count ? rights->descriptors[0] : NOBODY);
	if (!failed && rights->count && asked->part.kind == PART_NETWORK &&
	    node.parts[asked->part.index].network == rights->descriptors[0])
		rights->descriptors[0] = -1;
	return failed;
}

static int keep(uint32_t index, struct rights *rights)
{
	if (index >= KEPT || !rights->count)
		return -EINVAL;
	if (kept[index].count)
		return -EEXIST;
	if ((int)index >= kept_count)
		kept_count = (int)index + 1;
	kept[index] = *rights;
	rights->count = 0;
	return 0;
}

static int drop(uint32_t index)
{
	if (index >= KEPT)
		return -EINVAL;
	if ((int)index < kept_count)
		rights_close(&kept[index]);
	return 0;
}

static int obey(const struct order *asked, size_t rest, struct rights *rights)
{
	switch (asked->verb) {
	case ORDER_HELLO:
		return hello(asked, rights);
	case ORDER_PROFILE:
		return set_profile(asked, order.rest, rest);
	case ORDER_FUNCTION:
		return set_function(asked, rights);
	case ORDER_FORGET:
		manager_tell(true); /* also of networks that it gives up */
		return function_forget(asked->count);
	case ORDER_PART:
		return add_part(asked, rights);
	case ORDER_WITHDRAW:
		return part_withdraw(asked->count);
	case ORDER_SANDBOXES:
		return waiting_keep(asked->count, asked->length, asked->flags);
	case ORDER_SIGNAL:
		return instance_signal(asked->id, asked->signal, (uint16_t)asked->flags);
	case ORDER_REFUSE:
		if ((asked->count != PART_NETWORK && asked->count != PART_CGROUP) ||
		    asked->flags >= REACHES)
			return -EINVAL;
		pending_refuse((enum part_kind)asked->count, asked->flags);
		return 0;
	case ORDER_LOG:
		if (rights->count != 1)
			return -EPROTO;
		output_set(rights->descriptors[0]);
		rights->descriptors[0] = NOBODY;
		return 0;
	case ORDER_RESOLVERS:
		return set_resolvers(asked, order.rest, rest);
	case ORDER_KEEP:
		return keep(asked->count, rights);
	case ORDER_DROP:
		return drop(asked->count);
	case ORDER_STAY:
		node.stays = true;
		return 0;
	case ORDER_END:
		exit(0);
	case ORDER_SYNC:
		manager_tell(true);
		return 0;
	default:
		return -EPROTO;
	}
}

static void read_one(void)
{
	struct rights rights RIGHTS_SCOPE = {0};
	ssize_t size = socket_receive(node.manager, &order, sizeof order, 0, &rights);
	if (size == -EAGAIN)
		return;
	if (size == 0 || (size < 0 && size != -EMSGSIZE)) {
		lose();
		return;
	}
	if (size == -EMSGSIZE) { /* its words are complete: no descriptor was left for its own */
		done(&order.head, -EMFILE);
		return;
	}
	if (size < (ssize_t)sizeof order.head) {
		memset(&order.head, 0, sizeof order.head);
		done(&order.head, -EPROTO);
		return;
	}
	int failed = obey(&order.head, (size_t)size - sizeof order.head, &rights);
	/* Frequent orders are acknowledged only if they fail. */
	if (failed || order.head.verb == ORDER_FUNCTION || order.head.verb == ORDER_FORGET ||
	    order.head.verb == ORDER_HELLO || order.head.verb == ORDER_SYNC)
		done(&order.head, failed);
}

void manager_ready(uint32_t events)
{
	if (node.manager < 0)
		return;
	if (node.manager_blocked && events & (EPOLLERR | EPOLLHUP)) {
		lose();
		return;
	}
	if (node.manager_blocked) {
		node.manager_blocked = false;
		node_watch_again(node.manager, ON_MANAGER, 0, EPOLLIN);
		manager_tell(true); /* SYNC's answer is the last */
		if (node.has_done && !send_message(&node.done, sizeof node.done, NULL, 0))
			node.has_done = false;
		return;
	}
	read_one();
}

void manager_send_again(void)
{
	if (!node.sends_at || clock_now() < node.sends_at)
		return;
	node.sends_at = 0;
	if (node.manager >= 0 && node.manager_blocked)
		node_watch_again(node.manager, ON_MANAGER, 0, EPOLLOUT);
	clients_send_again();
}

static int tell_function(int index)
{
	const struct function *function = &node.functions[index];
	struct state state = {.event = {.verb = EVENT_FUNCTION},
			      .definition = function->definition};
	return function->known ? send_message(&state, sizeof state, &function->words, 1) : 0;
}

static int tell_part(int index)
{
	const struct part *part = &node.parts[index];
	struct state state = {.event = {.verb = EVENT_PART, .status = (int)part->state},
			      .part = part->order};
	if (part->state == PART_FREE)
		return 0;
	return send_message(&state, sizeof state, &part->network,
			    part->network >= 0 && part->order.kind == PART_NETWORK);
}

static struct event instance_event(int index, enum event_verb verb)
{
	const struct instance *instance = &node.instances[index];
	bool starts = verb == EVENT_STARTED;
	return (struct event){
		.verb = verb,
		.flags = instance->flags | (instance->detached ? EVENT_IS_DETACHED : 0U) |
			 (instance->carried ? EVENT_CARRIED : 0U),
		.id = instance->id,
		.function = (uint32_t)instance->function,
		.version = instance->version,
		.pid = node.progress[index].pid,
		.status = instance->status,
		.error = instance->error,
		.step = (uint32_t)instance->step,
		.network = starts            ? instance->first_network
			   : instance->rests ? NOBODY
					     : instance->network,
		.cgroup = starts ? instance->first_cgroup : instance->cgroup,
		.requested = verb == EVENT_ENDED ? instance->ended : instance->requested,
		.running = instance->running,
		.user = instance->user,
		.system = instance->system,
	};
}

static int tell_instance(int index)
{
	if (node.instances[index].state != INSTANCE_RUNNING || node.instances[index].session)
		return 0;
	struct event event = instance_event(index, EVENT_STARTED);
	return send_message(&event, sizeof event, NULL, 0);
}

static int tell_kept(int index)
{
	struct event event = {.verb = EVENT_KEPT, .status = index};
	if (!kept[index].count)
		return 0;
	int failed = send_message(&event, sizeof event, kept[index].descriptors, kept[index].count);
	if (failed == -ETOOMANYREFS)
		return drop((uint32_t)index); /* what they lead to ends with them */
	return failed;
}

/* Sends a new manager the node's state. True when it has all of it. Unused parts of tables are
 * not read: each clone copies the page tables of memory that we have touched. */
static bool tell_state(void)
{
	const struct {
		int (*tell)(int);
		int count;
	} all[] = {
		[TELL_FUNCTIONS] = {tell_function, node.function_count},
		[TELL_PARTS] = {tell_part, node.part_count},
		[TELL_INSTANCES] = {tell_instance, node.instance_count},
		[TELL_KEPT] = {tell_kept, kept_count},
	};
	while (node.telling != TELL_NOTHING && node.telling != TELL_END) {
		while (node.telling_at < all[node.telling].count) {
			if (all[node.telling].tell(node.telling_at))
				return false;
			node.telling_at++;
		}
		node.telling++;
		node.telling_at = 0;
	}
	struct event event = {.verb = EVENT_STATE_END};
	if (node.telling == TELL_END && send_message(&event, sizeof event, NULL, 0))
		return false;
	if (node.telling == TELL_END)
		node.waiting_changed = true;
	node.telling = TELL_NOTHING;
	return true;
}

static int add_events(int index, struct event *events, int count)
{
	struct instance *instance = &node.instances[index];
	if (instance->owed_manager & OWES_STARTED)
		events[count++] = instance_event(index, EVENT_STARTED);
	if (instance->owed_manager & OWES_ENDED)
		events[count++] =
			instance_event(index, instance->failed ? EVENT_FAILED : EVENT_ENDED);
	return count;
}

/* In batches, made from the instances' records when the manager can take them. */
static void tell_instances(void)
{
	struct event events[EVENTS_MAX];
	while (node.dirty.count) {
		int count = 0, taken = 0, first = node.dirty.first;
		struct queue before = node.dirty; /* what is not sent is put back */
		while (node.dirty.count && count < EVENTS_MAX - 1) {
			count = add_events(node.dirty.first, events, count);
			node.dirty.first = node.instances[node.dirty.first].next_dirty;
			node.dirty.count--;
			taken++;
		}
		if (send_message(events, (size_t)count * sizeof *events, NULL, 0)) {
			node.dirty = before;
			return;
		}
		for (int at = first; taken; taken--) {
			int next = node.instances[at].next_dirty;
			node.instances[at].owed_manager = 0;
			node.instances[at].in_dirty = false;
			instance_settle(at);
			at = next;
		}
	}
}

/* Before the starts that use them. */
static void tell_rested(void)
{
	struct event events[EVENTS_MAX];
	while (node.rested.count) {
		int count = 0;
		for (int at = node.rested.first; at != NOBODY && count < EVENTS_MAX;
		     at = node.parts[at].next_owed)
			events[count++] =
				(struct event){.verb = EVENT_RESTED,
					       .function = (uint32_t)node.parts[at].order.function,
					       .status = node.parts[at].state == PART_LEFT,
					       .network = at,
					       .cgroup = NOBODY};
		if (send_message(events, (size_t)count * sizeof *events, NULL, 0))
			return;
		while (count--)
			part_acknowledge(node.rested.first);
	}
}

/* A start that waited may have been served otherwise meanwhile. One part is requested all the same:
 * else the manager would not answer, and no start would ask again. */
static void tell_wants(void)
{
	for (uint32_t kind = PART_NETWORK; kind <= PART_CGROUP; kind++)
		for (uint32_t reach = 0; reach < REACHES; reach++) {
			struct event event = {.verb = EVENT_WANT,
					      .step = kind,
					      .status = (int)reach,
					      .pid = node.pending_count ? node.pending_count : 1};
			if (node.wants[kind][reach] == 1 &&
			    !send_message(&event, sizeof event, NULL, 0))
				node.wants[kind][reach] = 2;
		}
}

static void tell_waiting(void)
{
	struct event event = {.verb = EVENT_WAITING,
			      .id = node.made,
			      .status = node.waiting.count,
			      .user = node.fill_time};
	if (node.waiting_changed && !send_message(&event, sizeof event, NULL, 0))
		node.waiting_changed = false;
}

static void tell_events(void)
{
	node.owes_since = 0;
	node.owes_now = false;
	tell_rested();
	tell_instances();
	tell_wants();
	tell_waiting();
}

static bool wants_more(void)
{
	for (uint32_t kind = PART_NETWORK; kind <= PART_CGROUP; kind++)
		for (uint32_t reach = 0; reach < REACHES; reach++)
			if (node.wants[kind][reach] == 1)
				return true;
	return false;
}

/* While starts are under way, events are sent in batches: a manager that woke for each would take
 * the CPU from the start. That networks have rested is told with other events. */
static bool holds_back(void)
{
	if (node.owes_now || wants_more())
		return false;
	if (!node.rested.count && !node.dirty.count && !node.waiting_changed) {
		node.owes_since = 0; /* a network that it was owed may have been withdrawn */
		return true;
	}
	bool has_only_rested = !node.dirty.count && !node.waiting_changed;
	if (!node.starting && !node.making && !has_only_rested)
		return false;
	int64_t now = clock_now();
	if (!node.owes_since)
		node.owes_since = now;
	return now < node.owes_since + HOLD;
}

int64_t manager_next(void)
{
	bool hears = node.manager >= 0 && !node.manager_blocked;
	return hears && node.owes_since ? node.owes_since + HOLD : INT64_MAX;
}

static void pass_rich(void)
{
	while (node.rich_count && node.manager >= 0) {
		struct event event = {.verb = EVENT_RICH};
		int failed = send_message(&event, sizeof event, &node.rich[0], 1);
		if (failed && failed != -ETOOMANYREFS)
			return;
		descriptor_close(&node.rich[0]);
		node.rich_count--;
		memmove(node.rich, node.rich + 1, (size_t)node.rich_count * sizeof *node.rich);
	}
}

void manager_tell(bool all)
{
	if (node.manager < 0 || node.manager_blocked || !tell_state())
		return;
	if (all || !holds_back())
		tell_events();
	pass_rich();
}
