/* Loads trace.bpf.o, attaches and detaches its programs, and empties their ring buffer. */
#include "trace/tracer.h"
#include "common/clock.h"
#include "trace/calls.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PROGRAMS = 32 };
enum { RING_SMALLEST = 1 << 22 };

struct error tracer_failure;
struct tracer_out tracer_out;
struct tracer_losses tracer_losses;

const struct tracer_call tracer_calls[] = {
#define ENTRY(name, take) {SYS_##name, take, #name},
	CALLS(ENTRY)};
const size_t tracer_call_count = sizeof tracer_calls / sizeof *tracer_calls;

enum { AT_ONCE = 1 << 16 };
static struct bpf_object *object;
static struct bpf_link *links[PROGRAMS];
static struct bpf_program *programs[PROGRAMS];
static int count;
static struct ring_buffer *ring;
static ring_buffer_sample_fn taker;
static int attached[PROGRAMS]; /* at least once */
static char complaint[512];

/* Keeps the last message of libbpf, for an error in loading. */
static int hush(enum libbpf_print_level level, const char *format, va_list arguments)
{
	if (level == LIBBPF_WARN)
		vsnprintf(complaint, sizeof complaint, format, arguments);
	return 0;
}

int tracer_fail(const char *what)
{
	error_set(&tracer_failure, 0, "%s: %s%s%s", what, strerror(errno), *complaint ? ": " : "",
		  complaint);
	return -tracer_failure.code;
}

int tracer_write(void *context, void *data, size_t size)
{
	const struct event *event = data;
	(void)context;
	if (size < sizeof *event + event->text)
		return -EPROTO;
	if (fwrite_unlocked(event, sizeof *event, 1, tracer_out.events) != 1 ||
	    fwrite_unlocked(event + 1, 1, event->text, tracer_out.texts) != event->text)
		return errno ? -errno : -EIO;
	tracer_out.written++;
	return 0;
}

/* Threads on other CPUs may make events as fast as one takes them, so it pauses now and then. */
static int take_some(void *context, void *data, size_t size)
{
	static unsigned int taken;
	int error = taker(context, data, size);
	return error ? error : ++taken % AT_ONCE ? 0 : -EAGAIN;
}

int tracer_map(const char *name)
{
	return bpf_object__find_map_fd_by_name(object, name);
}

/* A container may have a time namespace, whose clock the kernel's programs do not see. */
static long long clock_ahead(void)
{
	long long seconds = 0, ns = 0;
	FILE *offsets = fopen("/proc/self/timens_offsets", "re");
	if (!offsets)
		return 0; /* built without time namespaces */
	if (fscanf(offsets, "monotonic %lld %lld", &seconds, &ns) != 2)
		seconds = ns = 0;
	(void)fclose(offsets);
	return seconds * CLOCK_SECOND + ns;
}

/* The maps of that name, to which the programs write at the same time. */
static struct bucket *buckets;
static struct task *tasks;
static unsigned int bucket_count;

static int map_tasks(void)
{
	bucket_count = bpf_map__max_entries(bpf_object__find_map_by_name(object, "buckets"));
	buckets = mmap(NULL, bucket_count * sizeof *buckets, PROT_READ | PROT_WRITE, MAP_SHARED,
		       tracer_map("buckets"), 0);
	tasks = mmap(NULL, bucket_count * WAYS * sizeof *tasks, PROT_READ | PROT_WRITE, MAP_SHARED,
		     tracer_map("tasks"), 0);
	return buckets == MAP_FAILED || tasks == MAP_FAILED ? tracer_fail("traced threads") : 0;
}

static int configure(const char *file, struct settings settings, unsigned int ring_size,
		     int preemptible)
{
	libbpf_set_print(hush);
	object = bpf_object__open_file(file, NULL);
	if (!object)
		return tracer_fail(file);
	struct bpf_map *constants = bpf_object__find_map_by_name(object, ".rodata");
	for (size_t i = 0; i < tracer_call_count; i++)
		if (tracer_calls[i].number < NUMBERS)
			settings.take[tracer_calls[i].number] = (unsigned char)tracer_calls[i].take;
	tracer_translate(&settings, tracer_calls);
	settings.ahead = clock_ahead();
	struct bpf_program *program;
	bpf_object__for_each_program(program, object)
	{
		if (strstr(bpf_program__name(program), "_again"))
			bpf_program__set_autoload(program, preemptible);
	}
	if (bpf_map__set_initial_value(constants, &settings, sizeof settings))
		return tracer_fail("constants of the object");
	return bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "events"), ring_size);
}

