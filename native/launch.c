/* The load generator: starts commands when they were asked for, stamps them, reads what they say.
 *
 * A small single-threaded process with real-time priority, so that a hundred runtimes that fight
 * for the CPU do not make it late. It talks over the socket on the descriptor that its argument
 * names, and answers each request once, when the whole of it is done:
 *
 *   request  struct request, then for each start: struct start, then its strings, each ending in
 *            NUL: argv, environment, working directory
 *   RUN      start each at its time; done when each said "firstlight ready" or "firstlight error",
 *            or has exited, or is past its deadline (expired, and left as it is, to be looked at)
 *   STOP     end the standard input of every start of one batch and kill the expired; done when
 *            all have exited, or after the deadline have been killed; with the last batch its
 *            orphans are killed as well
 *   answer   struct answer, then for each start: struct record, then its output
 *
 * A start whose flag INHERIT is set keeps our standard streams; others read from a pipe that ends
 * at STOP and write to one that we read. Of more output than fits, what is not "firstlight ..." is
 * dropped, the oldest first. When the socket ends, everything is killed.
 * Stamps are CLOCK_MONOTONIC in ns. Integers are in host order.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CONTROL = 3, OUTPUT_MAX = 16384, BATCHES = 64, READS = 32 };
static const int64_t UNKILLABLE_NS = 10000000000LL;

enum { RUN = 1, STOP = 2 };
enum { SEQUENTIAL = 1, INHERIT = 2 };

struct request {
	uint32_t verb, batch, count, flags;
	int64_t begin; /* 0: now */
	int64_t deadline; /* ns after a start's time, or after STOP */
	uint64_t bytes; /* of what follows */
};

struct start {
	int64_t offset; /* ns after begin */
	uint32_t argc, envc;
};

struct answer {
	uint32_t batch, count;
};

struct record {
	int64_t intended, spawned, seen, exited;
	int64_t user, system;
	int32_t pid, status; /* status: as waitpid gives it, -1 while alive */
	uint32_t expired, output;
};

struct instance {
	struct record record;
	char **argv, **envp, *cwd;
	int64_t offset;
	int out;
	char *text;
};

struct batch {
	struct instance *instances;
	uint32_t count;
	int life; /* write end of the batch's standard input */
	char *strings, **pointers;
};

static struct batch batches[BATCHES];
static int events = -1, children = -1;

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Kills whatever is still our child, until nothing is: orphans' orphans come to us as well. */
static void end(void)
{
	for (int round = 0; round < 1000; round++) {
		FILE *list = fopen("/proc/thread-self/children", "re");
		int pid, found = 0;
		while (list && fscanf(list, "%d", &pid) == 1)
			found = !kill(pid, SIGKILL) || found;
		if (list)
			fclose(list);
		if (!found)
			return;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		poll(NULL, 0, 2);
	}
}

static void die(const char *what)
{
	fprintf(stderr, "launch: %s: %s\n", what, strerror(errno));
	end();
	exit(1);
}

static void *allocate(size_t count, size_t size)
{
	void *memory = calloc(count ? count : 1, size);
	if (!memory)
		die("calloc");
	return memory;
}

/* Returns 0 at the end of the stream. */
static int receive(void *to, size_t size)
{
	for (char *at = to; size;) {
		ssize_t n = read(CONTROL, at, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != ECONNRESET) /* it left an answer unread */
			die("read control");
		if (n <= 0)
			return 0;
		at += n;
		size -= (size_t)n;
	}
	return 1;
}

static void answer(const void *from, size_t size)
{
	for (const char *at = from; size;) {
		ssize_t n = send(CONTROL, at, size, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
			return; /* the next reading sees the end */
		if (n < 0)
			die("write control");
		at += n;
		size -= (size_t)n;
	}
}

static void be_prompt(void)
{
	struct sched_param fifo = {.sched_priority = 1};
	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo))
		(void)setpriority(PRIO_PROCESS, 0, -20); /* best effort: lateness is reported */
}

