/* The load generator: starts commands when they were asked for, stamps them, reads what they say.
 *
 * A small single-threaded process with real-time priority, so that a hundred runtimes that fight
 * for the CPU do not make it late. It talks over the socket on the descriptor that its argument
 * names, and answers each request once, when the whole of it is done:
 *
 *   request  struct request, then for each start: struct start, then its strings, each ending in
 *            NUL: argv, environment, working directory; or, where argc is 0, what to ask whom for
 *            it: the path of a seqpacket socket, a greeting, the message
 *   RUN      start each at its time; done when each said "firstlight ready" or "firstlight error",
 *            or has exited, or is past its deadline (expired, and left as it is, to be looked at)
 *   STOP     end the standard input of every start of one batch and kill the expired; done when
 *            all have exited, or after the deadline have been killed; with the last batch its
 *            orphans are killed as well
 *   answer   struct answer, then for each start: struct record, then its output
 *
 * A start whose flag INHERIT is set keeps our standard streams and every
 * descriptor that we were started with; others read from a pipe that ends
 * at STOP and write to one that we read. One that is asked for gets the same streams with the
 * message, and its connection is open and greeted before the first start of its batch is due. The
 * answers are those of the agile runtime's protocol: "error", "ended", and others, which are kept as
 * lines "firstlight answer TEXT". When the connection ends, so has the instance. Of more output than fits, what is not "firstlight ..." is
 * dropped, the oldest first. When the socket ends, everything is killed.
 * Stamps are CLOCK_MONOTONIC in ns. Integers are in host order.
 */
#include "launch_ask.h"
#include "launch_instance.h"
#include "launch_text.h"

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

enum { BATCHES = 64 };

static int control; /* the lab's end of it asks; our number for ours is the lab's choice */
static const int64_t UNKILLABLE_NS = 10000000000LL;

enum { RUN = 1, STOP = 2 };

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

struct batch {
	struct instance *instances;
	uint32_t count;
	int life; /* write end of the batch's standard input */
	char *strings, **pointers;
};

static struct batch batches[BATCHES];
int events = -1;
static int children = -1;

int64_t now(void)
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

void die(const char *what)
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
		ssize_t n = read(control, at, size);
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
		ssize_t n = send(control, at, size, MSG_NOSIGNAL);
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

void watch(int fd, struct instance *instance)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = instance};
	if (epoll_ctl(events, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

static struct instance *find(pid_t pid)
{
	for (struct batch *batch = batches; batch < batches + BATCHES; batch++)
		for (uint32_t i = 0; i < batch->count; i++)
			if (batch->instances[i].record.pid == pid && batch->instances[i].record.status == -1)
				return &batch->instances[i];
	return NULL;
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
		if (instance)
			instance_exited(instance, status, &usage);
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
		else
			instance_hear(ready[i].data.ptr);
	}
	return open;
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
		instance->out = instance->connection = -1;
		instance->record.status = -1;
		instance->asks = !start.argc;
		uint32_t counts[] = {instance->asks ? ASKED : start.argc, start.envc, !instance->asks};
		char **lists[] = {instance->argv = pointer, instance->envp = pointer + counts[0] + 1,
				  &instance->cwd};
		if ((instance->asks && start.envc) ||
		    counts[0] + (uint64_t)start.envc > request->bytes)
			return -1;
		for (int list = 0; list < 3; list++)
			for (uint32_t j = 0; j < counts[list]; j++) {
				char *nul = memchr(at, 0, (size_t)(stop - at));
				if (!nul)
					return -1;
				lists[list][j] = at;
				at = nul + 1;
			}
		pointer += counts[0] + start.envc + 2;
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
	for (uint32_t i = 0; i < batch->count; i++)
		instance_forget(&batch->instances[i]);
	if (batch->life >= 0)
		close(batch->life);
	free(batch->instances);
	free(batch->pointers);
	free(batch->strings);
	*batch = (struct batch){.life = -1};
}

/* Before any start is due: who asks for starts on this node has a connection open. */
static void connect_all(struct batch *batch, int64_t until)
{
	for (struct instance *one = batch->instances; one < batch->instances + batch->count; one++) {
		if (!one->asks)
			continue;
		one->connection = ask_connect(one->argv[SOCKET], one->argv[GREETING], until, control);
		one->refused = one->connection < 0 ? errno : ECONNRESET;
		if (one->connection >= 0)
			watch(one->connection, one);
	}
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
	connect_all(batch, now() + request->deadline);
	int sequential = request->flags & SEQUENTIAL, open = 1;
	int64_t begin = request->begin ? request->begin : now();
	uint32_t started = 0;
	while (open) {
		int64_t next = INT64_MAX;
		uint32_t waiting = 0;
		for (uint32_t i = 0; i < started; i++) {
			struct instance *instance = &batch->instances[i];
			if (instance_settled(instance))
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
				instance_start(instance, input[0], request->flags);
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
			instance_kill(&batch->instances[i], request->flags);
	while (open && alive) {
		alive = 0;
		for (uint32_t i = 0; i < batch->count; i++)
			alive |= batch->instances[i].record.status == -1;
		if (alive && now() >= until) {
			for (uint32_t i = 0; i < batch->count; i++)
				instance_kill(&batch->instances[i], request->flags);
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
	control = argc == 2 ? (int)strtol(argv[1], NULL, 10) : -1;
	if (fcntl(control, F_SETFD, FD_CLOEXEC))
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
	    epoll_ctl(events, EPOLL_CTL_ADD, control, &on_end))
		die("epoll_ctl");
	be_prompt();
	allow_files();
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
