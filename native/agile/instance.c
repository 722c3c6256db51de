/* An instance from its request to its end: its slot, the parts that it takes, its clone, what it
 * reports of its progress, and what is given back. One file, because each step undoes another's when
 * a start fails, on the same slot and without a message between them.
 */
#include "node.h"
#include "root.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LULL = 1000000, WAITS = 5000000, RETRY = 10000000 }; /* ns */

static void *reserve_memory(size_t count, size_t size, int flags)
{
	void *at = mmap(NULL, count * size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		die("reserve memory", -errno);
	return at;
}

/* What no child reads: a clone would copy its page tables, and each of us every page that we write. */
static void *reserve_table(size_t count, size_t size)
{
	void *at = reserve_memory(count, size, MAP_PRIVATE);
	if (madvise(at, count * size, MADV_DONTFORK))
		die("reserve memory", -errno);
	return at;
}

void instances_open(int limit)
{
	int count = limit + ENDED_KEPT;
	uint32_t buckets = 1024;
	while ((int)buckets < count)
		buckets *= 2;
	node.functions = reserve_table(FUNCTIONS, sizeof *node.functions);
	node.parts = reserve_table(PARTS, sizeof *node.parts);
	node.clients = reserve_table(CLIENTS, sizeof *node.clients);
	node.pending = reserve_table(PENDING, sizeof *node.pending);
	node.instances = reserve_table((size_t)count, sizeof *node.instances);
	node.hash = reserve_table(buckets, sizeof *node.hash);
	node.progress = reserve_memory((size_t)count, sizeof *node.progress, MAP_SHARED);
	node.hash_mask = buckets - 1;
	memset(node.hash, 0xff, buckets * sizeof *node.hash);
	node.instance_most = count;
	node.instance_limit = limit;
	node.free_instance = NOBODY;
}

void instance_hash(int index)
{
	int *bucket = &node.hash[(uint32_t)node.instances[index].pid & node.hash_mask];
	node.instances[index].hash_next = *bucket;
	*bucket = index;
}

static int *hashed(pid_t pid)
{
	int *at = &node.hash[(uint32_t)pid & node.hash_mask];
	while (*at != NOBODY && node.instances[*at].pid != pid)
		at = &node.instances[*at].hash_next;
	return at;
}

int instance_unhash(pid_t pid)
{
	int *at = hashed(pid), index = *at;
	if (index != NOBODY)
		*at = node.instances[index].hash_next;
	return index;
}

void instance_owe(int index, uint8_t what)
{
	struct instance *instance = &node.instances[index];
	if (instance->session)
		return;
	instance->owed_manager |= what;
	node.owes_now |= instance->awaited;
	if (instance->in_dirty)
		return;
	instance->in_dirty = true;
	instance->next_dirty = NOBODY;
	if (node.dirty.count++)
		node.instances[node.dirty.last].next_dirty = index;
	else
		node.dirty.first = index;
	node.dirty.last = index;
}

void instance_link(int index, int client)
{
	struct instance *instance = &node.instances[index];
	instance->client = client;
	instance->previous = NOBODY;
	instance->next = NOBODY;
	if (client == NOBODY)
		return;
	instance->client_generation = node.clients[client].generation;
	instance->next = node.clients[client].first;
	if (instance->next != NOBODY)
		node.instances[instance->next].previous = index;
	node.clients[client].first = index;
}

static void unlink_client(int index)
{
	struct instance *instance = &node.instances[index];
	if (instance->client == NOBODY)
		return;
	if (instance->previous == NOBODY)
		node.clients[instance->client].first = instance->next;
	else
		node.instances[instance->previous].next = instance->next;
	if (instance->next != NOBODY)
		node.instances[instance->next].previous = instance->previous;
	instance->client = NOBODY;
}

/* Frees an instance that has ended when nobody has to be told of it any more. */
void instance_settle(int index)
{
	struct instance *instance = &node.instances[index];
	if (instance->state != INSTANCE_ENDED || instance->owed_client || instance->owed_manager ||
	    instance->in_dirty || instance->renewing)
		return;
	unlink_client(index);
	instance->state = INSTANCE_FREE;
	instance->next = node.free_instance;
	node.free_instance = index;
}

struct answer instance_answer(int index, enum answer_verb verb)
{
	const struct instance *instance = &node.instances[index];
	const struct progress *progress = &node.progress[index];
	struct answer answer = {
		.magic = ASK_MAGIC,
		.verb = (uint16_t)verb,
		.flags = instance->flags,
		.tag = instance->tag,
		.instance = instance->id,
		.pid = progress->pid,
		.status = instance->status,
		.error = instance->error,
		.step = (uint32_t)instance->step,
		.version = instance->version,
		.user = instance->user,
		.system = instance->system,
		.address = instance->address,
	};
	memcpy(answer.stamps, progress->stamps, sizeof progress->stamps);
	answer.stamps[STEPS] = instance->requested;
	answer.stamps[STEPS + 1] = instance->running;
	return answer;
}

int instance_reserve(void)
{
	int index = node.free_instance;
	if (node.up >= node.instance_limit)
		return NOBODY;
	if (index != NOBODY)
		node.free_instance = node.instances[index].next;
	else if (node.instance_count < node.instance_most)
		index = node.instance_count++;
	else
		return NOBODY;
	struct instance *instance = &node.instances[index];
	*instance = (struct instance){.id = ++node.serial,
				      .control = NOBODY,
				      .network = NOBODY,
				      .cgroup = NOBODY,
				      .client = NOBODY,
				      .function = NOBODY,
				      .pidfd = NOBODY,
				      .before = NOBODY,
				      .next = NOBODY,
				      .previous = NOBODY};
	memset(&node.progress[index], 0, sizeof *node.progress);
	node.up++;
	return index;
}

/* A reservation that came to nothing. */
void instance_release(int index)
{
	struct instance *instance = &node.instances[index];
	unlink_client(index);
	unwatch(&instance->control);
	if (instance->cgroup != NOBODY)
		part_give_back(instance->cgroup, NOBODY);
	if (instance->network != NOBODY)
		part_give_back(instance->network, instance->function);
	node.starting -= instance->state == INSTANCE_STARTING;
	instance->state = INSTANCE_FREE;
	instance->next = node.free_instance;
	node.free_instance = index;
	node.up--;
}

void be_child_of_node(void)
{
	sigset_t none;
	sigemptyset(&none);
	if (sigprocmask(SIG_SETMASK, &none, NULL))
		_exit(127);
}

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
	be_child_of_node();
	int failed = sandbox_find_pid(progress), self = failed ? failed : sandbox_open_self();
	if (self < 0 || sandbox_make(&node.house, ahead_made(), cgroup, progress) ||
	    sandbox_lead_session() || keep_own(control, self))
		_exit(127);
	progress->stamps[STEP_WAIT] = monotonic();
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
	be_child_of_node();
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

static pid_t clone_child(uint32_t cgroup)
{
	struct clone_args args = {.flags = CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS,
				  .exit_signal = SIGCHLD};
	int directory FILE_SCOPE = NOBODY;
	char name[16];
	if (node.house.unified) {
		snprintf(name, sizeof name, "%u", cgroup);
		directory = openat(node.house.tops[0], name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (directory < 0)
			return -1;
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (__u64)directory;
	}
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
	int error = errno;
	if (pid)
		ahead_drop();
	errno = error;
	return pid;
}

static bool same_limits(const struct limits *a, const struct limits *b)
{
	return a->memory == b->memory && a->quota == b->quota && a->pids == b->pids;
}

/* The process of a sandbox that waits, in the cgroup that it has. */
static int clone_waiting(int index)
{
	struct instance *instance = &node.instances[index];
	int ends[2], failed = ahead_control(ends);
	if (failed)
		return failed;
	instance->control = ends[0];
	uint32_t cgroup = node.parts[instance->cgroup].order.cgroup;
	node.progress[index].stamps[STEP_CLONE] = monotonic();
	pid_t pid = clone_child(cgroup);
	if (pid == 0)
		be_waiting(index, ends[1], cgroup);
	failed = pid < 0 ? -errno : 0;
	instance->pid = pid;
	close(ends[1]);
	if (failed)
		return failed;
	instance_hash(index);
	if (watch(ends[0], ON_INSTANCE, index, EPOLLIN))
		kill(instance->pid, SIGKILL); /* its end is told as any */
	return 0;
}

/* A generic sandbox, which takes a cgroup and waits. */
static int make_waiting(void)
{
	int index = instance_reserve();
	if (index == NOBODY)
		return -EAGAIN;
	struct instance *instance = &node.instances[index];
	instance->cgroup = part_take(PART_CGROUP, NULL);
	if (instance->cgroup == NOBODY) {
		instance_release(index);
		manager_want(PART_CGROUP, 0);
		return -EAGAIN;
	}
	instance->requested = monotonic();
	int failed = clone_waiting(index);
	if (failed) {
		instance_release(index);
		return failed;
	}
	instance->state = INSTANCE_MAKING;
	node.making++;
	return 0;
}

/* What takes the place of a sandbox is made between starts, so that it does not keep one from its CPU;
 * but not too late. */
static int64_t next_fill(void)
{
	int64_t next = node.last_made + node.fill_interval;
	int64_t lull = node.starting ? node.last_start + WAITS : node.last_run + LULL;
	return node.waiting.count + node.making > node.low_waiting / 2 && lull > next ? lull : next;
}

static bool makes_more(void)
{
	return node.fills && node.waiting.count + node.making < node.high_waiting;
}

static void set_fills(bool fills)
{
	if (fills && !node.fills)
		node.fills_since = monotonic();
	if (node.fills && !fills)
		node.fill_time += monotonic() - node.fills_since;
	node.waiting_changed |= node.fills != fills;
	node.fills = fills;
}

/* One at a time: starts come between. It ends when the last is ready. */
void instances_warm(void)
{
	if (node.waiting.count + node.making < node.low_waiting)
		set_fills(true);
	if (node.waiting.count >= node.high_waiting)
		set_fills(false);
	if (!makes_more() || monotonic() < next_fill())
		return;
	int failed = make_waiting();
	node.last_made = monotonic() + (failed ? RETRY : 0);
}

int64_t instances_next(void)
{
	return makes_more() ? next_fill() : INT64_MAX;
}

/* Those that there are too many of are ended: who lowers the mark wants their memory. */
static void end_surplus(void)
{
	while (node.waiting.count > node.high_waiting) {
		instance_kill(chain_take(&node.waiting));
		node.waiting_changed = true;
	}
}

int instances_keep(uint32_t high, uint32_t low, uint32_t interval)
{
	if (low > high || high > INT32_MAX)
		return -EINVAL;
	node.high_waiting = (int)high < node.instance_limit ? (int)high : node.instance_limit;
	node.low_waiting = (int)low < node.high_waiting ? (int)low : node.high_waiting;
	node.fill_interval = interval * 1000LL;
	set_fills(node.waiting.count < node.high_waiting);
	end_surplus();
	return 0;
}

int chain_take(struct queue *queue)
{
	if (!queue->count)
		return NOBODY;
	int index = queue->first;
	queue->first = node.instances[index].next;
	queue->count--;
	node.instances[index].next = NOBODY;
	return index;
}

void chain_put(struct queue *queue, int index)
{
	node.instances[index].next = NOBODY;
	if (queue->count++)
		node.instances[queue->last].next = index;
	else
		queue->first = index;
	queue->last = index;
}

bool chain_cut(struct queue *queue, int index)
{
	int before = NOBODY, at = queue->first;
	for (int left = queue->count; left; left--, before = at, at = node.instances[at].next) {
		if (at != index)
			continue;
		if (before == NOBODY)
			queue->first = node.instances[at].next;
		else
			node.instances[before].next = node.instances[at].next;
		if (queue->last == index)
			queue->last = before;
		queue->count--;
		return true;
	}
	return false;
}

static int take_waiting(void)
{
	int index = chain_take(&node.waiting);
	node.waiting_changed |= index != NOBODY;
	return index;
}

/* Its own cgroup may have other limits than the function asks for. */
static uint32_t settle_limits(int cgroup, const struct limits *wanted)
{
	struct limits *have = &node.parts[cgroup].order.limits;
	if (same_limits(have, wanted))
		return 0;
	*have = *wanted;
	return 1;
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

void instance_cloned(int index)
{
	struct instance *instance = &node.instances[index];
	instance_hash(index);
	if (watch(instance->control, ON_INSTANCE, index, EPOLLIN))
		kill(instance->pid, SIGKILL); /* its end is told as any */
}

static int clone_instance(int index, struct place *place, int root)
{
	struct instance *instance = &node.instances[index];
	int ends[2], failed = ahead_control(ends);
	if (failed)
		return failed;
	instance->control = ends[0];
	node.progress[index].stamps[STEP_CLONE] = monotonic();
	pid_t pid = clone_child(place->cgroup);
	if (pid == 0)
		be_instance(index, place, root);
	failed = pid < 0 ? -errno : 0;
	instance->pid = pid;
	close(ends[1]);
	if (failed)
		return failed;
	instance_cloned(index);
	return 0;
}

static int refusal(enum step *step, int error, enum step failed)
{
	*step = failed;
	return error;
}

int instance_try(const struct ask *ask, struct rights *rights, int client, enum step *step)
{
	struct function *function = &node.functions[ask->function];
	bool words = ask->flags & ASK_WORDS;
	if (!function->known)
		return refusal(step, ENOENT, STEP_FUNCTION);
	if (ask->version && ask->version != function->definition.version)
		return refusal(step, ESTALE, STEP_FUNCTION);
	if (rights->count != (words ? 4 : 3))
		return refusal(step, EBADMSG, STEP_STREAMS);
	bool again = function->sandboxes.count, reuses = reuse_wanted(function);
	bool warm = again || node.waiting.count;
	if (!warm && node.up >= node.instance_limit)
		return reuse_make_room() ? -EAGAIN : refusal(step, EUSERS, STEP_CLONE);
	int network = again ? node.instances[function->sandboxes.first].network : NOBODY;
	int cgroup = NOBODY;
	bool other_network = network == NOBODY;
	if (other_network)
		network = part_take(PART_NETWORK, function);
	if (!warm && node.high_waiting)
		set_fills(true);
	if (network != NOBODY && !warm)
		cgroup = part_take(PART_CGROUP, NULL);
	if (network == NOBODY || (!warm && cgroup == NOBODY)) {
		if (network != NOBODY && other_network)
			part_give_back(network, (int)ask->function);
		if (function->definition.flags & DEFINITION_REFUSES)
			return refusal(step, EAGAIN,
				       network == NOBODY ? STEP_NETWORK : STEP_CGROUP);
		manager_want(network == NOBODY ? PART_NETWORK : PART_CGROUP,
			     network == NOBODY ? function->definition.reach : 0);
		return -EAGAIN;
	}
	int index = again  ? chain_take(&function->sandboxes)
		    : warm ? take_waiting()
			   : instance_reserve();
	if (index == NOBODY) { /* all records are of instances whose ends nobody has read */
		part_give_back(network, (int)ask->function);
		part_give_back(cgroup, NOBODY);
		return refusal(step, EUSERS, STEP_CLONE);
	}
	if (!warm)
		node.instances[index].cgroup = cgroup;
	struct instance *instance = &node.instances[index];
	node.last_start = monotonic();
	instance->network = network;
	instance->address = node.parts[network].order.address;
	instance->function = (int)ask->function;
	instance->version = function->definition.version;
	instance->tag = ask->tag;
	instance->requested = ask->asked ? ask->asked : monotonic();
	instance->detached = ask->flags & ASK_DETACHED;
	instance->awaited = ask->flags & ASK_AWAITED;
	instance->flags = warm ? ANSWER_WARM : 0;
	instance->state = INSTANCE_STARTING;
	node.starting++;
	instance_link(index, client);
	int logged = ask->flags & ASK_LOG ? output_open(instance->id, rights) : 0;
	struct limits limits = function->definition.limits;
	limits.pids += reuses; /* PID 1 is not the function's */
	struct place place = {
		.function = function->definition,
		.limits = limits,
		.set_limits = settle_limits(instance->cgroup, &limits),
		.cgroup = node.parts[instance->cgroup].order.cgroup,
		.has_words = words,
		.terminal = ask->flags & ASK_TERMINAL,
		.has_hosts = function->has_hosts && node.parts[network].order.address,
		.network_part = network,
		.tree = NOBODY,
		.hosts = NOBODY,
		.network = node.parts[network].network,
		.words = function->words,
		.own_words = words ? rights->descriptors[3] : NOBODY,
		.streams = {rights->descriptors[0], rights->descriptors[1], rights->descriptors[2]},
	};
	if (!reuses && place.function.reuse == REUSE_SANDBOX)
		place.function.reuse = REUSE_NETWORK;
	if (place.function.flags & DEFINITION_OWN_IDENTITY) {
		if (place.function.gid == place.function.uid) /* else it was asked for */
			place.function.gid += (uint32_t)index;
		place.function.uid += (uint32_t)index;
	}
	instance->identity = place.function;
	int failed = logged;
	if (failed) {
		warm = warm || again;
	} else if (again) {
		place.network = other_network ? place.network : NOBODY;
		failed = reuse_enter(index, &place);
	} else if (reuses && !warm) { /* what it is sent it reads when it is ready */
		failed = clone_waiting(index);
		warm = !failed;
		if (!failed)
			failed = enter_waiting(index, &place, function->root);
	} else {
		failed = warm ? enter_waiting(index, &place, function->root)
			      : clone_instance(index, &place, function->root);
	}
	if (!failed)
		return 0;
	if (warm) {
		kill(instance->pid, SIGKILL); /* its end is told as that of any start that failed */
		node.progress[index].step = logged ? STEP_STREAMS : STEP_ROOT;
		node.progress[index].error = -failed;
		return 0;
	}
	instance_release(index);
	return refusal(step, -failed, logged ? STEP_STREAMS : STEP_CLONE);
}

void instance_runs(int index)
{
	struct instance *instance = &node.instances[index];
	node.starting -= instance->state == INSTANCE_STARTING;
	instance->state = INSTANCE_RUNNING;
	instance->running = node.last_run = monotonic();
	instance_owe(index, OWES_STARTED);
	if (instance->client != NOBODY) {
		instance->owed_client |= OWES_STARTED;
		client_tell(instance->client);
	}
	if (instance->killed)
		instance_kill(index);
}

/* A sandbox is ready or tells of its instance, or a start's control socket has ended: by its exec, or
 * with the child. True if more may be unread. */
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
		chain_put(&node.waiting, index);
		node.waiting_changed = true;
		return true;
	}
	unwatch(&instance->control);
	if (instance->state != INSTANCE_STARTING || node.progress[index].error ||
	    node.progress[index].step != STEP_EXEC)
		return false; /* its end says what failed */
	instance_runs(index);
	return false;
}

static int send_signal(const struct instance *instance, int number)
{
	int failed = instance->pidfd < 0 ? kill(instance->pid, number)
					 : (int)syscall(SYS_pidfd_send_signal, instance->pidfd,
							number, NULL, 0);
	return failed ? -errno : 0;
}

void instance_kill(int index)
{
	struct instance *instance = &node.instances[index];
	instance->killed = true;
	if (instance->state != INSTANCE_FREE && instance->state != INSTANCE_ENDED)
		(void)send_signal(instance, SIGKILL); /* it is not reaped yet: the pid is its own */
}

int instance_signal(uint64_t id, int number, uint16_t flags)
{
	if (number < 1 || number >= NSIG)
		return -EINVAL;
	for (int i = 0; i < node.instance_count; i++) {
		struct instance *instance = &node.instances[i];
		if (instance->id != id || instance->state < INSTANCE_STARTING ||
		    instance->state > INSTANCE_RUNNING)
			continue;
		instance->flags |= flags;
		if (number == SIGKILL)
			instance_kill(i);
		else
			return send_signal(instance, number);
		return 0;
	}
	return -ESRCH;
}

static bool ran_out_of_memory(int index)
{
	const struct instance *instance = &node.instances[index];
	if (instance->cgroup == NOBODY || instance->killed || !WIFSIGNALED(instance->status) ||
	    WTERMSIG(instance->status) != SIGKILL)
		return false;
	uint32_t cgroup = node.parts[instance->cgroup].order.cgroup;
	return sandbox_out_of_memory(&node.house, cgroup) != node.progress[index].out_of_memory;
}

static int64_t nanoseconds(struct timeval t)
{
	return t.tv_sec * 1000000000LL + t.tv_usec * 1000LL;
}

/* The cgroup of an instance that ended as it should is empty, and no instance can read of its cgroup
 * what another left there. */
static void leave_parts(struct instance *instance, bool clean)
{
	if (instance->cgroup != NOBODY && clean) {
		part_give_back(instance->cgroup, NOBODY);
		instance->cgroup = NOBODY;
	} else if (instance->cgroup != NOBODY) {
		part_leave(instance->cgroup);
	}
	instance->rests = instance->network != NOBODY && clean &&
			  network_rests(instance->network, instance->function, instance->version);
	if (instance->network != NOBODY && !instance->rests)
		part_leave(instance->network);
}

/* The end of an instance; its parts are its caller's to settle, before the manager is owed it. */
void instance_finish(int index, int status, int64_t user, int64_t system)
{
	struct instance *instance = &node.instances[index];
	struct progress *progress = &node.progress[index];
	bool ran = instance->state == INSTANCE_RUNNING;
	unwatch(&instance->control);
	descriptor_close(&instance->pidfd);
	instance->status = status;
	instance->user = user;
	instance->system = system;
	instance->failed = !ran;
	instance->step = progress->step;
	instance->error = ran ? 0 : progress->error ? progress->error : ECANCELED;
	if (ran && ran_out_of_memory(index))
		instance->flags |= ANSWER_OUT_OF_MEMORY;
	node.up--;
	node.starting -= instance->state == INSTANCE_STARTING;
	instance->state = INSTANCE_ENDED;
	if (instance->client != NOBODY) {
		instance->owed_client |= OWES_ENDED;
		client_tell(instance->client);
	}
}

/* Its processes are gone. */
static void end(int index, int status, const struct rusage *usage)
{
	struct instance *instance = &node.instances[index];
	bool ran = instance->state == INSTANCE_RUNNING;
	if (instance->state == INSTANCE_MAKING)
		node.making--;
	if (instance->state == INSTANCE_WAITING)
		node.waiting_changed |= chain_cut(&node.waiting, index);
	reuse_ended(index);
	instance->renewing = true; /* until its parts are settled */
	instance_finish(index, status, nanoseconds(usage->ru_utime), nanoseconds(usage->ru_stime));
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
		/* Its exec, or what it said last, may be unread. */
		while (*hashed(pid) != NOBODY && instance_read(*hashed(pid)))
			;
		int index = instance_unhash(pid);
		if (index != NOBODY)
			end(index, status, &usage);
	}
}