/* Between fork and exec; standard error is already the instance's own. */
static void execute(const struct instance *instance, const int streams[2], uint32_t flags)
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setpriority(PRIO_PROCESS, 0, 0);
	if (!(flags & INHERIT)) {
		setsid();
		if (dup2(streams[0], 0) < 0 || dup2(streams[1], 1) < 0 || dup2(streams[1], 2) < 0)
			_exit(127);
	}
	close_range(3, ~0U, 0);
	if (chdir(instance->cwd) == 0)
		execve(instance->argv[0], instance->argv, instance->envp);
	dprintf(STDOUT_FILENO, "firstlight error execute %s: %s\n", instance->argv[0], strerror(errno));
	_exit(127);
}

static void watch(int fd, struct instance *instance)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = instance};
	if (epoll_ctl(events, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

static void spawn(struct instance *instance, int input, uint32_t flags)
{
	int out[2] = {-1, -1};
	if (!(flags & INHERIT) && pipe2(out, O_CLOEXEC))
		die("pipe2");
	instance->record.spawned = now();
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0)
		execute(instance, (int[2]){input, out[1]}, flags);
	instance->record.pid = pid;
	instance->out = out[0];
	if (out[0] >= 0) {
		close(out[1]);
		fcntl(out[0], F_SETFL, O_NONBLOCK);
		watch(out[0], instance);
	}
}

/* The length of the first line of a text, with its end; the whole text if it has none. */
static size_t line_length(const char *text, size_t size)
{
	const char *newline = memchr(text, '\n', size);
	return newline ? (size_t)(newline - text) + 1 : size;
}

static int starts_with(const char *text, size_t size, const char *word)
{
	return size >= strlen(word) && !memcmp(text, word, strlen(word));
}

/* A whole line that starts with "firstlight ready" or "firstlight error". */
static int has_spoken(const char *text, size_t size)
{
	for (size_t length; size; text += length, size -= length) {
		length = line_length(text, size);
		if (text[length - 1] == '\n' && (starts_with(text, length, "firstlight ready ") ||
						 starts_with(text, length, "firstlight error ")))
			return 1;
	}
	return 0;
}

/* Drops the oldest lines that are not ours; of one that has no end yet, what follows its beginning. */
static void make_room(struct instance *instance)
{
	char *text = instance->text;
	size_t size = instance->record.output, kept = 0, length;
	for (size_t at = 0; at < size; at += length) {
		length = line_length(text + at, size - at);
		if (text[at + length - 1] == '\n' && at - kept < OUTPUT_MAX / 2 &&
		    !starts_with(text + at, length, "firstlight "))
			continue;
		memmove(text + kept, text + at, length);
		kept += length;
	}
	instance->record.output = (uint32_t)(kept < OUTPUT_MAX ? kept : OUTPUT_MAX / 2);
}

static void stop_hearing(struct instance *instance)
{
	if (instance->out >= 0) {
		epoll_ctl(events, EPOLL_CTL_DEL, instance->out, NULL); /* a fork may hold it for now */
		close(instance->out);
	}
	instance->out = -1;
}

/* A pipe's worth at a time: one that never ceases must not keep the others waiting. */
static void hear(struct instance *instance)
{
	struct record *record = &instance->record;
	for (int reads = 0; reads < READS; reads++) {
		if (record->output == OUTPUT_MAX)
			make_room(instance);
		ssize_t n = read(instance->out, instance->text + record->output, OUTPUT_MAX - record->output);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			stop_hearing(instance);
			return;
		}
		record->output += (uint32_t)n;
		if (!record->seen && has_spoken(instance->text, record->output))
			record->seen = now();
	}
}

static struct instance *find(pid_t pid)
{
	for (struct batch *batch = batches; batch < batches + BATCHES; batch++)
		for (uint32_t i = 0; i < batch->count; i++)
			if (batch->instances[i].record.pid == pid && batch->instances[i].record.status == -1)
				return &batch->instances[i];
	return NULL;
}

static int64_t nanoseconds(struct timeval t)
{
	return t.tv_sec * 1000000000LL + t.tv_usec * 1000LL;
}

