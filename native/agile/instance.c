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

enum { LULL = 5000000, RETRY = 10000000 }; /* ns */

void instances_open(int limit)
{
	int count = limit + ENDED_KEPT;
	uint32_t buckets = 1024;
	while ((int)buckets < count)
		buckets *= 2;
	node.instances = calloc((size_t)count, sizeof *node.instances);
	node.hash = malloc(buckets * sizeof *node.hash);
	node.progress = mmap(NULL, (size_t)count * sizeof *node.progress, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!node.instances || !node.hash || node.progress == MAP_FAILED)
		die("reserve memory", -ENOMEM);
	node.hash_mask = buckets - 1;
	memset(node.hash, 0xff, buckets * sizeof *node.hash);
	node.instance_most = count;
	node.instance_limit = limit;
	node.free_instance = NOBODY;
}

static void hash_add(int index)
{
	int *bucket = &node.hash[(uint32_t)node.instances[index].pid & node.hash_mask];
	node.instances[index].hash_next = *bucket;
	*bucket = index;
}

static int hash_take(pid_t pid)
{
	int *at = &node.hash[(uint32_t)pid & node.hash_mask];
	while (*at != NOBODY && node.instances[*at].pid != pid)
		at = &node.instances[*at].hash_next;
	int index = *at;
	if (index != NOBODY)
		*at = node.instances[index].hash_next;
	return index;
}

static void owe_manager(int index, uint8_t what)
{
	struct instance *instance = &node.instances[index];
	instance->owed_manager |= what;
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

static void link_client(int index, int client)
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
	    instance->in_dirty)
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

static int reserve(void)
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
				      .next = NOBODY,
				      .previous = NOBODY};
	memset(&node.progress[index], 0, sizeof *node.progress);
	node.up++;
	return index;
}

/* A reservation that came to nothing. */
static void release(int index)
{
	struct instance *instance = &node.instances[index];
	descriptor_close(&instance->control);
	if (instance->cgroup != NOBODY)
		part_give_back(instance->cgroup, NOBODY);
	if (instance->network != NOBODY)
		part_give_back(instance->network, instance->function);
	instance->state = INSTANCE_FREE;
	instance->next = node.free_instance;
	node.free_instance = index;
	node.up--;
}

static void be_child_of_node(void)
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
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
	int self = sandbox_self(progress);
	if (self < 0 || sandbox_make(&node.house, cgroup, progress) || keep_own(control, self))
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
	place.tree = rights.descriptors[0];
	place.network = rights.descriptors[1];
	memcpy(place.streams, &rights.descriptors[2], sizeof place.streams);
	place.words = rights.descriptors[5];
	place.hosts = rights.descriptors[6];
	place.own_words = rights.descriptors[6 + !!enter.has_hosts];
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
	int self = sandbox_self(progress);
	int failed = self < 0 ? self : clone_mounts(place, root);
	if (failed) {
		progress->step = STEP_ROOT;
		progress->error = -failed;
	} else if (!sandbox_make(&node.house, place->cgroup, progress)) {
		sandbox_enter(&node.house, place, self, progress);
	}
	_exit(127);
}

static pid_t clone_child(uint32_t cgroup)
{
	struct clone_args args = {.flags = CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS,
				  .exit_signal = SIGCHLD};
	int directory DESCRIPTOR_SCOPE = NOBODY;
	char name[16];
	if (node.house.unified) {
		snprintf(name, sizeof name, "%u", cgroup);
		directory = openat(node.house.tops[0], name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (directory < 0)
			return -1;
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (__u64)directory;
	}
	return (pid_t)syscall(SYS_clone3, &args, sizeof args);
}

static bool same_limits(const struct limits *a, const struct limits *b)
{
	return a->memory == b->memory && a->quota == b->quota && a->pids == b->pids;
}

/* A generic sandbox, which takes a cgroup and waits. */
static int make_waiting(void)
{
	int ends[2], index = reserve();
	if (index == NOBODY)
		return -EAGAIN;
	struct instance *instance = &node.instances[index];
	instance->cgroup = part_take(PART_CGROUP, NULL);
	if (instance->cgroup == NOBODY) {
		release(index);
		manager_want(PART_CGROUP, 0);
		return -EAGAIN;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends)) {
		release(index);
		return -errno;
	}
	instance->control = ends[0];
	uint32_t cgroup = node.parts[instance->cgroup].order.cgroup;
	instance->requested = node.progress[index].stamps[STEP_CLONE] = monotonic();
	instance->pid = clone_child(cgroup);
	if (instance->pid == 0)
		be_waiting(index, ends[1], cgroup);
	int failed = instance->pid < 0 ? -errno : 0;
	close(ends[1]);
	if (failed || watch(ends[0], ON_INSTANCE, index, EPOLLIN)) {
		if (failed) {
			release(index);
			return failed;
		}
		kill(instance->pid, SIGKILL);
	}
	hash_add(index);
	instance->state = INSTANCE_MAKING;
	node.making++;
	return 0;
}

