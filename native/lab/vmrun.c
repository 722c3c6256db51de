/* Runs one hypervisor, reads its guest's serial console, and reports when the guest is ready.
 *
 *   vmrun --log FILE [--ready REGEX | --exit STATUS] [--last REGEX] [--qmp]
 *         [--journal FILE] [--api SOCKET --requests FILE [--answered]] -- HYPERVISOR [ARG...]
 *
 * The hypervisor's standard output is the console. Each line goes to FILE as "STAMP TEXT" on arrival,
 * and an unfinished one as "STAMP~TEXT" when nothing follows for a moment; the hypervisor's own acts
 * go there as "STAMP=WORD". The guest is ready at the first line that --ready matches (a POSIX
 * extended regular expression; an unfinished line counts too, once nothing follows), or when the
 * hypervisor exits with STATUS. Its standard error is passed on, and the last line of that is part of
 * an error. A guest that prints "firstlight error TEXT" has failed.
 *
 * --qmp gives the hypervisor a QMP monitor on descriptor 3 and tells it to continue: it must be
 * started with "-S". The monitor says when it let the guest run, and why the guest stopped.
 *
 * For Firecracker, --journal names its own log, which says when it let the guest run, or why it did
 * not. --api names its API's socket, and --requests the file of requests (vmapi.h); with --answered
 * the guest is ready when the last request is answered.
 *
 * When our standard input ends, the guest gets an empty line to read on its console, vmrun waits for
 * the line that --last matches, then kills the hypervisor, which also dies with us. Stamps are
 * CLOCK_MONOTONIC in ns.
 *
 * It is C because it stamps lines as they arrive and must cost a start nothing: an interpreter would
 * take more CPU time than a small guest's whole boot.
 */
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/error.h"
#include "lab/vmapi.h"
#include "lab/vmjournal.h"
#include "lab/vmmonitor.h"
#include "lab/vmstream.h"

#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <regex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { QMP_FD = 3, QUIET_MS = 3, JOURNAL_MS = 250 };
static const int64_t LAST_WORDS_NS = 10 * CLOCK_SECOND;

struct machine {
	pid_t pid;
	int pidfd, log, keyboard;
	int status; /* as waitpid gives it, -1 while it runs */
	int64_t spawned, entered;
	struct vmstream console, complaints, monitor;
	regex_t ready_line, last_line;
	bool has_ready_line, has_last_line, has_monitor, has_api, ends_with_api;
	bool is_ready, is_told, is_ending, has_said_all, has_panicked;
	struct vmapi api;
	const char *journal; /* Firecracker's */
	int64_t ready_stamp;
	int ready_status; /* -1: none */
	struct error error; /* why the start failed; reported at once */
	bool is_error_told;
	char last_line_said[VMSTREAM_LINE_MAX + 1], complaint[VMSTREAM_LINE_MAX + 1], stopped[64];
};

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	fflush(stdout);
}

static void record(struct machine *vm, int64_t stamp, char kind, const char *text)
{
	char line[VMSTREAM_LINE_MAX + 32];
	int size = snprintf(line, sizeof line, "%jd%c%s\n", (intmax_t)stamp, kind, text);
	if (write(vm->log, line, (size_t)size) != size)
		error_set(&vm->error, errno, "write the console's log");
}

static void enter(struct machine *vm, int64_t stamp)
{
	if (vm->entered || stamp <= vm->spawned)
		return;
	vm->entered = stamp;
	record(vm, stamp, '=', "entered");
	say("firstlight step hypervisor.init %jd %jd\n", (intmax_t)vm->spawned, (intmax_t)stamp);
}

static void read_journal(struct machine *vm)
{
	if (vm->journal && !vm->entered)
		enter(vm, vmjournal_entered(vm->journal));
}

/* The last line that is read: everything about a start comes before. */
static void tell_ready(struct machine *vm)
{
	if (!vm->is_ready || vm->is_told)
		return;
	vm->is_told = true;
	read_journal(vm);
	say("firstlight ready %jd\n", (intmax_t)vm->ready_stamp);
}

static void tell_error(struct machine *vm)
{
	if (!vm->error.code || vm->is_error_told)
		return;
	vm->is_error_told = true;
	error_print(&vm->error);
}

