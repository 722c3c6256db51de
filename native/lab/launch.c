/* The load generator: makes starts at their times, stamps them and reads their output.
 *
 * A small single-threaded process with real-time priority, so a hundred runtimes competing for the
 * CPU do not make it late. It talks over the socket on the descriptor named by its argument, and
 * answers each request once, when all of it is done:
 *
 *   request  struct launch_request, then for each start: struct launch_start, then its strings, each
 *            ending in NUL: argv, environment, working directory; or, if argc is 0, the request to a
 *            resident runtime: the path of a seqpacket socket, a greeting, the message
 *   RUN      make each start at its time; done when each has printed "firstlight ready" or
 *            "firstlight error", has exited, or is past its deadline (expired, and left as it is for
 *            inspection)
 *   STOP     end the standard input of every start of one batch and kill the expired ones; done when
 *            all have exited, or have been killed after the deadline; with the last batch, its
 *            orphans are killed too
 *   answer   struct answer, then for each start: struct record, then its output
 *
 * A start with the flag INHERIT keeps our standard streams and every descriptor that we were started
 * with; others read from a pipe that ends at STOP and write to one that we read. A request to a
 * resident runtime carries the same streams, and its connection is open and greeted before the first
 * start of its batch is due. The answers are those of the agile runtime's protocol: "error", "ended",
 * and others, which are kept as lines "firstlight answer TEXT". An instance has ended when its
 * connection ends. If output does not fit, lines other than "firstlight ..." are dropped, the oldest
 * first. When the socket ends, everything is killed. Stamps are CLOCK_MONOTONIC in ns. Integers are
 * in host order.
 *
 * It is C because a late start is an error of the measurement: an interpreter that has to fork a
 * hundred times and read all the output is late by milliseconds.
 */
#include "common/clock.h"
#include "common/error.h"
#include "lab/launch_ask.h"
#include "lab/launch_instance.h"
#include "lab/launch_text.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
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
#include <unistd.h>

enum { BATCHES = 64, ORPHAN_ROUNDS = 1000, ORPHAN_MS = 2 };
static const int64_t UNKILLABLE_NS = 10 * CLOCK_SECOND;

struct batch {
	struct launch_instance *instances;
	uint32_t count;
	int life; /* write end of the batch's standard input */
	char *strings, **pointers;
};

static struct batch batches[BATCHES];
static int control; /* requests come from the lab's end; the lab chose our number for ours */
static int events, children;
static int has_ended; /* the control socket: nothing is answered any more */

/* Kills our children until none is left: orphans' orphans come to us as well. */
static void kill_children(void)
{
	for (int round = 0; round < ORPHAN_ROUNDS; round++) {
		FILE *list = fopen("/proc/thread-self/children", "re");
		int pid, count = 0;
		while (list && fscanf(list, "%d", &pid) == 1)
			count += !kill(pid, SIGKILL);
		if (list)
			(void)fclose(list);
		if (!count)
			return;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		(void)poll(NULL, 0, ORPHAN_MS);
	}
}

/* At the end of the stream nothing more is read, and ``has_ended`` is set. */
static int receive(void *to, size_t size, struct error *error)
{
	for (char *at = to; size;) {
		ssize_t n = read(control, at, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != ECONNRESET) /* it left an answer unread */
			return error_set(error, errno, "read control");
		if (n <= 0) {
			has_ended = 1;
			return 0;
		}
		at += n;
		size -= (size_t)n;
	}
	return 0;
}

static int answer(const void *from, size_t size, struct error *error)
{
	for (const char *at = from; size;) {
		ssize_t n = send(control, at, size, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
			return 0; /* the next reading sees the end */
		if (n < 0)
			return error_set(error, errno, "write control");
		at += n;
		size -= (size_t)n;
	}
	return 0;
}

static void be_prompt(void)
{
	struct sched_param fifo = {.sched_priority = 1};
	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo))
		(void)setpriority(PRIO_PROCESS, 0, -20); /* best effort: lateness is reported */
}

static struct launch_instance *find(pid_t pid)
{
	for (struct batch *batch = batches; batch < batches + BATCHES; batch++)
		for (uint32_t i = 0; i < batch->count; i++) {
			struct launch_instance *instance = &batch->instances[i];
			if (instance->record.pid == pid && instance->record.status == -1)
				return instance;
		}
	return NULL;
}

/* Orphans of an instance come to us as well, its subreaper: they are only reaped. */
static void reap(void)
{
	struct signalfd_siginfo info;
	struct rusage usage;
	int status;
	pid_t pid;
	while (read(children, &info, sizeof info) > 0)
		;
	while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
		struct launch_instance *instance = find(pid);
		if (instance)
			launch_instance_exited(instance, status, &usage);
	}
}

