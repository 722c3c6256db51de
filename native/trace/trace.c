/* Loads trace.bpf.o, attaches it on request, and writes its events to files.
 *
 *   trace --probe OBJECT            exit 0 if the programs load and attach here
 *   trace --preemptible …           any of these, if the kernel can preempt programs of system
 *                                   calls: each then has a copy, which takes what it missed
 *   trace --calls                   print "NUMBER NAME SUBJECT" of every known system call; SUBJECT
 *                                   is path0, path1, fd (argument 0), none or ignored
 *   trace OBJECT GENERATOR_PID [RING_BYTES]
 *                                   serve standard input, one line per request and answer:
 *       start PREFIX [PID...]   attach, and write to PREFIX.events and PREFIX.text; also follow
 *                      these processes, each as a root  -> "started"
 *       stop           detach, add whatever is unfinished, write PREFIX.stacks
 *                      (u32 stack, u64 addresses[STACK_DEPTH]) -> "stopped EVENTS LOST HOW"
 *
 *   trace --watch OBJECT ONE_IN MILLIONTHS NAME...
 *                                   follow programs of these names, whatever starts them, for NAME/ their
 *                                   children too, and for NAME// their children alone, until standard
 *                                   input ends. Only forks, executions and exits are followed until one
 *                                   begins; then the other programs are
 *                                   attached for one window in ONE_IN, or, if that is 0, as MILLIONTHS of
 *                                   the node's CPU time allow: see watch.c. Standard output is a socket
 *                                   of messages
 *                                   -> "watching", then "window AT LOST WHOLE LAST" for each, with the
 *                                   descriptors of its events, their text, the stacks, and the
 *                                   config.json of the bundles (u32 pid, u32 size, and its bytes).
 *                                   WHOLE is 1 if the other programs were attached, 2 if they were not
 *                                   though the window was one in ONE_IN, as the reader was behind; LAST is
 *                                   1 if nothing is going on, 2 if created containers wait for their start
 *       follow PID     follow this process too while a window is open
 *       forget PID     stop following it
 *       spent NS       a window was read, which took NS of CPU time; while 8 are unread, the next one
 *                      waits
 *
 * The ring buffer is drained every DRAIN_MS without wake-ups from the kernel, except that with "--watch"
 * an execution wakes us. It is C because the kernel fills the ring faster than an interpreter can empty
 * it, and events that do not fit are lost.
 */
#include "common/clock.h"
#include "trace/calls.h"
#include "trace/tracer.h"

#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static char prefix[4000];

static FILE *create(const char *suffix)
{
	char name[sizeof prefix + 16];
	snprintf(name, sizeof name, "%s.%s", prefix, suffix);
	FILE *file = fopen(name, "we");
	if (!file)
		tracer_fail(name);
	return file;
}

static int start(char *request)
{
	char *pid = strtok(request, " ");
	strncpy(prefix, pid ? pid : "", sizeof prefix - 1);
	tracer_out = (struct tracer_out){.events = create("events"), .texts = create("text")};
	(void)tracer_take_lost();
	if (!tracer_out.events || !tracer_out.texts || tracer_attach(0))
		return -tracer_failure.code;
	while ((pid = strtok(NULL, " ")))
		if (tracer_follow((unsigned int)strtoul(pid, NULL, 10)))
			return -tracer_failure.code;
	puts("started");
	return 0;
}

static int stop(void)
{
	tracer_detach(0);
	/* A program that still runs on another CPU has ended after this. */
	(void)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
	FILE *stacks = create("stacks");
	int error = !stacks || tracer_drain_all() ||
		    tracer_write_open((unsigned long long)clock_now()) || tracer_clear("numbers") ||
		    tracer_write_stacks(stacks);
	tracer_clear_tasks();
	error = (stacks && fclose(stacks)) || error;
	error = fclose(tracer_out.events) || error;
	error = fclose(tracer_out.texts) || error;
	unsigned long long written = tracer_out.written;
	tracer_out = (struct tracer_out){0};
	if (!error) {
		(void)tracer_take_lost();
		printf("stopped %llu %llu %s\n", written, tracer_losses.events,
		       tracer_losses.words);
	}
	return error ? tracer_fail("stop") : 0;
}

static int serve(void)
{
	char line[sizeof prefix];
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
	setvbuf(stdout, NULL, _IOLBF, 0);
	setvbuf(stdin, NULL, _IONBF, 0);
	puts("loaded");
	for (;;) {
		int n = poll(&input, 1, tracer_out.events ? DRAIN_MS : -1);
		if (n < 0 && errno != EINTR)
			return tracer_fail("poll");
		if (tracer_out.events && tracer_drain())
			return -tracer_failure.code;
		if (n <= 0)
			continue;
		if (!fgets(line, sizeof line, stdin))
			return 0;
		line[strcspn(line, "\n")] = 0;
		int error = !strncmp(line, "start ", 6) && !tracer_out.events ? start(line + 6)
			    : !strcmp(line, "stop") && tracer_out.events
				    ? stop()
				    : (errno = EPROTO, tracer_fail(line));
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

/* Programs and maps are files, and a caller's limit may be too low. */
static void raise_open_files(void)
{
	struct rlimit files;
	if (getrlimit(RLIMIT_NOFILE, &files))
		return;
	files.rlim_cur = files.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &files);
}

int main(int argc, char **argv)
{
	(void)signal(SIGINT, SIG_IGN); /* Ctrl-C is for the lab to handle, in order */
	raise_open_files();
	int preemptible = 0;
	if (argc > 1 && !strcmp(argv[1], "--preemptible")) {
		preemptible = 1;
		argc--;
		argv++;
	}
	if (argc == 2 && !strcmp(argv[1], "--calls")) {
		for (size_t i = 0; i < tracer_call_count; i++)
			printf("%d %s %s\n", tracer_calls[i].number, tracer_calls[i].name,
			       subject(tracer_calls[i].take));
		return 0;
	}
	struct settings settings = {0};
	int bad;
	if (argc == 3 && !strcmp(argv[1], "--probe")) {
		bad = tracer_load(argv[2], settings, RING_LARGEST, preemptible, tracer_write) ||
		      tracer_attach(0);
		tracer_detach(0);
	} else if (argc >= 6 && !strcmp(argv[1], "--watch")) {
		settings.watch = 1;
		bad = tracer_load(argv[2], settings, RING_LARGEST, preemptible, tracer_take) ||
		      tracer_watch(strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10), argv + 5,
				   argc - 5);
	} else if (argc == 3 || argc == 4) {
		unsigned int size =
			argc == 4 ? (unsigned int)strtoul(argv[3], NULL, 10) : RING_LARGEST;
		settings.generator = (unsigned int)strtoul(argv[2], NULL, 10);
		bad = tracer_load(argv[1], settings, size, preemptible, tracer_write) || serve();
	} else {
		fputs("usage: trace [--preemptible] --probe OBJECT | --calls | OBJECT GENERATOR_PID [RING_BYTES] | "
		      "--watch OBJECT ONE_IN MILLIONTHS NAME...\n",
		      stderr);
		return 1;
	}
	if (bad)
		fprintf(stderr, "trace: %s\n", tracer_failure.text);
	return bad ? 1 : 0;
}