static void set_ready(struct machine *vm, int64_t stamp)
{
	if (vm->is_ready || vm->error.code || vm->is_ending)
		return;
	vm->is_ready = true;
	vm->ready_stamp = stamp;
	if (!vm->has_api || vm->api.state == VMAPI_DONE)
		tell_ready(vm);
}

static void explain_end(struct machine *vm)
{
	char how[64];
	if (vm->is_ready || vm->is_ending)
		return;
	read_journal(vm);
	if (WIFSIGNALED(vm->status))
		snprintf(how, sizeof how, "was ended by signal %d", WTERMSIG(vm->status));
	else
		snprintf(how, sizeof how, "exited with status %d", WEXITSTATUS(vm->status));
	if (vm->journal)
		vmjournal_complaint(vm->journal, vm->complaint, sizeof vm->complaint);
	error_set(&vm->error, 0,
		  "the hypervisor %s before the guest was ready%s%s%s%.500s; the guest %s%.400s%s",
		  how, *vm->stopped ? ": " : "", vm->stopped, *vm->complaint ? ": " : "",
		  vm->complaint, *vm->last_line_said ? "last printed \"" : "printed nothing",
		  vm->last_line_said, *vm->last_line_said ? "\"" : "");
}

static bool matches(bool has_pattern, const regex_t *pattern, const char *line)
{
	return has_pattern && !regexec(pattern, line, 0, NULL, 0);
}

static void on_console(void *context, struct vmstream *stream)
{
	static const char error[] = "firstlight error ";
	struct machine *vm = context;
	const char *text = stream->line;
	record(vm, stream->stamp, ' ', text);
	if (!strncmp(text, error, strlen(error)) && !vm->is_ready)
		error_set(&vm->error, 0, "%s", text + strlen(error));
	if (text[strspn(text, " \t")] && !vm->has_panicked)
		strcpy(vm->last_line_said, text);
	vm->has_panicked |= strcasestr(text, "panic") != NULL; /* what follows says less */
	if (matches(vm->has_ready_line, &vm->ready_line, text))
		set_ready(vm, stream->stamp);
	vm->has_said_all |= matches(vm->has_last_line, &vm->last_line, text);
}

static void on_complaint(void *context, struct vmstream *stream)
{
	struct machine *vm = context;
	if (!strstr(stream->line, "warning: ") && stream->line[0])
		strcpy(vm->complaint, stream->line);
	say("%s\n", stream->line);
}

static void on_monitor(void *context, struct vmstream *stream)
{
	struct machine *vm = context;
	struct vmmonitor_message message = vmmonitor_read(stream->line, vm->spawned, stream->stamp);
	if (message.kind == VMMONITOR_RESUMED)
		enter(vm, message.stamp);
	else if (message.kind == VMMONITOR_STOPPED)
		strcpy(vm->stopped, message.reason);
	else if (message.kind == VMMONITOR_REFUSED)
		strcpy(vm->complaint, stream->line);
}

static void on_api(struct machine *vm)
{
	struct vmapi *api = &vm->api;
	enum vmapi_state state = vmapi_advance(api);
	char steps[VMAPI_REQUESTS * 128];
	if (state == VMAPI_WAITING || state == VMAPI_ASKING)
		return;
	read_journal(vm);
	if (vmapi_steps(api, vm->spawned, steps, sizeof steps))
		say("%s", steps);
	if (state == VMAPI_DONE && vm->ends_with_api)
		set_ready(vm, api->requests[api->count - 1].end);
	else if (state == VMAPI_DONE)
		tell_ready(vm);
	else if (state == VMAPI_CLOSED) /* its process ends, which is reported */
		snprintf(vm->complaint, sizeof vm->complaint, "%s", api->error.text);
	else
		error_set(&vm->error, 0, "the hypervisor's API: %s", api->error.text);
	vmapi_end(api);
}

/* A prompt has no end: after a moment of silence it may be the ready line, too. */
static void look_at_unfinished(struct machine *vm)
{
	struct vmstream *console = &vm->console;
	console->line[console->size] = 0;
	record(vm, console->stamp, '~', console->line);
	if (matches(vm->has_ready_line, &vm->ready_line, console->line))
		set_ready(vm, console->stamp);
}

static void read_streams(struct machine *vm)
{
	vmstream_read(&vm->monitor, on_monitor, vm);
	vmstream_read(&vm->complaints, on_complaint, vm);
	vmstream_read(&vm->console, on_console, vm);
}

