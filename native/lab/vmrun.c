/* Runs one hypervisor, hears its guest's serial console, and says when the guest is ready.
 *
 *   vmrun --log FILE [--ready REGEX | --exit STATUS] [--last REGEX] [--qmp]
 *         [--journal FILE] [--api SOCKET --requests FILE [--answered]] -- HYPERVISOR [ARG...]
 *
 * The hypervisor's standard output is the console. Each of its lines goes to FILE as "STAMP TEXT"
 * when it has arrived, and as "STAMP~TEXT" what there is of one when nothing follows for a moment;
 * what the hypervisor itself did goes there as "STAMP=WORD". The guest is ready with the first line
 * that --ready finds (a POSIX extended regular expression; also a line that is not finished, once
 * nothing follows), or when the hypervisor exits with STATUS. Its standard error is handed on, and
 * its last line is part of an error. A guest that prints "firstlight error TEXT" has failed.
 *
 * --qmp gives it a QMP monitor on descriptor 3 and tells it to continue: it must be started with
 * "-S". The monitor says when it let the guest run, and why the guest stopped.
 *
 * Of Firecracker, --journal names its own log, which tells when it let the guest run, and why it did
 * not. --api names its API's socket, and --requests what is asked there (vmapi.h); with --answered
 * the guest is ready when the last request was.
 *
 * When our standard input ends, the guest gets an empty line to read on its console, the line that
 * --last finds is waited for, then the hypervisor is killed; it is, too, when we are. Stamps are
 * CLOCK_MONOTONIC in ns.
 */
#include "vmapi.h"
#include "vmclock.h"
#include "vmjournal.h"
#include "vmmonitor.h"
#include "vmstream.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <regex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { QMP_FD = 3, QUIET_MS = 3, JOURNAL_MS = 250, LAST_WORDS_MS = 10000 };

struct machine {
	pid_t pid;
	int pidfd, log, keyboard;
	int status; /* as waitpid gives it, -1 while it runs */
	int64_t spawned, entered;
	struct stream console, complaints, monitor;
	regex_t ready_line, last_line;
	bool has_ready_line, has_last_line, is_ready, is_told, has_failed, has_said_all, has_panicked;
	bool has_api, ends_with_api;
	struct api api;
	const char *journal; /* Firecracker's */
	int64_t ready_stamp;
	int ready_status; /* -1: none */
	char last_said[STREAM_LINE_MAX + 1], last_complaint[STREAM_LINE_MAX + 1], stopped[64];
};

static void say(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	fflush(stdout);
}

static int fail(const char *what)
{
	say("firstlight error %s: %s\n", what, strerror(errno));
	return 1;
}

static void record(struct machine *vm, int64_t stamp, char kind, const char *text)
{
	char out[STREAM_LINE_MAX + 32];
	int size = snprintf(out, sizeof(out), "%lld%c%s\n", (long long)stamp, kind, text);
	if (write(vm->log, out, (size_t)size) != size && !vm->has_failed) {
		vm->has_failed = true;
		fail("write the console's log");
	}
}

static void enter(struct machine *vm, int64_t stamp)
{
	if (vm->entered || stamp <= vm->spawned)
		return;
	vm->entered = stamp;
	record(vm, stamp, '=', "entered");
	say("firstlight step hypervisor.init %lld %lld\n", (long long)vm->spawned, (long long)stamp);
}

static void read_journal(struct machine *vm)
{
	if (vm->journal && !vm->entered)
		enter(vm, journal_entered(vm->journal));
}

/* Nobody listens after this: what is to be known of a start comes before. */
static void tell(struct machine *vm)
{
	if (!vm->is_ready || vm->is_told)
		return;
	vm->is_told = true;
	read_journal(vm);
	say("firstlight ready %lld\n", (long long)vm->ready_stamp);
}

static void ready(struct machine *vm, int64_t stamp)
{
	if (vm->is_ready || vm->has_failed)
		return;
	vm->is_ready = true;
	vm->ready_stamp = stamp;
	if (!vm->has_api || vm->api.state == API_DONE)
		tell(vm);
}