/* A copy is a program of a trace event, whose number is in a file of tracefs. A container has no tracefs,
 * so it is mounted where nobody else sees it. Without it, the copies are not attached. */
static void reach_tracefs(void)
{
	if (!access("/sys/kernel/tracing/events", F_OK) ||
	    !access("/sys/kernel/debug/tracing/events", F_OK) || unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL))
		return;
	(void)mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL);
}

/* A machine short of memory gets a smaller ring; a lost event is reported. */
int tracer_load(const char *file, struct settings settings, unsigned int size, int preemptible,
		int (*take)(void *context, void *event, size_t size))
{
	int error = -1;
	if (preemptible)
		reach_tracefs();
	for (;; size /= 4) {
		if (configure(file, settings, size, preemptible))
			return -tracer_failure.code;
		error = bpf_object__load(object);
		if (error) {
			bpf_object__close(object);
			object = NULL;
		}
		if (error != -ENOMEM || size / 4 < RING_SMALLEST)
			break;
	}
	if (error) {
		errno = -error;
		return tracer_fail("load");
	}
	struct bpf_program *program;
	bpf_object__for_each_program(program, object)
	{
		if (!strcmp(bpf_program__name(program), "on_ask")) {
			LIBBPF_OPTS(bpf_test_run_opts, once);
			if (bpf_prog_test_run_opts(bpf_program__fd(program), &once))
				return tracer_fail("ask for our PID namespace");
		} else if (bpf_program__autoload(program) && count < PROGRAMS) {
			programs[count++] = program;
		}
	}
	/* A call's entry is attached last and detached first, so that no return is missed. */
	for (int i = 0, last = count; i < last;) {
		program = programs[i];
		if (strncmp(bpf_program__name(program), "on_enter", 8)) {
			i++;
			continue;
		}
		programs[i] = programs[--last];
		programs[last] = program;
	}
	/* Switches first: whether a thread is off the CPU is known from there on. */
	for (int i = 0; i < count; i++) {
		program = programs[i];
		if (strcmp(bpf_program__name(program), "on_switch"))
			continue;
		programs[i] = programs[0];
		programs[0] = program;
	}
	if (map_tasks())
		return -tracer_failure.code;
	taker = take;
	ring = ring_buffer__new(tracer_map("events"), take_some, NULL, NULL);
	return ring ? 0 : tracer_fail("ring buffer");
}

static int is_copy(int program)
{
	return !!strstr(bpf_program__name(programs[program]), "_again");
}

static int is_cheap(int program)
{
	static const char *const names[] = {"on_fork", "on_exec", "on_exit"};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (!strncmp(bpf_program__name(programs[program]), names[i], strlen(names[i])))
			return 1;
	return 0;
}

/* "keep_cheap": except those that follow forks, executions and exits. */
void tracer_detach(int keep_cheap)
{
	for (int i = count - 1; i >= 0; i--) {
		if (keep_cheap && is_cheap(i))
			continue;
		if (links[i])
			bpf_link__destroy(links[i]);
		links[i] = NULL;
	}
}

/* Those that are not attached yet; "cheap": only those that follow forks, executions and exits. */
int tracer_attach(int cheap)
{
	for (int i = 0; i < count; i++) {
		if (links[i] || (cheap && !is_cheap(i)))
			continue;
		links[i] = bpf_program__attach(programs[i]);
		if (!links[i] && is_copy(i))
			continue; /* what it would have taken is counted as lost */
		if (!links[i]) {
			tracer_fail(bpf_program__name(programs[i]));
			tracer_detach(0);
			return -tracer_failure.code;
		}
		attached[i] = 1;
	}
	return 0;
}