static void reap(struct machine *vm)
{
	int64_t stamp = clock_now();
	while (waitpid(vm->pid, &vm->status, 0) < 0)
		if (errno != EINTR)
			return;
	close(vm->pidfd);
	vm->pidfd = -1;
	read_streams(vm);
	record(vm, stamp, '=', "ended");
	if (WIFEXITED(vm->status) && WEXITSTATUS(vm->status) == vm->ready_status)
		set_ready(vm, stamp);
	tell_ready(vm);
	explain_end(vm);
}

/* Serves until the hypervisor has ended, or our input has, or the time is over. */
static void serve(struct machine *vm, int input, int64_t until)
{
	bool has_looked = true; /* at an unfinished line */
	for (;;) {
		struct pollfd polled[] = {
			{vm->console.fd, POLLIN, 0},
			{vm->monitor.fd, POLLIN, 0},
			{vm->complaints.fd, POLLIN, 0},
			{vm->pidfd, POLLIN, 0},
			{input, POLLIN, 0},
			{vm->api.fd, POLLIN, 0},
		};
		int64_t left = (until - clock_now()) / 1000000;
		/* a guest that hangs was entered, too */
		int longest = vm->journal && !vm->entered ? JOURNAL_MS : -1;
		if (left < 0)
			return;
		if (until != INT64_MAX)
			longest = (int)left + 1;
		int n = poll(polled, 6, has_looked ? longest : QUIET_MS);
		if (n < 0 && errno != EINTR) {
			error_set(&vm->error, errno, "poll");
			return;
		}
		if (n == 0 && !has_looked) {
			look_at_unfinished(vm);
			has_looked = true;
		} else if (n == 0) {
			read_journal(vm);
		}
		if (n > 0 && polled[1].revents)
			vmstream_read(&vm->monitor, on_monitor, vm);
		if (n > 0 && polled[2].revents)
			vmstream_read(&vm->complaints, on_complaint, vm);
		if (n > 0 && polled[0].revents) {
			vmstream_read(&vm->console, on_console, vm);
			has_looked = !vm->console.size || vm->is_ready;
		}
		if (n > 0 && polled[5].revents)
			on_api(vm);
		if (n > 0 && polled[3].revents)
			reap(vm);
		tell_error(vm);
		char drop[64];
		if (n > 0 && polled[4].revents && read(input, drop, sizeof drop) == 0)
			return;
		if (input < 0 && (vm->has_said_all || vm->pidfd < 0))
			return;
	}
}

static void stop(struct machine *vm)
{
	if (vm->is_ready && vm->has_last_line && !vm->has_said_all && vm->pidfd >= 0) {
		(void)signal(SIGPIPE, SIG_IGN); /* it may just have ended */
		if (write(vm->keyboard, "\n", 1) == 1)
			serve(vm, -1, clock_now() + clock_longer(LAST_WORDS_NS));
	}
	if (vm->pidfd >= 0) {
		kill(vm->pid, SIGKILL);
		vm->is_ending = true; /* its end is our doing, and tells nothing */
		reap(vm);
	}
	read_streams(vm);
	vmstream_finish(&vm->console, on_console, vm);
	tell_error(vm);
}

/* In the hypervisor's process: what fails is its complaint. */
_Noreturn static void execute(pid_t parent, const int streams[3], int monitor, char **command)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
		_exit(127);
	for (int i = 0; i < 3; i++)
		if (dup2(streams[i], i) < 0)
			_exit(127);
	if (monitor >= 0 &&
	    ((monitor != QMP_FD && dup2(monitor, QMP_FD) < 0) || fcntl(QMP_FD, F_SETFD, 0)))
		_exit(127);
	execv(command[0], command);
	dprintf(2, "cannot execute %s: %s\n", command[0], strerror(errno));
	_exit(127);
}