/* What others print is theirs: an error is one line of printable text. */
static void make_plain(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < ' ' || *text == 0x7f)
			*text = ' ';
}

static void lost(struct machine *vm)
{
	char how[64];
	const char *stopped = vm->stopped, *said = vm->last_complaint;
	if (vm->is_ready || vm->has_failed)
		return;
	vm->has_failed = true;
	read_journal(vm);
	if (WIFSIGNALED(vm->status))
		snprintf(how, sizeof(how), "was ended by signal %d", WTERMSIG(vm->status));
	else
		snprintf(how, sizeof(how), "exited with status %d", WEXITSTATUS(vm->status));
	if (vm->journal)
		journal_complaint(vm->journal, vm->last_complaint, sizeof(vm->last_complaint));
	make_plain(vm->last_complaint);
	make_plain(vm->last_said);
	say("firstlight error the hypervisor %s before the guest was ready%s%s%s%s; the guest %s%s%s\n",
	    how, *stopped ? ": " : "", stopped, *said ? ": " : "", said,
	    *vm->last_said ? "last printed \"" : "printed nothing", vm->last_said, *vm->last_said ? "\"" : "");
}

static void on_console(void *context, struct stream *stream)
{
	struct machine *vm = context;
	static const char error[] = "firstlight error ";
	const char *text = stream->line;
	record(vm, stream->stamp, ' ', text);
	if (!strncmp(text, error, strlen(error)) && !vm->is_ready && !vm->has_failed) {
		vm->has_failed = true;
		make_plain(stream->line);
		say("%s\n", text);
	}
	if (text[strspn(text, " \t")] && !vm->has_panicked)
		strcpy(vm->last_said, text);
	vm->has_panicked |= strcasestr(text, "panic") != NULL; /* what follows says less */
	if (vm->has_ready_line && !vm->is_ready && !regexec(&vm->ready_line, text, 0, NULL, 0))
		ready(vm, stream->stamp);
	if (vm->has_last_line && !regexec(&vm->last_line, text, 0, NULL, 0))
		vm->has_said_all = true;
}

static void on_complaint(void *context, struct stream *stream)
{
	struct machine *vm = context;
	if (!strstr(stream->line, "warning: ") && stream->line[0])
		strcpy(vm->last_complaint, stream->line);
	say("%s\n", stream->line);
}

static void on_monitor(void *context, struct stream *stream)
{
	struct machine *vm = context;
	int64_t stamp;
	if (monitor_resumed(stream->line, vm->spawned, stream->stamp, &stamp))
		enter(vm, stamp);
	else if (!monitor_stopped(stream->line, vm->stopped, sizeof(vm->stopped)) &&
		 monitor_refused(stream->line))
		strcpy(vm->last_complaint, stream->line);
}

static void on_api(struct machine *vm)
{
	struct api *api = &vm->api;
	enum api_state state = api_advance(api);
	char steps[API_REQUESTS * 128];
	if (state == API_WAITING || state == API_ASKING)
		return;
	read_journal(vm);
	if (api_steps(api, vm->spawned, steps, sizeof(steps)))
		say("%s", steps);
	if (state == API_DONE && vm->ends_with_api)
		ready(vm, api->requests[api->count - 1].end);
	else if (state == API_DONE)
		tell(vm);
	else if (state == API_CLOSED)
		strcpy(vm->last_complaint, api->error); /* its process ends, and that is told */
	else if (!vm->has_failed)
		say("firstlight error the hypervisor's API: %s\n", api->error);
	vm->has_failed |= state == API_FAILED;
	api_end(api);
}

/* A prompt has no end: after a moment of silence it may be the ready line, too. */
static void look_at_unfinished(struct machine *vm)
{
	struct stream *console = &vm->console;
	console->line[console->size] = 0;
	record(vm, console->stamp, '~', console->line);
	if (vm->has_ready_line && !regexec(&vm->ready_line, console->line, 0, NULL, 0))
		ready(vm, console->stamp);
}

static void hear_all(struct machine *vm)
{
	stream_read(&vm->monitor, on_monitor, vm);
	stream_read(&vm->complaints, on_complaint, vm);
	stream_read(&vm->console, on_console, vm);
}