static unsigned long long misses_of(struct bpf_program *program)
{
	struct bpf_prog_info info = {0};
	unsigned int size = sizeof info;
	return bpf_obj_get_info_by_fd(bpf_program__fd(program), &info, &size)
		       ? 0
		       : info.recursion_misses;
}

static void add_loss(const char *how, unsigned long long events)
{
	size_t used = strlen(tracer_losses.words);
	if (!events)
		return;
	tracer_losses.events += events;
	snprintf(tracer_losses.words + used, sizeof tracer_losses.words - used, "%s%s %llu",
		 used ? ", " : "", how, events);
}

/* Of a program's copy, if that is attached; its own number otherwise. */
static int copy_of(int program)
{
	char name[64];
	snprintf(name, sizeof name, "%s_again", bpf_program__name(programs[program]));
	for (int i = 0; i < count; i++)
		if (attached[i] && !strcmp(bpf_program__name(programs[i]), name))
			return i;
	return program;
}

/* A program that is entered while it runs misses an event. Contention misses events of the ring's own lock
 * or of an interrupt, and neither belongs to the traced thread; where a writer of a per-CPU semaphore can be
 * preempted in it, a few others, which cannot be told from those. A timer that was missed only leaves a wait
 * without the name of what ended it. A missed return is counted at the thread's next call; of what else was
 * missed, at most as much counts as the copy missed too. */
static void add_misses(void)
{
	static unsigned long long before[PROGRAMS];
	unsigned long long own[PROGRAMS];
	for (int i = 0; i < count; i++) {
		unsigned long long all = misses_of(programs[i]);
		own[i] = all - before[i];
		before[i] = all;
	}
	for (int i = 0; i < count; i++) {
		const char *name = bpf_program__name(programs[i]);
		if (is_copy(i) || strstr(name, "contention") || strstr(name, "on_timer") ||
		    strstr(name, "on_return"))
			continue;
		int copy = copy_of(i);
		add_loss(name, own[copy] < own[i] ? own[copy] : own[i]);
	}
}

unsigned long long tracer_take_lost(void)
{
	static const char *const how[] = {"ring", "thread", "return"};
	unsigned int zero = 0;
	unsigned long long lost[LOSSES], none[LOSSES] = {0};
	int data = tracer_map(".bss");
	tracer_losses = (struct tracer_losses){0};
	if (bpf_map_lookup_elem(data, &zero, lost) ||
	    bpf_map_update_elem(data, &zero, none, BPF_ANY)) {
		add_loss("unknown", 1);
		return tracer_losses.events;
	}
	for (int i = 0; i < LOSSES; i++)
		add_loss(how[i], lost[i]);
	add_misses();
	return tracer_losses.events;
}

unsigned int tracer_tids[TASKS], tracer_task_count;
struct task tracer_tasks[TASKS];

void tracer_read_tasks(void)
{
	tracer_task_count = 0;
	for (size_t place = 0; place < bucket_count * WAYS; place++) {
		unsigned int tid = __atomic_load_n(&buckets[place / WAYS].tids[place % WAYS],
						   __ATOMIC_ACQUIRE);
		if (!tid || tid == TAKEN)
			continue;
		tracer_tids[tracer_task_count] = tid;
		tracer_tasks[tracer_task_count++] = tasks[place];
	}
}

void tracer_clear_tasks(void)
{
	memset(buckets, 0, bucket_count * sizeof *buckets);
}

static unsigned int *way_of(unsigned int tid)
{
	unsigned int *tids = buckets[tid % bucket_count].tids;
	for (int way = 0; way < WAYS; way++)
		if (tids[way] == tid)
			return &tids[way];
	return NULL;
}

static struct task *task_of(const unsigned int *way)
{
	return &tasks[way - buckets->tids];
}

void tracer_forget(unsigned int tid)
{
	unsigned int *way = way_of(tid);
	if (way)
		__atomic_store_n(way, 0, __ATOMIC_RELEASE);
}

void tracer_reset(unsigned int tid, const struct task *task)
{
	unsigned int *way = way_of(tid);
	if (way)
		*task_of(way) = *task;
}