static int serve_events(int64_t until, struct error *error)
{
	struct epoll_event ready[64];
	int64_t left = until - clock_now();
	if (left < 0)
		left = 0;
	struct timespec timeout = {left / CLOCK_SECOND, left % CLOCK_SECOND};
	int n = (int)syscall(SYS_epoll_pwait2, events, ready, 64, &timeout, NULL, 0);
	if (n < 0 && errno != EINTR)
		return error_set(error, errno, "epoll_pwait2");
	for (int i = 0; i < n; i++) {
		if (ready[i].data.ptr == &children)
			reap();
		else if (ready[i].data.ptr == &events)
			has_ended = 1; /* only its end is watched, by EPOLLRDHUP */
		else
			launch_instance_read(ready[i].data.ptr);
	}
	return 0;
}

/* Takes ``count`` strings from what was received. */
static int take_strings(char **at, const char *stop, char **to, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		char *nul = memchr(*at, 0, (size_t)(stop - *at));
		if (!nul)
			return -EPROTO;
		to[i] = *at;
		*at = nul + 1;
	}
	return 0;
}

/* Points argv, environment and directory of each start into the received strings. */
static int parse(struct batch *batch, const struct launch_request *request)
{
	char *at = batch->strings, *stop = at + request->bytes, **pointer = batch->pointers;
	for (uint32_t i = 0; i < request->count; i++) {
		struct launch_instance *instance = &batch->instances[i];
		struct launch_start start;
		if ((size_t)(stop - at) < sizeof start)
			return -EPROTO;
		memcpy(&start, at, sizeof start);
		at += sizeof start;
		instance->asks = !start.argc;
		uint32_t argc = instance->asks ? ASK_STRINGS : start.argc;
		if ((instance->asks && start.envc) || (uint64_t)argc + start.envc > request->bytes)
			return -EPROTO;
		instance->offset = start.offset;
		instance->argv = pointer;
		instance->envp = pointer + argc + 1;
		pointer += argc + start.envc + 2;
		if (take_strings(&at, stop, instance->argv, argc) ||
		    take_strings(&at, stop, instance->envp, start.envc) ||
		    take_strings(&at, stop, &instance->cwd, !instance->asks))
			return -EPROTO;
	}
	return 0;
}

static int report(const struct batch *batch, uint32_t number, struct error *error)
{
	struct launch_answers head = {number, batch->count};
	int bad = answer(&head, sizeof head, error);
	for (uint32_t i = 0; i < batch->count && !bad; i++) {
		const struct launch_instance *instance = &batch->instances[i];
		bad = answer(&instance->record, sizeof instance->record, error);
		bad = bad ? bad : answer(instance->text, instance->record.output, error);
	}
	return bad;
}

static void release(struct batch *batch)
{
	for (uint32_t i = 0; i < batch->count; i++)
		launch_instance_release(&batch->instances[i]);
	if (batch->life >= 0)
		close(batch->life);
	free(batch->instances);
	free(batch->pointers);
	free(batch->strings);
	*batch = (struct batch){.life = -1};
}

/* Before any start is due, so that the connection for starts on this node is open. */
static int connect_all(struct batch *batch, int64_t until, struct error *error)
{
	int bad = 0;
	for (uint32_t i = 0; i < batch->count && !bad; i++) {
		struct launch_instance *instance = &batch->instances[i];
		if (!instance->asks)
			continue;
		instance->connection = launch_ask_connect(
			instance->argv[ASK_SOCKET], instance->argv[ASK_GREETING], until, control);
		instance->refused = instance->connection < 0 ? -instance->connection : ECONNRESET;
		if (instance->connection >= 0)
			bad = launch_instance_watch(instance, instance->connection, error);
	}
	return bad;
}

static int prepare(struct batch *batch, const struct launch_request *request, struct error *error)
{
	uint64_t pointers = request->bytes + 3 * (uint64_t)request->count + 1;
	batch->instances = calloc((size_t)request->count + 1, sizeof *batch->instances);
	batch->strings = calloc(request->bytes + 1, 1);
	batch->pointers = calloc(pointers, sizeof *batch->pointers);
	if (!batch->instances || !batch->strings || !batch->pointers)
		return error_set(error, ENOMEM, "calloc");
	batch->count = request->count;
	for (uint32_t i = 0; i < batch->count; i++) {
		struct launch_instance *instance = &batch->instances[i];
		*instance = (struct launch_instance){
			.out = -1, .connection = -1, .events = events, .record.status = -1};
		instance->text = calloc(LAUNCH_OUTPUT_MAX + 1, 1);
		if (!instance->text)
			return error_set(error, ENOMEM, "calloc");
	}
	int bad = receive(batch->strings, request->bytes, error);
	if (!bad && !has_ended && parse(batch, request))
		bad = error_set(error, EPROTO, "a request that is not of the protocol");
	return bad;
}

/* The next deadline, and how many started ones are not settled. Marks the expired. */
static int64_t next_deadline(struct batch *batch, uint32_t started, int64_t deadline,
			     uint32_t *waiting)
{
	int64_t next = INT64_MAX, now = clock_now();
	*waiting = 0;
	for (uint32_t i = 0; i < started; i++) {
		struct launch_instance *instance = &batch->instances[i];
		int64_t until = instance->record.intended + deadline;
		if (launch_instance_settled(instance))
			continue;
		if (until <= now) {
			instance->record.expired = 1;
			continue;
		}
		++*waiting;
		next = until < next ? until : next;
	}
	return next;
}