static void reap(struct machine *vm)
{
	int64_t stamp = now();
	while (waitpid(vm->pid, &vm->status, 0) < 0)
		if (errno != EINTR)
			return;
	close(vm->pidfd);
	vm->pidfd = -1;
	hear_all(vm);
	record(vm, stamp, '=', "ended");
	if (vm->ready_status >= 0 && WIFEXITED(vm->status) && WEXITSTATUS(vm->status) == vm->ready_status)
		ready(vm, stamp);
	tell(vm);
	lost(vm);
}

/* Serves until the hypervisor has ended, or our input has, or the time is over. */
static bool serve(struct machine *vm, int input, int64_t until)
{
	bool looked = true; /* at an unfinished line */
	for (;;) {
		struct pollfd polled[] = {
			{vm->console.fd, POLLIN, 0}, {vm->monitor.fd, POLLIN, 0},
			{vm->complaints.fd, POLLIN, 0}, {vm->pidfd, POLLIN, 0}, {input, POLLIN, 0},
			{vm->api.fd, POLLIN, 0},
		};
		int64_t left = (until - now()) / 1000000;
		if (left < 0)
			return true;
		bool is_unread = vm->journal && !vm->entered; /* a guest that hangs was entered, too */
		int longest = until == INT64_MAX ? is_unread ? JOURNAL_MS : -1 : (int)left + 1;
		int wait = looked ? longest : QUIET_MS;
		int n = poll(polled, 6, wait);
		if (n < 0 && errno != EINTR)
			return fail("poll"), false;
		if (n == 0 && !looked) {
			look_at_unfinished(vm);
			looked = true;
		} else if (n == 0) {
			read_journal(vm);
		}
		if (n <= 0)
			continue;
		if (polled[1].revents)
			stream_read(&vm->monitor, on_monitor, vm);
		if (polled[2].revents)
			stream_read(&vm->complaints, on_complaint, vm);
		if (polled[0].revents) {
			stream_read(&vm->console, on_console, vm);
			looked = !vm->console.size || vm->is_ready;
		}
		if (polled[5].revents)
			on_api(vm);
		if (polled[3].revents)
			reap(vm);
		if (polled[4].revents) {
			char drop[64];
			if (read(input, drop, sizeof(drop)) == 0)
				return true;
		}
		if (input < 0 && (vm->has_said_all || vm->pidfd < 0))
			return true;
	}
}

static void stop(struct machine *vm)
{
	if (vm->is_ready && vm->has_last_line && !vm->has_said_all && vm->pidfd >= 0) {
		signal(SIGPIPE, SIG_IGN); /* it may just have ended */
		if (write(vm->keyboard, "\n", 1) == 1)
			serve(vm, -1, now() + LAST_WORDS_MS * 1000000LL);
	}
	if (vm->pidfd >= 0) {
		kill(vm->pid, SIGKILL);
		vm->has_failed = true; /* its end is our doing, and tells nothing */
		reap(vm);
	}
	hear_all(vm);
	stream_finish(&vm->console, on_console, vm);
}

static int execute(pid_t parent, int keyboard, int console, int complaints, int monitor,
		   char **command)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent || dup2(keyboard, 0) < 0 ||
	    dup2(console, 1) < 0)
		return fail("prepare the hypervisor's process");
	if (monitor >= 0 && monitor != QMP_FD && dup2(monitor, QMP_FD) < 0)
		return fail("prepare the hypervisor's monitor");
	if ((monitor >= 0 && fcntl(QMP_FD, F_SETFD, 0)) || dup2(complaints, 2) < 0)
		return fail("prepare the hypervisor's process");
	execv(command[0], command);
	dprintf(2, "cannot execute %s: %s\n", command[0], strerror(errno));
	return 127;
}