/* Orphans of an instance come to us as well, being its subreaper: they are only reaped. */
static void reap(void)
{
	struct signalfd_siginfo info;
	struct rusage usage;
	int status;
	pid_t pid;
	while (read(children, &info, sizeof(info)) > 0)
		;
	while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
		struct instance *instance = find(pid);
		if (!instance)
			continue;
		instance->record.exited = now();
		instance->record.status = status;
		instance->record.user = nanoseconds(usage.ru_utime);
		instance->record.system = nanoseconds(usage.ru_stime);
		if (instance->out >= 0)
			hear(instance);
	}
}

/* Returns 0 when the control socket has ended. */
static int serve_events(int64_t until)
{
	struct epoll_event ready[64];
	int64_t left = until - now();
	if (left < 0)
		left = 0;
	struct timespec timeout = {left / 1000000000LL, left % 1000000000LL};
	int n = (int)syscall(SYS_epoll_pwait2, events, ready, 64, &timeout, NULL, 0);
	if (n < 0 && errno != EINTR)
		die("epoll_pwait2");
	int open = 1;
	for (int i = 0; i < n; i++) {
		if (ready[i].data.ptr == &children)
			reap();
		else if (ready[i].data.ptr == &events)
			open = 0; /* only its end is watched, by EPOLLRDHUP */
		else if (((struct instance *)ready[i].data.ptr)->out >= 0)
			hear(ready[i].data.ptr);
	}
	return open;
}

static int settled(const struct instance *instance)
{
	return instance->record.seen || instance->record.status != -1;
}

static void kill_instance(struct instance *instance, uint32_t flags)
{
	if (instance->record.status != -1 || instance->record.pid <= 0)
		return;
	kill(flags & INHERIT ? instance->record.pid : -instance->record.pid, SIGKILL);
}

/* Points argv, environment and directory of each start into the received strings. */
static int parse(struct batch *batch, const struct request *request)
{
	char *at = batch->strings, *stop = at + request->bytes;
	batch->pointers = allocate(request->bytes + 3 * (size_t)request->count, sizeof(char *));
	char **pointer = batch->pointers;
	for (uint32_t i = 0; i < request->count; i++) {
		struct instance *instance = &batch->instances[i];
		struct start start;
		if ((size_t)(stop - at) < sizeof(start))
			return -1;
		memcpy(&start, at, sizeof(start));
		at += sizeof(start);
		instance->offset = start.offset;
		instance->text = allocate(OUTPUT_MAX + 1, 1);
		instance->out = -1;
		instance->record.status = -1;
		char **lists[] = {instance->argv = pointer, instance->envp = pointer + start.argc + 1,
				  &instance->cwd};
		uint32_t counts[] = {start.argc, start.envc, 1};
		if (!start.argc || start.argc + (uint64_t)start.envc > request->bytes)
			return -1;
		for (int list = 0; list < 3; list++)
			for (uint32_t j = 0; j < counts[list]; j++) {
				char *nul = memchr(at, 0, (size_t)(stop - at));
				if (!nul)
					return -1;
				lists[list][j] = at;
				at = nul + 1;
			}
		pointer += start.argc + start.envc + 2;
	}
	return 0;
}

static void report(const struct batch *batch, uint32_t number)
{
	struct answer head = {number, batch->count};
	answer(&head, sizeof(head));
	for (uint32_t i = 0; i < batch->count; i++) {
		answer(&batch->instances[i].record, sizeof(struct record));
		answer(batch->instances[i].text, batch->instances[i].record.output);
	}
}

static void forget(struct batch *batch)
{
	for (uint32_t i = 0; i < batch->count; i++) {
		stop_hearing(&batch->instances[i]);
		free(batch->instances[i].text);
	}
	if (batch->life >= 0)
		close(batch->life);
	free(batch->instances);
	free(batch->pointers);
	free(batch->strings);
	*batch = (struct batch){.life = -1};
}

