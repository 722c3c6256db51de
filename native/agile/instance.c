/* Records of instances: by pid, by client, and those that the manager has yet to be told of. */
#include "node.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/* So many records have their memory from the beginning: those of ends that the manager has yet to be
 * told of are at times few and at times many, and it would grow for long. */
enum { USUAL = 128 };

static void *reserve_memory(size_t count, size_t size, int flags)
{
	void *at = mmap(NULL, count * size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		node_die("reserve memory", -errno);
	return at;
}

/* Memory that no child reads: a clone would copy its page tables, and each write would copy a
 * page. */
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
	memset(node.instances, 0, USUAL * sizeof *node.instances);
	memset(node.progress, 0, USUAL * sizeof *node.progress);
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

int instance_hashed(pid_t pid)
{
	return *hashed(pid);
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
	*instance = (struct instance){.id = ++*node.serial,
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

/* A reservation that was not used. */
void instance_release(int index)
{
	struct instance *instance = &node.instances[index];
	unlink_client(index);
	node_unwatch(&instance->control);
	if (instance->cgroup != NOBODY)
		part_put_back(instance->cgroup);
	if (instance->network != NOBODY)
		part_put_back(instance->network);
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
