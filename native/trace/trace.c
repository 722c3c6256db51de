/* Loads trace.bpf.o, attaches it while asked to, and writes what it reports to files.
 *
 *   trace --probe OBJECT            exit 0 if the programs load and attach here
 *   trace --preemptible …           any of these, where the kernel may preempt programs of system
 *                                   calls: each has a copy then, which takes what it missed
 *   trace --calls                   print "NUMBER NAME SUBJECT" of every system call known: what it
 *                                   is about is path0, path1, fd (argument 0) or none; or ignored
 *   trace OBJECT GENERATOR_PID [RING_BYTES]
 *                                   serve standard input, a line a request, an answer a line:
 *       start PREFIX [PID...]   attach, and write to PREFIX.events and PREFIX.text; also follow
 *                      these processes, each as a root  -> "started"
 *       stop           detach, add what is still going on, write PREFIX.stacks
 *                      (u32 stack, u64 addresses[STACK_DEPTH]) -> "stopped EVENTS LOST"
 *
 *   trace --watch OBJECT PREFIX ONE_IN NAME...
 *                                   follow programs of these names, whoever starts them, until
 *                                   standard input ends. Only forks, executions and exits are
 *                                   followed until one begins; then, for one window in ONE_IN, the
 *                                   other programs are attached, and when none has gone on for
 *                                   LINGER_NS, they are detached. What came meanwhile is in
 *                                   PREFIX.N.events, .text and .stacks
 *                                   -> "watching", then "window N EVENTS LOST WHOLE" for each, where
 *                                   WHOLE is 1 if the other programs were attached
 *       follow PID     follow this process too while a window is open
 *       forget PID     no more
 *
 * The ring buffer is drained every DRAIN_MS, without wake-ups from the kernel; but for "--watch",
 * where an execution wakes us. It is C because the kernel fills the ring faster than an interpreter can
 * empty it, and what does not fit is lost.
 */
#include "trace/trace.h"
#include "common/clock.h"
#include "common/error.h"
#include "trace/calls.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <dirent.h>
#include <errno.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { DRAIN_MS = 20, PROGRAMS = 16 };
enum { LINGER_NS = 100000000 };
#define LONGEST_NS 20000000000ULL
enum { RING_LARGEST = 1 << 26, RING_SMALLEST = 1 << 22 };

static const struct {
	int number, take;
	const char *name;
} calls[] = {
#define ENTRY(name, take) {SYS_##name, take, #name},
	CALLS(ENTRY)};

static struct bpf_object *object;
static struct bpf_link *links[PROGRAMS];
static struct bpf_program *programs[PROGRAMS];
static int count;
static struct ring_buffer *ring;
static FILE *heads, *texts;
static char prefix[4000];
static unsigned long long written, misses;
static char complaint[512];
static struct error failure;

/* Keeps the last complaint of libbpf, to say it if loading fails. */
static int hush(enum libbpf_print_level level, const char *format, va_list arguments)
{
	if (level == LIBBPF_WARN)
		vsnprintf(complaint, sizeof complaint, format, arguments);
	return 0;
}

/* By errno, with libbpf's own words if there are any. */
static int fail(const char *what)
{
	error_set(&failure, 0, "%s: %s%s%s", what, strerror(errno), *complaint ? ": " : "",
		  complaint);
	return -failure.code;
}

static int watch_event(void *context, void *data, size_t size);

static int write_event(void *context, void *data, size_t size)
{
	const struct event *event = data;
	(void)context;
	if (size < sizeof *event + event->text)
		return -EPROTO;
	if (fwrite_unlocked(event, sizeof *event, 1, heads) != 1 ||
	    fwrite_unlocked(event + 1, 1, event->text, texts) != event->text)
		return errno ? -errno : -EIO;
	written++;
	return 0;
}

static int map(const char *name)
{
	return bpf_object__find_map_fd_by_name(object, name);
}

static int is_preemptible; /* whether the kernel preempts programs of system calls */