static int run(struct batch *batch, const struct request *request)
{
	int input[2];
	batch->count = request->count;
	batch->instances = allocate(request->count, sizeof(struct instance));
	batch->strings = allocate(request->bytes, 1);
	if (!receive(batch->strings, request->bytes))
		return 0;
	if (parse(batch, request)) {
		errno = EPROTO;
		die("a request that is not of the protocol");
	}
	/* A traced command's daemons are its user's; a measured start's orphans are ours to end. */
	if (pipe2(input, O_CLOEXEC) || prctl(PR_SET_CHILD_SUBREAPER, !(request->flags & INHERIT)))
		die("pipe2");
	batch->life = input[1];
	int sequential = request->flags & SEQUENTIAL, open = 1;
	int64_t begin = request->begin ? request->begin : now();
	uint32_t started = 0;
	while (open) {
		int64_t next = INT64_MAX;
		uint32_t waiting = 0;
		for (uint32_t i = 0; i < started; i++) {
			struct instance *instance = &batch->instances[i];
			if (settled(instance))
				continue;
			int64_t deadline = instance->record.intended + request->deadline;
			if (deadline <= now()) {
				instance->record.expired = 1;
				continue;
			}
			waiting++;
			next = deadline < next ? deadline : next;
		}
		if (started < request->count && !(sequential && waiting)) {
			struct instance *instance = &batch->instances[started];
			int64_t due = sequential && started ? now() : begin + instance->offset;
			if (due <= now()) {
				instance->record.intended = due;
				spawn(instance, input[0], request->flags);
				started++;
				continue;
			}
			next = due < next ? due : next;
		} else if (!waiting) {
			break;
		}
		open = serve_events(next);
	}
	close(input[0]);
	if (open)
		report(batch, request->batch);
	return open;
}

static int is_last(const struct batch *batch)
{
	for (const struct batch *other = batches; other < batches + BATCHES; other++)
		if (other != batch && other->instances)
			return 0;
	return 1;
}

static int stop(struct batch *batch, const struct request *request)
{
	int64_t until = now() + request->deadline;
	int open = 1, alive = 1, killed = 0;
	if (batch->life >= 0)
		close(batch->life);
	batch->life = -1;
	for (uint32_t i = 0; i < batch->count; i++)
		if (batch->instances[i].record.expired)
			kill_instance(&batch->instances[i], request->flags);
	while (open && alive) {
		alive = 0;
		for (uint32_t i = 0; i < batch->count; i++)
			alive |= batch->instances[i].record.status == -1;
		if (alive && now() >= until) {
			for (uint32_t i = 0; i < batch->count; i++)
				kill_instance(&batch->instances[i], request->flags);
			if (killed)
				break; /* stuck in the kernel: reported as alive */
			killed = 1;
			until = now() + UNKILLABLE_NS;
		}
		if (alive)
			open = serve_events(until);
	}
	if (open && is_last(batch))
		end(); /* orphans */
	if (open)
		report(batch, request->batch);
	forget(batch);
	return open;
}

int main(int argc, char **argv)
{
	sigset_t child;
	struct request request;
	for (int i = 0; i < BATCHES; i++)
		batches[i].life = -1;
	int given = argc == 2 ? (int)strtol(argv[1], NULL, 10) : -1;
	if ((given != CONTROL && dup2(given, CONTROL) < 0) || fcntl(CONTROL, F_SETFD, FD_CLOEXEC) ||
	    (given != CONTROL && close(given)))
		die("control socket, the only argument");
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigaddset(&child, SIGINT); /* Ctrl-C is for the lab to handle, in order */
	sigaddset(&child, SIGTERM);
	sigprocmask(SIG_BLOCK, &child, NULL);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	events = epoll_create1(EPOLL_CLOEXEC);
	if (children < 0 || events < 0)
		die("set up");
	struct epoll_event on_child = {.events = EPOLLIN, .data.ptr = &children};
	struct epoll_event on_end = {.events = EPOLLRDHUP, .data.ptr = &events};
	if (epoll_ctl(events, EPOLL_CTL_ADD, children, &on_child) ||
	    epoll_ctl(events, EPOLL_CTL_ADD, CONTROL, &on_end))
		die("epoll_ctl");
	be_prompt();
	while (receive(&request, sizeof(request))) {
		struct batch *batch = &batches[request.batch % BATCHES];
		int free_slot = !batch->instances;
		if (request.verb == RUN && free_slot ? !run(batch, &request)
		    : request.verb == STOP	     ? !stop(batch, &request)
						     : (errno = EPROTO, die("request"), 1))
			break;
	}
	end();
	return 0;
}