static int spawn(struct machine *vm, char **command)
{
	static const char hello[] = VMMONITOR_GREETING;
	int keyboard[2], console[2], complaints[2], monitor[2] = {-1, -1};
	if (pipe2(keyboard, O_CLOEXEC) || pipe2(console, O_CLOEXEC) ||
	    pipe2(complaints, O_CLOEXEC) ||
	    (vm->has_monitor && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, monitor)))
		return error_set(&vm->error, errno, "make the hypervisor's pipes");
	if (vm->has_monitor && write(monitor[0], hello, strlen(hello)) != (ssize_t)strlen(hello))
		return error_set(&vm->error, errno, "write to the monitor");
	vm->keyboard = keyboard[1];
	vm->console.fd = console[0];
	vm->complaints.fd = complaints[0];
	vm->monitor.fd = monitor[0];
	if (fcntl(console[0], F_SETFL, O_NONBLOCK) || fcntl(complaints[0], F_SETFL, O_NONBLOCK) ||
	    (vm->has_monitor && fcntl(monitor[0], F_SETFL, O_NONBLOCK)))
		return error_set(&vm->error, errno, "fcntl");
	pid_t self = getpid();
	vm->spawned = clock_now();
	vm->pid = fork();
	if (vm->pid < 0)
		return error_set(&vm->error, errno, "fork");
	if (vm->pid == 0)
		execute(self, (int[]){keyboard[0], console[1], complaints[1]}, monitor[1], command);
	vm->pidfd = (int)syscall(SYS_pidfd_open, vm->pid, 0);
	close(keyboard[0]);
	close(console[1]);
	close(complaints[1]);
	if (vm->has_monitor)
		close(monitor[1]);
	return vm->pidfd < 0 ? error_set(&vm->error, errno, "pidfd_open") : 0;
}

static bool compile(struct machine *vm, regex_t *pattern, const char *text)
{
	char reason[256];
	int wrong = regcomp(pattern, text, REG_EXTENDED | REG_NOSUB);
	if (!wrong)
		return true;
	regerror(wrong, pattern, reason, sizeof reason);
	error_set(&vm->error, 0, "the pattern %s: %s", text, reason);
	return false;
}

/* Returns the hypervisor's command line, or NULL for what is no use of this program. */
static char **read_options(struct machine *vm, int argc, char **argv)
{
	static const struct option options[] = {
		{"log", required_argument, NULL, 'l'},  {"ready", required_argument, NULL, 'r'},
		{"exit", required_argument, NULL, 'x'}, {"last", required_argument, NULL, 'a'},
		{"qmp", no_argument, NULL, 'q'},        {"journal", required_argument, NULL, 'j'},
		{"api", required_argument, NULL, 's'},  {"requests", required_argument, NULL, 'd'},
		{"answered", no_argument, NULL, 'w'},   {NULL, 0, NULL, 0},
	};
	const char *log = NULL, *socket = NULL, *requests = NULL;
	bool is_known = true;
	for (int option; (option = getopt_long(argc, argv, "+", options, NULL)) != -1;) {
		if (option == 'l')
			log = optarg;
		else if (option == 'r')
			vm->has_ready_line = compile(vm, &vm->ready_line, optarg);
		else if (option == 'a')
			vm->has_last_line = compile(vm, &vm->last_line, optarg);
		else if (option == 'x')
			vm->ready_status = (int)strtol(optarg, NULL, 10);
		else if (option == 'q')
			vm->has_monitor = true;
		else if (option == 'j')
			vm->journal = optarg;
		else if (option == 's')
			socket = optarg;
		else if (option == 'd')
			requests = optarg;
		else if (option == 'w')
			vm->ends_with_api = true;
		else
			is_known = false;
	}
	bool has_end = vm->has_ready_line || vm->ready_status >= 0 || vm->ends_with_api;
	vm->has_api = socket && requests;
	if (vm->error.code)
		return argv + optind;
	if (!is_known || !log || optind >= argc || !has_end || !socket != !requests ||
	    (vm->ends_with_api && !vm->has_api))
		return NULL;
	vm->log = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	if (vm->log < 0)
		error_set(&vm->error, errno, "%s", log);
	else if (vm->has_api && vmapi_begin(&vm->api, socket, requests))
		vm->error = vm->api.error;
	return argv + optind;
}

int main(int argc, char **argv)
{
	static struct machine vm = {
		.pidfd = -1, .log = -1, .status = -1, .ready_status = -1, .api.fd = -1};
	char **command = read_options(&vm, argc, argv);
	if (!command) {
		fputs("usage: vmrun --log FILE [OPTION...] -- HYPERVISOR [ARG...]\n", stderr);
		return 2;
	}
	if (!vm.error.code && !spawn(&vm, command)) {
		serve(&vm, STDIN_FILENO, INT64_MAX);
		stop(&vm);
	}
	tell_error(&vm);
	return !vm.is_told;
}