static int spawn(struct machine *vm, bool has_monitor, char **command)
{
	static const char hello[] = MONITOR_GREETING;
	int keyboard[2], console[2], complaints[2], monitor[2] = {-1, -1};
	if (pipe2(keyboard, O_CLOEXEC) || pipe2(console, O_CLOEXEC) || pipe2(complaints, O_CLOEXEC) ||
	    (has_monitor && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, monitor)))
		return fail("make the hypervisor's pipes");
	if (has_monitor && write(monitor[0], hello, strlen(hello)) != (ssize_t)strlen(hello))
		return fail("write to the monitor");
	vm->keyboard = keyboard[1];
	vm->console.fd = console[0];
	vm->complaints.fd = complaints[0];
	vm->monitor.fd = monitor[0];
	for (int i = 0; i < 3; i++) {
		int fd = (int[]){console[0], complaints[0], monitor[0]}[i];
		if (fd >= 0 && fcntl(fd, F_SETFL, O_NONBLOCK))
			return fail("fcntl");
	}
	pid_t self = getpid();
	vm->spawned = now();
	vm->pid = fork();
	if (vm->pid < 0)
		return fail("fork");
	if (vm->pid == 0)
		_exit(execute(self, keyboard[0], console[1], complaints[1], monitor[1], command));
	vm->pidfd = (int)syscall(SYS_pidfd_open, vm->pid, 0);
	close(keyboard[0]);
	close(console[1]);
	close(complaints[1]);
	if (has_monitor)
		close(monitor[1]);
	return vm->pidfd < 0 ? fail("pidfd_open") : 0;
}

static bool compile(regex_t *pattern, const char *text)
{
	char reason[256];
	int error = regcomp(pattern, text, REG_EXTENDED | REG_NOSUB);
	if (!error)
		return true;
	regerror(error, pattern, reason, sizeof(reason));
	say("firstlight error the pattern %s: %s\n", text, reason);
	return false;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"log", required_argument, NULL, 'l'},   {"ready", required_argument, NULL, 'r'},
		{"exit", required_argument, NULL, 'x'},  {"last", required_argument, NULL, 'a'},
		{"qmp", no_argument, NULL, 'q'},	 {"journal", required_argument, NULL, 'j'},
		{"api", required_argument, NULL, 's'},	 {"requests", required_argument, NULL, 'd'},
		{"answered", no_argument, NULL, 'w'},	 {NULL, 0, NULL, 0},
	};
	static struct machine vm = {.pidfd = -1, .log = -1, .status = -1, .ready_status = -1,
				    .api.fd = -1};
	bool has_monitor = false;
	const char *log = NULL, *socket = NULL, *requests = NULL;
	for (int option; (option = getopt_long(argc, argv, "+", options, NULL)) != -1;) {
		switch (option) {
		case 'l':
			log = optarg;
			break;
		case 'r':
			if (!(vm.has_ready_line = compile(&vm.ready_line, optarg)))
				return 1;
			break;
		case 'a':
			if (!(vm.has_last_line = compile(&vm.last_line, optarg)))
				return 1;
			break;
		case 'x':
			vm.ready_status = (int)strtol(optarg, NULL, 10);
			break;
		case 'q':
			has_monitor = true;
			break;
		case 'j':
			vm.journal = optarg;
			break;
		case 's':
			socket = optarg;
			break;
		case 'd':
			requests = optarg;
			break;
		case 'w':
			vm.ends_with_api = true;
			break;
		default:
			log = NULL;
			optind = argc;
		}
	}
	bool has_end = vm.has_ready_line || vm.ready_status >= 0 || vm.ends_with_api;
	vm.has_api = socket && requests;
	if (!log || optind >= argc || !has_end || !socket != !requests ||
	    (vm.ends_with_api && !vm.has_api)) {
		fputs("usage: vmrun --log FILE [OPTION...] -- HYPERVISOR [ARG...]\n", stderr);
		return 2;
	}
	vm.log = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	if (vm.log < 0)
		return fail(log);
	if (vm.has_api && api_begin(&vm.api, socket, requests)) {
		say("firstlight error %s\n", vm.api.error);
		return 1;
	}
	if (spawn(&vm, has_monitor, argv + optind))
		return 1;
	serve(&vm, STDIN_FILENO, INT64_MAX);
	stop(&vm);
	return !vm.is_told;
}
