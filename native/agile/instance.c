/* An instance's record, from its reservation to its end: what it reports of its progress, who is told
 * of it, and what it gives back. Its start is instance_start.c's.
 */
#include "common/clock.h"
#include "node.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* Of memory in a cgroup that serves again, in bytes: half of the least limit. The kernel keeps that much for
 * some CPUs at hand. */
enum { LEFT_MOST = 1 << 20 };

static void *reserve_memory(size_t count, size_t size, int flags)
{
	void *at = mmap(NULL, count * size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		node_die("reserve memory", -errno);
	return at;
}

/* What no child reads: a clone would copy its page tables, and each of us every page that we write. */
static void *reserve_table(size_t count, size_t size)
{
	void *at = reserve_memory(count, size, MAP_PRIVATE);
	if (madvise(at, count * size, MADV_DONTFORK))
		node_die("reserve memory", -errno);
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

int *instance_next(int index)
{
	return &node.instances[index].next;
}

static int *next_dirty(int index)
{
	return &node.instances[index].next_dirty;
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
	queue_push(&node.dirty, next_dirty, index);
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

/* Frees an instance that has ended once all who need to know have been told. */
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
				      .first_network = NOBODY,
				      .first_cgroup = NOBODY,
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
	node_unwatch(&instance->control);
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

void instance_be_child(void)
{
	sigset_t none;
	sigemptyset(&none);
	if (sigprocmask(SIG_SETMASK, &none, NULL))
		_exit(127);
}

void instance_runs(int index)
{
	struct instance *instance = &node.instances[index];
	node.starting -= instance->state == INSTANCE_STARTING;
	instance->state = INSTANCE_RUNNING;
	instance->running = node.last_run = clock_now();
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
		queue_push(&node.waiting, instance_next, index);
		node.waiting_changed = true;
		return true;
	}
	node_unwatch(&instance->control);
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

/* What an instance wrote to files in memory, of a volume, stays charged to its cgroup: the next would
 * have the less. Nothing else of it stays. */
static bool is_almost_empty(const struct instance *instance)
{
	return !(instance->identity.flags & DEFINITION_VOLUMES) ||
	       sandbox_memory_left(&node.house, node.parts[instance->cgroup].order.cgroup) <=
		       LEFT_MOST;
}

/* The cgroup of an instance that ended as it should has no process, and no instance can read of its
 * cgroup what another left there. */
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

/* The end of an instance; its parts are its caller's to settle, before the manager is owed it. */
void instance_finish(int index, int status, int64_t user, int64_t system)
{
	struct instance *instance = &node.instances[index];
	struct progress *progress = &node.progress[index];
	bool ran = instance->state == INSTANCE_RUNNING;
	node_unwatch(&instance->control);
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
		/* Its exec, or what it said last, may be unread. */
		while (*hashed(pid) != NOBODY && instance_read(*hashed(pid)))
			;
		int index = instance_unhash(pid);
		if (index != NOBODY)
			end(index, status, &usage);
	}
}