/* Returns -1 if there is no room. */
static int keep(unsigned int tid, const struct task *task)
{
	unsigned int *tids = buckets[tid % bucket_count].tids;
	if (way_of(tid)) {
		tracer_reset(tid, task);
		return 0;
	}
	for (int way = 0; way < WAYS; way++) {
		unsigned int free_way = 0;
		if (!__atomic_compare_exchange_n(&tids[way], &free_way, TAKEN, 0, __ATOMIC_ACQ_REL,
						 __ATOMIC_RELAXED))
			continue;
		*task_of(&tids[way]) = *task;
		__atomic_store_n(&tids[way], tid, __ATOMIC_RELEASE);
		return 0;
	}
	errno = ENOSPC;
	return -1;
}

int tracer_write_open(unsigned long long end)
{
	tracer_read_tasks();
	for (unsigned int i = 0; i < tracer_task_count; i++) {
		const struct task *task = &tracer_tasks[i];
		struct event event = {.root = task->root,
				      .pid = task->pid,
				      .tid = tracer_tids[i],
				      .end = end,
				      .stack = -1,
				      .open = 1};
		if (task->number >= 0 && task->call) {
			event.kind = CALL;
			event.start = task->call;
			event.number = (unsigned short)task->number;
			memcpy(event.args, task->args, sizeof event.args);
			if (tracer_write(NULL, &event, sizeof event))
				return tracer_fail("write events");
		}
		if (task->off) {
			event.kind = OFF;
			event.start = task->off;
			event.args[0] = task->woken;
			event.peer = task->waker;
			event.number = (unsigned short)task->by_timer;
			event.result = task->off_state;
			event.stack = task->off_stack;
			if (tracer_write(NULL, &event, sizeof event))
				return tracer_fail("write events");
		}
	}
	return 0;
}

int tracer_clear(const char *name)
{
	unsigned int key;
	while (!bpf_map_get_next_key(tracer_map(name), NULL, &key))
		if (bpf_map_delete_elem(tracer_map(name), &key) && errno != ENOENT)
			return tracer_fail(name);
	return 0;
}

int tracer_write_stacks(FILE *file)
{
	unsigned int id, previous, *at = NULL;
	unsigned long long addresses[STACK_DEPTH];
	while (!bpf_map_get_next_key(tracer_map("stacks"), at, &id)) {
		previous = id;
		at = &previous;
		memset(addresses, 0, sizeof addresses);
		if (!bpf_map_lookup_elem(tracer_map("stacks"), &id, addresses) &&
		    (fwrite(&id, sizeof id, 1, file) != 1 ||
		     fwrite(addresses, sizeof addresses, 1, file) != 1))
			return tracer_fail("stacks");
	}
	return 0;
}

/* Ended since it was listed: not needed. */
int tracer_follow(unsigned int pid)
{
	char path[64];
	struct dirent *entry;
	struct task task = {.root = pid,
			    .pid = pid,
			    .off_state = 1,
			    .off_stack = UNSEEN,
			    .lock_stack = -1,
			    .number = -1,
			    .off = (unsigned long long)clock_now()};
	snprintf(path, sizeof path, "/proc/%u/task", pid);
	DIR *threads = opendir(path);
	if (!threads)
		return errno == ENOENT ? 0 : tracer_fail(path);
	int error = 0;
	while (!error && (entry = readdir(threads))) {
		unsigned int tid = (unsigned int)strtoul(entry->d_name, NULL, 10);
		if (tid)
			error = keep(tid, &task);
	}
	closedir(threads);
	return error ? tracer_fail("follow a process") : 0;
}

int tracer_ring(void)
{
	return ring_buffer__epoll_fd(ring);
}

int tracer_drain(void)
{
	int taken = ring_buffer__consume(ring);
	return taken < 0 && taken != -EAGAIN ? tracer_fail("write events") : 0;
}

int tracer_drain_all(void)
{
	int taken;
	while ((taken = ring_buffer__consume(ring)) == -EAGAIN)
		;
	return taken < 0 ? tracer_fail("write events") : 0;
}