static int configure(const char *file, struct settings settings, unsigned int ring_size)
{
	object = bpf_object__open_file(file, NULL);
	if (!object)
		return fail(file);
	struct bpf_map *constants = bpf_object__find_map_by_name(object, ".rodata");
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
		if (calls[i].number < NUMBERS)
			settings.take[calls[i].number] = (unsigned char)calls[i].take;
	struct bpf_program *program;
	bpf_object__for_each_program(program,
				     object) if (strstr(bpf_program__name(program), "_again"))
		bpf_program__set_autoload(program, is_preemptible);
	if (bpf_map__set_initial_value(constants, &settings, sizeof settings))
		return fail("constants of the object");
	return bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "events"), ring_size);
}

/* A machine short of memory gets a smaller ring; a lost event is reported. */
static int load(const char *file, struct settings settings, unsigned int size)
{
	int error = -1;
	for (;; size /= 4) {
		if (configure(file, settings, size))
			return -failure.code;
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
		return fail("load");
	}
	struct bpf_program *program;
	bpf_object__for_each_program(program, object)
	{
		if (!strcmp(bpf_program__name(program), "on_ask")) {
			LIBBPF_OPTS(bpf_test_run_opts, once);
			if (bpf_prog_test_run_opts(bpf_program__fd(program), &once))
				return fail("ask for our PID namespace");
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
	ring = ring_buffer__new(map("events"), settings.watch ? watch_event : write_event, NULL,
				NULL);
	return ring ? 0 : fail("ring buffer");
}

static int is_cheap(int program)
{
	return !strncmp(bpf_program__section_name(programs[program]), "tp_btf/sched_process_", 21);
}

/* "keep_cheap": but for what follows forks, executions and exits. */
static void detach(int keep_cheap)
{
	for (int i = count - 1; i >= 0; i--) {
		if (keep_cheap && is_cheap(i))
			continue;
		if (links[i])
			bpf_link__destroy(links[i]);
		links[i] = NULL;
	}
}

/* Those that are not attached yet; "cheap": only what follows forks, executions and exits. */
static int attach(int cheap)
{
	for (int i = 0; i < count; i++) {
		if (links[i] || (cheap && !is_cheap(i)))
			continue;
		links[i] = bpf_program__attach(programs[i]);
		if (!links[i]) {
			fail(bpf_program__name(programs[i]));
			detach(0);
			return -failure.code;
		}
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

/* A program that was entered while it ran has missed an event. What contention misses is that for
 * the ring's own lock, or an interrupt's: neither is the traced thread's. A return that was missed
 * is counted at the thread's next call, and of the calls at most those that the copy missed, too. */
static unsigned long long missed(void)
{
	unsigned long long sum = 0, enter = 0, again = 0;
	int has_copy = 0;
	for (int i = 0; i < count; i++) {
		const char *name = bpf_program__name(programs[i]);
		if (strstr(name, "contention") || strstr(name, "on_return"))
			continue;
		unsigned long long own = misses_of(programs[i]);
		if (!strcmp(name, "on_enter_again")) {
			again = own;
			has_copy = 1;
		} else if (!strcmp(name, "on_enter")) {
			enter = own;
		} else {
			sum += own;
		}
	}
	return sum + (has_copy && again < enter ? again : enter);
}

static unsigned long long take_lost(void)
{
	unsigned int zero = 0;
	unsigned long long lost = 0, none = 0;
	int data = map(".bss");
	if (bpf_map_lookup_elem(data, &zero, &lost) ||
	    bpf_map_update_elem(data, &zero, &none, BPF_ANY))
		return 1;
	unsigned long long before = misses;
	misses = missed();
	return lost + misses - before;
}

static FILE *create(const char *suffix)
{
	char name[sizeof prefix + 16];
	snprintf(name, sizeof name, "%s.%s", prefix, suffix);
	FILE *file = fopen(name, "we");
	if (!file)
		fail(name);
	return file;
}

static unsigned int tids[TASKS], task_count;
static struct task tasks[TASKS];

/* Threads come and go meanwhile: a walk from key to key would begin anew at each that has ended. */
static int read_tasks(void)
{
	unsigned int next;
	task_count = TASKS;
	if (bpf_map_lookup_batch(map("tasks"), NULL, &next, tids, tasks, &task_count, NULL) &&
	    errno != ENOENT)
		return fail("tasks");
	return 0;
}

/* Calls and waits that have not ended when tracing stops are reported as open. */
static int write_open(unsigned long long end)
{
	if (read_tasks())
		return -failure.code;
	for (unsigned int i = 0; i < task_count; i++) {
		const struct task *task = &tasks[i];
		struct event event = {.root = task->root,
				      .pid = task->pid,
				      .tid = tids[i],
				      .end = end,
				      .stack = -1,
				      .open = 1};
		if (task->number >= 0 && task->call) {
			event.kind = CALL;
			event.start = task->call;
			event.number = (unsigned short)task->number;
			memcpy(event.args, task->args, sizeof event.args);
			if (write_event(NULL, &event, sizeof event))
				return fail("write events");
		}
		if (task->off) {
			event.kind = OFF;
			event.start = task->off;
			event.args[0] = task->woken;
			event.peer = task->waker;
			event.result = task->off_state;
			event.stack = task->off_stack;
			if (write_event(NULL, &event, sizeof event))
				return fail("write events");
		}
	}
	return 0;
}

static int clear(const char *name)
{
	unsigned int key;
	while (!bpf_map_get_next_key(map(name), NULL, &key))
		if (bpf_map_delete_elem(map(name), &key) && errno != ENOENT)
			return fail(name);
	return 0;
}

static int write_stacks(void)
{
	FILE *file = create("stacks");
	unsigned int id, previous, *at = NULL;
	unsigned long long addresses[STACK_DEPTH];
	if (!file)
		return -failure.code;
	while (!bpf_map_get_next_key(map("stacks"), at, &id)) {
		previous = id;
		at = &previous;
		memset(addresses, 0, sizeof addresses);
		if (!bpf_map_lookup_elem(map("stacks"), &id, addresses) &&
		    (fwrite(&id, sizeof id, 1, file) != 1 ||
		     fwrite(addresses, sizeof addresses, 1, file) != 1))
			break;
	}
	return fclose(file) ? fail("stacks") : 0;
}

/* A process that was there before, asleep until something asks it. What has ended since it was
 * listed serves nobody. */
static int follow(unsigned int pid)
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
		return errno == ENOENT ? 0 : fail(path);
	int error = 0;
	while (!error && (entry = readdir(threads))) {
		unsigned int tid = (unsigned int)strtoul(entry->d_name, NULL, 10);
		if (tid)
			error = bpf_map_update_elem(map("tasks"), &tid, &task, BPF_ANY);
	}
	closedir(threads);
	return error ? fail("follow a process") : 0;
}

static int start(char *request)
{
	char *pid = strtok(request, " ");
	strncpy(prefix, pid ? pid : "", sizeof prefix - 1);
	written = 0;
	heads = create("events");
	texts = create("text");
	misses = missed();
	if (!heads || !texts || attach(0))
		return -failure.code;
	while ((pid = strtok(NULL, " ")))
		if (follow((unsigned int)strtoul(pid, NULL, 10)))
			return -failure.code;
	puts("started");
	return 0;
}

static int drain(void)
{
	return ring_buffer__consume(ring) < 0 ? fail("write events") : 0;
}

static int stop(void)
{
	detach(0);
	/* A program that another CPU is running still has ended after this. */
	(void)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
	int error = drain() || write_open((unsigned long long)clock_now()) || clear("tasks") ||
		    clear("numbers") || write_stacks();
	error = fclose(heads) || error;
	error = fclose(texts) || error;
	heads = texts = NULL;
	if (!error)
		printf("stopped %llu %llu\n", written, take_lost());
	return error ? fail("stop") : 0;
}

/* The programs that watch has seen begin in this window, and whether their start still goes on. */
static struct {
	unsigned int pid;
	int ended;
} roots[4096];
static unsigned int daemons[64];
static size_t begun, going_on, daemon_count;

static void note_begin(const struct event *event)
{
	if (begun < sizeof roots / sizeof *roots) {
		roots[begun].pid = event->root;
		roots[begun++].ended = 0;
		going_on++;
	}
}

static void note_end(unsigned int pid)
{
	for (size_t i = 0; i < begun; i++)
		if (roots[i].pid == pid && !roots[i].ended) {
			roots[i].ended = 1;
			going_on--;
		}
}

/* A start has ended when its root exits, or when what executes is the first process of a PID
 * namespace: the container's own program. */
static int watch_event(void *context, void *data, size_t size)
{
	const struct event *event = data;
	if (size >= sizeof *event) {
		if (event->kind == BEGIN && event->root == event->tid)
			note_begin(event);
		else if ((event->kind == EXIT && event->tid == event->root) ||
			 (event->kind == EXEC && event->args[0] == 1 && event->args[1] > 0))
			note_end(event->root);
	}
	return write_event(context, data, size);
}

static int is_of_window(unsigned int root)
{
	for (size_t i = 0; i < begun; i++)
		if (roots[i].pid == root)
			return 1;
	for (size_t i = 0; i < daemon_count; i++)
		if (daemons[i] == root)
			return 1;
	return 0;
}

/* Forgets the threads of what this window has seen, and leaves those that begin meanwhile. */
static int forget_threads(void)
{
	if (read_tasks())
		return -failure.code;
	for (unsigned int i = 0; i < task_count; i++)
		if (is_of_window(tasks[i].root) && bpf_map_delete_elem(map("tasks"), &tids[i]) &&
		    errno != ENOENT)
			return fail("tasks");
	return 0;
}

static int open_window(const char *base, unsigned long number)
{
	if (snprintf(prefix, sizeof prefix, "%s.%lu", base, number) >= (int)sizeof prefix - 16) {
		errno = ENAMETOOLONG;
		return fail(base);
	}
	written = 0;
	begun = going_on = 0;
	misses = missed();
	heads = create("events");
	texts = create("text");
	return heads && texts ? 0 : -failure.code;
}

static int close_window(unsigned long number, int whole)
{
	int error = write_open((unsigned long long)clock_now()) || forget_threads() ||
		    write_stacks() || clear("stacks");
	error = fclose(heads) || error;
	error = fclose(texts) || error;
	heads = texts = NULL;
	if (error)
		return fail("close a window");
	printf("window %lu %llu %llu %d\n", number, written, take_lost(), whole);
	return 0;
}

static int watch_names(char **names, int number)
{
	for (int i = 0; i < number; i++) {
		char name[NAME] = {0};
		unsigned int value = 1;
		strncpy(name, names[i], NAME - 1);
		if (bpf_map_update_elem(map("names"), name, &value, BPF_ANY))
			return fail(names[i]);
	}
	return 0;
}

/* "follow PID" and "forget PID"; "whole": while all programs are attached. */
static int take_request(int whole)
{
	char line[64];
	unsigned int pid;
	if (!fgets(line, sizeof line, stdin))
		return 1;
	if (sscanf(line, "follow %u", &pid) == 1) {
		if (daemon_count < sizeof daemons / sizeof *daemons)
			daemons[daemon_count++] = pid;
		return whole ? follow(pid) : 0;
	}
	if (sscanf(line, "forget %u", &pid) == 1) {
		for (size_t i = 0; i < daemon_count; i++)
			if (daemons[i] == pid)
				daemons[i] = daemons[--daemon_count];
		return 0;
	}
	errno = EPROTO;
	return fail(line);
}

/* What a thread was doing when it was last traced says nothing of what it does now. */
static int forget_states(void)
{
	if (read_tasks())
		return -failure.code;
	for (unsigned int i = 0; i < task_count; i++) {
		struct task task = {.root = tasks[i].root,
				    .pid = tasks[i].pid,
				    .off_stack = -1,
				    .lock_stack = -1,
				    .number = -1};
		if (bpf_map_update_elem(map("tasks"), &tids[i], &task, BPF_EXIST) &&
		    errno != ENOENT)
			return fail("tasks");
	}
	return 0;
}

static int arm(void)
{
	if (forget_states() || attach(0))
		return -failure.code;
	for (size_t i = 0; i < daemon_count; i++)
		if (follow(daemons[i]))
			return -failure.code;
	return 0;
}

static int disarm(void)
{
	detach(1);
	/* A program that another CPU is running still has ended after this. */
	(void)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
	return drain();
}

static int watch(const char *base, unsigned long one_in, char **names, int number_of_names)
{
	struct pollfd ready[] = {{.fd = STDIN_FILENO, .events = POLLIN},
				 {.fd = ring_buffer__epoll_fd(ring), .events = POLLIN}};
	unsigned long number = 0;
	unsigned long long opened = 0, busy = 0;
	int is_open = 0, whole = 0;
	setvbuf(stdout, NULL, _IOLBF, 0);
	setvbuf(stdin, NULL, _IONBF, 0);
	if (watch_names(names, number_of_names) || open_window(base, number) || attach(1))
		return -failure.code;
	puts("watching");
	for (;;) {
		if (poll(ready, 2, is_open ? DRAIN_MS : -1) < 0 && errno != EINTR)
			return fail("poll");
		if (ready[0].revents) {
			int end = take_request(whole);
			if (end)
				return end < 0 ? end : 0;
		}
		if (drain())
			return -failure.code;
		unsigned long long at = (unsigned long long)clock_now();
		if (begun && !is_open) {
			whole = number % one_in == 0;
			if (whole && arm())
				return -failure.code;
			is_open = 1;
			opened = busy = at;
		}
		if (going_on)
			busy = at;
		int is_long = at - opened > LONGEST_NS;
		if (!is_open || (at - busy <= LINGER_NS && !is_long))
			continue;
		if (disarm())
			return -failure.code;
		if (going_on && !is_long) { /* a start has begun meanwhile */
			busy = (unsigned long long)clock_now();
			if (whole && (write_open(busy) || arm()))
				return -failure.code;
			continue;
		}
		if (close_window(number, whole) || open_window(base, ++number))
			return -failure.code;
		is_open = whole = 0;
	}
}

static int serve(void)
{
	char line[sizeof prefix];
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
	setvbuf(stdout, NULL, _IOLBF, 0);
	setvbuf(stdin, NULL, _IONBF, 0);
	puts("loaded");
	for (;;) {
		int n = poll(&input, 1, heads ? DRAIN_MS : -1);
		if (n < 0 && errno != EINTR)
			return fail("poll");
		if (heads && drain())
			return -failure.code;
		if (n <= 0)
			continue;
		if (!fgets(line, sizeof line, stdin))
			return 0;
		line[strcspn(line, "\n")] = 0;
		int error = !strncmp(line, "start ", 6) && !heads ? start(line + 6)
			    : !strcmp(line, "stop") && heads      ? stop()
								  : (errno = EPROTO, fail(line));
		if (error)
			return error;
	}
}

static const char *subject(int take)
{
	switch (take) {
	case IGNORE:
	case ASLEEP:
	case PARKED:
		return "ignored";
	case PATH0:
		return "path0";
	case PATH1:
	case MOUNT:
		return "path1";
	case FD:
	case SEND:
	case SENDMSG:
	case ADDRESS:
		return "fd";
	default:
		return "none";
	}
}

int main(int argc, char **argv)
{
	libbpf_set_print(hush);
	signal(SIGINT, SIG_IGN); /* Ctrl-C is for the lab to handle, in order */
	if (argc > 1 && !strcmp(argv[1], "--preemptible")) {
		is_preemptible = 1;
		argc--;
		argv++;
	}
	if (argc == 2 && !strcmp(argv[1], "--calls")) {
		for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
			printf("%d %s %s\n", calls[i].number, calls[i].name,
			       subject(calls[i].take));
		return 0;
	}
	struct settings settings = {0};
	int bad;
	if (argc == 3 && !strcmp(argv[1], "--probe")) {
		bad = load(argv[2], settings, RING_LARGEST) || attach(0);
		detach(0);
	} else if (argc >= 6 && !strcmp(argv[1], "--watch") && strtoul(argv[4], NULL, 10)) {
		settings.watch = 1;
		bad = load(argv[2], settings, RING_LARGEST) ||
		      watch(argv[3], strtoul(argv[4], NULL, 10), argv + 5, argc - 5);
	} else if (argc == 3 || argc == 4) {
		unsigned int size =
			argc == 4 ? (unsigned int)strtoul(argv[3], NULL, 10) : RING_LARGEST;
		settings.generator = (unsigned int)strtoul(argv[2], NULL, 10);
		bad = load(argv[1], settings, size) || serve();
	} else {
		fputs("usage: trace [--preemptible] --probe OBJECT | --calls | OBJECT GENERATOR_PID [RING_BYTES] | "
		      "--watch OBJECT PREFIX ONE_IN NAME...\n",
		      stderr);
		return 1;
	}
	if (bad)
		fprintf(stderr, "trace: %s\n", failure.text);
	return bad ? 1 : 0;
}