static int run(struct batch *batch, const struct launch_request *request, struct error *error)
{
	int input[2];
	int bad = prepare(batch, request, error);
	if (bad || has_ended)
		return bad;
	/* A traced command's daemons are its user's; a measured start's orphans are ours to end. */
	if (pipe2(input, O_CLOEXEC) ||
	    prctl(PR_SET_CHILD_SUBREAPER, !(request->flags & LAUNCH_INHERIT)))
		return error_set(error, errno, "pipe2");
	batch->life = input[1];
	bad = connect_all(batch, clock_now() + request->deadline, error);
	int is_sequence = request->flags & LAUNCH_SEQUENTIAL;
	int64_t begin = request->begin ? request->begin : clock_now();
	uint32_t started = 0, waiting;
	while (!bad && !has_ended) {
		int64_t next = next_deadline(batch, started, request->deadline, &waiting);
		if (started < request->count && !(is_sequence && waiting)) {
			struct launch_instance *instance = &batch->instances[started];
			int64_t due =
				is_sequence && started ? clock_now() : begin + instance->offset;
			if (due <= clock_now()) {
				instance->record.intended = due;
				bad = launch_instance_start(instance, input[0], request->flags,
							    error);
				started++;
				continue;
			}
			next = due < next ? due : next;
		} else if (!waiting) {
			break;
		}
		bad = serve_events(next, error);
	}
	close(input[0]);
	return bad || has_ended ? bad : report(batch, request->batch, error);
}

static int is_last(const struct batch *batch)
{
	for (const struct batch *other = batches; other < batches + BATCHES; other++)
		if (other != batch && other->instances)
			return 0;
	return 1;
}

static int is_alive(const struct batch *batch)
{
	for (uint32_t i = 0; i < batch->count; i++)
		if (batch->instances[i].record.status == -1)
			return 1;
	return 0;
}

static int stop(struct batch *batch, const struct launch_request *request, struct error *error)
{
	int64_t until = clock_now() + request->deadline;
	int bad = 0, has_killed = 0;
	if (batch->life >= 0)
		close(batch->life);
	batch->life = -1;
	for (uint32_t i = 0; i < batch->count; i++)
		if (batch->instances[i].record.expired)
			launch_instance_kill(&batch->instances[i], request->flags);
	while (!bad && !has_ended && is_alive(batch)) {
		if (clock_now() >= until) {
			if (has_killed)
				break; /* stuck in the kernel: reported as alive */
			for (uint32_t i = 0; i < batch->count; i++)
				launch_instance_kill(&batch->instances[i], request->flags);
			has_killed = 1;
			until = clock_now() + clock_longer(UNKILLABLE_NS);
		}
		bad = serve_events(until, error);
	}
	if (!bad && !has_ended && is_last(batch))
		kill_children(); /* orphans */
	if (!bad && !has_ended)
		bad = report(batch, request->batch, error);
	release(batch);
	return bad;
}

static int set_up(int argc, char **argv, struct error *error)
{
	sigset_t blocked, child;
	control = argc == 2 ? (int)strtol(argv[1], NULL, 10) : -1;
	if (fcntl(control, F_SETFD, FD_CLOEXEC))
		return error_set(error, errno, "control socket, the only argument");
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	sigaddset(&blocked, SIGINT); /* Ctrl-C is for the lab to handle, in order */
	sigaddset(&blocked, SIGTERM);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	(void)signal(SIGCHLD, SIG_DFL); /* if our parent ignored it, no child would have a status */
	children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	events = epoll_create1(EPOLL_CLOEXEC);
	if (sigprocmask(SIG_BLOCK, &blocked, NULL) || children < 0 || events < 0)
		return error_set(error, errno, "set up");
	struct epoll_event on_child = {.events = EPOLLIN, .data.ptr = &children};
	struct epoll_event on_end = {.events = EPOLLRDHUP, .data.ptr = &events};
	if (epoll_ctl(events, EPOLL_CTL_ADD, children, &on_child) ||
	    epoll_ctl(events, EPOLL_CTL_ADD, control, &on_end))
		return error_set(error, errno, "epoll_ctl");
	be_prompt();
	return launch_instance_allow_files(error);
}

static int serve_request(struct error *error)
{
	struct launch_request request;
	int bad = receive(&request, sizeof request, error);
	if (bad || has_ended)
		return bad;
	struct batch *batch = &batches[request.batch % BATCHES];
	if (request.verb == LAUNCH_RUN && !batch->instances)
		return run(batch, &request, error);
	if (request.verb == LAUNCH_STOP)
		return stop(batch, &request, error);
	return error_set(error, EPROTO, "request");
}

int main(int argc, char **argv)
{
	struct error error = {0};
	for (int i = 0; i < BATCHES; i++)
		batches[i].life = -1;
	int bad = set_up(argc, argv, &error);
	while (!bad && !has_ended)
		bad = serve_request(&error);
	if (bad)
		fprintf(stderr, "launch: %s\n", error.text);
	kill_children();
	return bad ? 1 : 0;
}