/* What takes the place of a sandbox is made in a lull, so that it does not keep a start from its CPU;
 * but not too late. */
static int64_t next_fill(void)
{
	int64_t next = node.last_made + node.fill_interval;
	if (node.waiting.count + node.making > node.low_waiting / 2 &&
	    node.last_start + LULL > next)
		next = node.last_start + LULL;
	return next;
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

/* Those that there are too many of serve the next starts. */
int instances_keep(uint32_t high, uint32_t low, uint32_t interval)
{
	if (low > high || high > INT32_MAX)
		return -EINVAL;
	node.high_waiting = (int)high < node.instance_limit ? (int)high : node.instance_limit;
	node.low_waiting = (int)low < node.high_waiting ? (int)low : node.high_waiting;
	node.fill_interval = interval * 1000LL;
	set_fills(node.waiting.count < node.high_waiting);
	return 0;
}

static int take_waiting(void)
{
	if (!node.waiting.count)
		return NOBODY;
	int index = node.waiting.first;
	node.waiting.first = node.instances[index].next;
	node.waiting.count--;
	node.waiting_changed = true;
	node.instances[index].next = NOBODY;
	return index;
}

static void put_waiting(int index)
{
	node.waiting_changed = true;
	node.instances[index].next = NOBODY;
	if (node.waiting.count++)
		node.instances[node.waiting.last].next = index;
	else
		node.waiting.first = index;
	node.waiting.last = index;
}

static void drop_waiting(int index)
{
	int before = NOBODY, at = node.waiting.first;
	for (int left = node.waiting.count; left;
	     left--, before = at, at = node.instances[at].next) {
		if (at != index)
			continue;
		if (before == NOBODY)
			node.waiting.first = node.instances[at].next;
		else
			node.instances[before].next = node.instances[at].next;
		if (node.waiting.last == index)
			node.waiting.last = before;
		node.waiting.count--;
		node.waiting_changed = true;
		return;
	}
}

/* Its own cgroup may have other limits than the function asks for. */
static uint32_t settle_limits(int cgroup, const struct definition *function)
{
	struct limits *have = &node.parts[cgroup].order.limits;
	if (same_limits(have, &function->limits))
		return 0;
	*have = function->limits;
	return 1;
}

static int enter_waiting(int index, struct place *place, int root)
{
	struct instance *instance = &node.instances[index];
	struct enter enter = {.function = place->function,
			      .limits = place->limits,
			      .set_limits = place->set_limits,
			      .has_words = place->has_words,
			      .has_hosts = place->has_hosts};
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
	struct instance *instance = &node.instances[index];
	int ends[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
		return -errno;
	instance->control = ends[0];
	node.progress[index].stamps[STEP_CLONE] = monotonic();
	instance->pid = clone_child(place->cgroup);
	if (instance->pid == 0)
		be_instance(index, place, root);
	int failed = instance->pid < 0 ? -errno : 0;
	close(ends[1]);
	if (failed)
		return failed;
	hash_add(index);
	if (watch(ends[0], ON_INSTANCE, index, EPOLLIN))
		kill(instance->pid, SIGKILL); /* its end is told as any */
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
	if (!node.waiting.count && node.up >= node.instance_limit)
		return refusal(step, EUSERS, STEP_CLONE);
	int network = part_take(PART_NETWORK, function), cgroup = NOBODY;
	bool warm = node.waiting.count > 0;
	if (!warm && node.high_waiting)
		set_fills(true);
	if (network != NOBODY && !warm)
		cgroup = part_take(PART_CGROUP, NULL);
	if (network == NOBODY || (!warm && cgroup == NOBODY)) {
		if (network != NOBODY)
			part_give_back(network, (int)ask->function);
		if (function->definition.flags & DEFINITION_REFUSES)
			return refusal(step, EAGAIN,
				       network == NOBODY ? STEP_NETWORK : STEP_CGROUP);
		manager_want(network == NOBODY ? PART_NETWORK : PART_CGROUP,
			     network == NOBODY ? function->definition.reach : 0);
		return -EAGAIN;
	}
	int index = warm ? take_waiting() : reserve();
	if (index == NOBODY) { /* all records are of instances whose ends nobody has read */
		part_give_back(network, (int)ask->function);
		part_give_back(cgroup, NOBODY);
		return refusal(step, EUSERS, STEP_CLONE);
	}
	if (!warm)
		node.instances[index].cgroup = cgroup;
	struct instance *instance = &node.instances[index];
	int resident[2] = {NOBODY, NOBODY};
	if (function->definition.flags & DEFINITION_RESIDENT &&
	    !socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, resident)) {
		/* Blocking for the instance, not for us. */
		(void)fcntl(resident[1], F_SETFL, 0);
		descriptor_close(&rights->descriptors[0]);
		rights->descriptors[0] = resident[1];
		descriptor_close(&function->resident);
		function->resident = resident[0];
	}
	node.last_start = monotonic();
	instance->network = network;
	instance->address = node.parts[network].order.address;
	instance->function = (int)ask->function;
	instance->version = function->definition.version;
	instance->tag = ask->tag;
	instance->requested = ask->asked ? ask->asked : monotonic();
	instance->detached = ask->flags & ASK_DETACHED;
	instance->flags = warm ? ANSWER_WARM : 0;
	instance->state = INSTANCE_STARTING;
	link_client(index, client);
	struct place place = {
		.function = function->definition,
		.limits = function->definition.limits,
		.set_limits = settle_limits(instance->cgroup, &function->definition),
		.cgroup = node.parts[instance->cgroup].order.cgroup,
		.has_words = words,
		.has_hosts = function->has_hosts && node.parts[network].order.address,
		.network_part = network,
		.tree = NOBODY,
		.hosts = NOBODY,
		.network = node.parts[network].network,
		.words = function->words,
		.own_words = words ? rights->descriptors[3] : NOBODY,
		.streams = {rights->descriptors[0], rights->descriptors[1], rights->descriptors[2]},
	};
	if (place.function.flags & DEFINITION_OWN_IDENTITY) {
		if (place.function.gid == place.function.uid) /* else it was asked for */
			place.function.gid += (uint32_t)index;
		place.function.uid += (uint32_t)index;
	}
	int failed = warm ? enter_waiting(index, &place, function->root)
			  : clone_instance(index, &place, function->root);
	if (!failed)
		return 0;
	if (warm) {
		kill(instance->pid, SIGKILL); /* its end is told as that of any start that failed */
		node.progress[index].step = STEP_ROOT;
		node.progress[index].error = -failed;
		return 0;
	}
	unlink_client(index);
	release(index);
	return refusal(step, -failed, STEP_CLONE);
}

/* A sandbox is ready, or a start's control socket has ended: by its exec, or with the child. */
void instance_heard(int index)
{
	struct instance *instance = &node.instances[index];
	char ready;
	if (instance->control < 0)
		return;
	ssize_t size = recv(instance->control, &ready, 1, MSG_DONTWAIT);
	if (size < 0)
		return;
	if (size == 1 && instance->state == INSTANCE_MAKING) {
		node.making--;
		node.made++;
		instance->state = INSTANCE_WAITING;
		put_waiting(index);
		return;
	}
	descriptor_close(&instance->control);
	if (instance->state != INSTANCE_STARTING || node.progress[index].error ||
	    node.progress[index].step != STEP_EXEC)
		return; /* its end says what failed */
	instance->state = INSTANCE_RUNNING;
	instance->running = monotonic();
	owe_manager(index, OWES_STARTED);
	if (instance->client != NOBODY) {
		instance->owed_client |= OWES_STARTED;
		client_tell(instance->client);
	}
	if (instance->killed)
		kill(instance->pid, SIGKILL);
}

void instance_kill(int index)
{
	struct instance *instance = &node.instances[index];
	instance->killed = true;
	if (instance->state != INSTANCE_FREE && instance->state != INSTANCE_ENDED)
		kill(instance->pid, SIGKILL); /* it is not reaped yet: the pid is its own */
}

int instance_signal(uint64_t id, int number)
{
	if (number < 1 || number >= NSIG)
		return -EINVAL;
	for (int i = 0; i < node.instance_count; i++) {
		struct instance *instance = &node.instances[i];
		if (instance->id != id || instance->state < INSTANCE_STARTING ||
		    instance->state == INSTANCE_ENDED)
			continue;
		if (number == SIGKILL)
			instance_kill(i);
		else if (kill(instance->pid, number))
			return -errno;
		return 0;
	}
	return -ESRCH;
}

static bool read_count(int top, uint32_t cgroup, const char *file, const char *key)
{
	char name[64], text[1024];
	snprintf(name, sizeof name, "%u/%s", cgroup, file);
	int opened DESCRIPTOR_SCOPE = openat(top, name, O_RDONLY | O_CLOEXEC);
	ssize_t size = opened < 0 ? -1 : read(opened, text, sizeof text - 1);
	if (size <= 0)
		return false;
	text[size] = 0;
	const char *at = strstr(text, key);
	return at && atoi(at + strlen(key)) > 0;
}

/* Such a cgroup is not used again: its count would be the next one's. */
static bool ran_out_of_memory(const struct instance *instance)
{
	uint32_t cgroup = node.parts[instance->cgroup].order.cgroup;
	if (!WIFSIGNALED(instance->status) || WTERMSIG(instance->status) != SIGKILL ||
	    instance->killed)
		return false;
	return node.house.unified
		       ? read_count(node.house.tops[0], cgroup, "memory.events", "oom_kill ")
		       : read_count(node.house.tops[1], cgroup, "memory.oom_control", "oom_kill ");
}

static int64_t nanoseconds(struct timeval t)
{
	return t.tv_sec * 1000000000LL + t.tv_usec * 1000LL;
}

/* The cgroup of an instance that ended as it should is empty, and no instance can read of its cgroup
 * what another left there. A network is the manager's to examine. */
static void leave_parts(struct instance *instance, bool clean)
{
	if (instance->cgroup != NOBODY && clean) {
		part_give_back(instance->cgroup, NOBODY);
		instance->cgroup = NOBODY;
	} else if (instance->cgroup != NOBODY) {
		part_leave(instance->cgroup);
	}
	if (instance->network != NOBODY)
		part_leave(instance->network);
}

/* Its processes are gone. */
static void end(int index, int status, const struct rusage *usage)
{
	struct instance *instance = &node.instances[index];
	struct progress *progress = &node.progress[index];
	instance_heard(index); /* its exec may be unread */
	bool ran = instance->state == INSTANCE_RUNNING;
	descriptor_close(&instance->control);
	instance->status = status;
	instance->user = nanoseconds(usage->ru_utime);
	instance->system = nanoseconds(usage->ru_stime);
	instance->failed = !ran;
	instance->step = progress->step;
	instance->error = ran ? 0 : progress->error ? progress->error : ECANCELED;
	if (ran && ran_out_of_memory(instance))
		instance->flags |= ANSWER_OUT_OF_MEMORY;
	leave_parts(instance, ran && !(instance->flags & ANSWER_OUT_OF_MEMORY));
	if (instance->state == INSTANCE_MAKING)
		node.making--;
	if (instance->state == INSTANCE_WAITING)
		drop_waiting(index);
	node.up--;
	instance->state = INSTANCE_ENDED;
	if (instance->function != NOBODY && node.functions[instance->function].known &&
	    node.functions[instance->function].resident >= 0 &&
	    node.functions[instance->function].definition.flags & DEFINITION_RESIDENT)
		descriptor_close(&node.functions[instance->function].resident);
	if (instance->client != NOBODY)
		instance->owed_client |= OWES_ENDED;
	owe_manager(index, OWES_ENDED);
	if (instance->client != NOBODY)
		client_tell(instance->client);
}

void instances_reap(void)
{
	struct rusage usage;
	int status;
	pid_t pid;
	while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
		int index = hash_take(pid);
		if (index != NOBODY)
			end(index, status, &usage);
	}
}
