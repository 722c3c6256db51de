/* The worker of a WebAssembly function: compiles its module and runs its instances. It is C because an
 * instance takes 4 us by wasmtime's C API and 100 us by its Python package.
 *
 *   worker LIBRARY MODULE DIRECTORY MEMORY ELEMENTS TIMEOUT THREADS HANDLER [ARGUMENT]...
 *
 * Each instance's /tmp is a directory of its own in DIRECTORY. Its environment is this process's
 * variables whose names begin with a plus: other users may read a command line, and the dynamic loader
 * reads the environment.
 *
 * An ordinary sandbox executes it, as the function's user and with the function's limits, so a hole in
 * the compiler leads into that sandbox. It trusts nothing of the module, and nobody outside trusts what
 * it says.
 *
 * Each thread takes requests from the clients' connections (wasm.h), runs an instance for each event,
 * and answers. Requests wait in the sockets' buffers, which are bounded. A clock ends instances that
 * exceed their time, by wasmtime's epochs. One that this does not end, by a defect here or in wasmtime,
 * ends the worker, and the next request finds a new one.
 *
 * It exits with 0 when its control socket has ended and its last client has left, with REFUSED and a
 * reason on standard error if it cannot run the module, and with BROKEN if it cannot go on.
 */
#include "common/cleanup.h"
#include "common/socket.h"
#include "wasm_connections.h"
#include "wasm_module.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CONTROL = 0, REFUSED = 3, BROKEN = 4 };
enum { THREAD_STACK = 4 << 20 };
static const int64_t GRACE_NS = 5LL * 1000 * 1000 * 1000;

static struct wasm_module module;
static struct wasm_runner runners[WASM_THREADS_MAX];

_Noreturn static void end(int status, const char *what, const char *why)
{
	dprintf(STDERR_FILENO, "%s%s%s\n", what, *why ? ": " : "", why);
	_exit(status);
}

static void check_deadlines(int64_t now)
{
	for (uint32_t i = 0; i < module.limits.threads; i++) {
		int64_t deadline = runners[i].deadline;
		if (deadline && now > deadline + GRACE_NS)
			end(BROKEN, "an instance could not be stopped", "");
	}
}

static void *be_clock(void *nothing)
{
	wasm_clock_run(module.engine, check_deadlines);
	return nothing;
}

/* Runs a message's events and answers them. Returns 0, or a negative errno if the connection is not to
 * be kept. */
static int serve(struct wasm_runner *runner, const struct wasm_connection *connection,
		 const char *message, size_t size, char *to)
{
	struct wasm_request request;
	struct wasm_answer head = {0};
	size_t used = sizeof head;
	const char *at = message + sizeof request, *stop = message + size;
	if (size < sizeof request)
		return -EPROTO;
	memcpy(&request, message, sizeof request);
	head.id = request.id;
	for (uint32_t i = 0; i < request.count; i++) {
		struct wasm_event_view event;
		int error = wasm_take_event(&at, stop, &event);
		if (error)
			return error;
		wasm_clock_begin();
		error = wasm_run(runner, &event);
		wasm_clock_end();
		if (error)
			end(BROKEN, "the files of an instance could not be removed",
			    strerror(-error));
		size_t part = wasm_result_size(&runner->outcome.head);
		if (used + part > WASM_MESSAGE_MAX) {
			memcpy(to, &head, sizeof head);
			error = wasm_connection_send(connection, to, used);
			if (error)
				return error;
			head.first += head.count;
			head.count = 0;
			used = sizeof head;
		}
		wasm_put_result(to + used, &runner->outcome);
		head.count++;
		used += part;
	}
	memcpy(to, &head, sizeof head);
	return wasm_connection_send(connection, to, used);
}

static void *be_runner(void *runner)
{
	char *message = malloc(WASM_MESSAGE_MAX), *to = malloc(WASM_MESSAGE_MAX);
	if (!message || !to)
		end(BROKEN, "no memory for a thread", "");
	for (;;) {
		struct wasm_connection *connection;
		size_t size = wasm_connections_receive(&connection, message);
		wasm_connection_release(connection, !serve(runner, connection, message, size, to));
	}
	return NULL;
}

static void start(void *(*run)(void *), void *argument)
{
	pthread_t thread;
	pthread_attr_t attributes;
	int error = pthread_attr_init(&attributes);
	if (!error)
		error = pthread_attr_setstacksize(&attributes, THREAD_STACK);
	if (!error)
		error = pthread_create(&thread, &attributes, run, argument);
	if (error)
		end(BROKEN, "cannot start a thread", strerror(error));
}

/* The next connection; -1 at the end of the control socket. */
static int take_connection(void)
{
	for (;;) {
		char ignored[64];
		struct rights rights RIGHTS_SCOPE = {0};
		ssize_t size = socket_receive(CONTROL, ignored, sizeof ignored, 0, &rights);
		if (size == 0 || (size < 0 && size != -EMSGSIZE))
			return -1;
		if (rights.count)
			return descriptor_take(&rights.descriptors[0]);
	}
}

/* Takes connections until no more can come and none is left. */
static void serve_connections(int vacated)
{
	struct pollfd left = {vacated, POLLIN, 0};
	uint64_t times;
	int descriptor;
	while ((descriptor = take_connection()) >= 0)
		wasm_connections_add(descriptor);
	while (!wasm_connections_empty()) {
		if (poll(&left, 1, -1) < 0 && errno != EINTR)
			end(BROKEN, "poll", strerror(errno));
		(void)read(vacated, &times, sizeof times);
	}
}

static char *read_module(const char *path, size_t *size)
{
	struct stat status;
	int file FILE_SCOPE = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (file < 0 || fstat(file, &status))
		end(REFUSED, "it cannot be read",
		    errno == EACCES ? "permission denied\nmake it readable for the function's user"
				    : strerror(errno));
	if (!S_ISREG(status.st_mode) || status.st_size > WASM_MODULE_MAX)
		end(REFUSED, "it is not a file of at most 256 MiB", "");
	char *bytes = malloc((size_t)status.st_size + 1);
	for (*size = 0; bytes && *size < (size_t)status.st_size;) {
		ssize_t got = read(file, bytes + *size, (size_t)status.st_size - *size);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			end(REFUSED, "it cannot be read",
			    got ? strerror(errno) : "it became shorter");
		*size += (size_t)got;
	}
	if (!bytes)
		end(BROKEN, "no memory for the module", "");
	return bytes;
}

static uint64_t number(const char *word, uint64_t least, uint64_t most)
{
	char *rest;
	errno = 0;
	unsigned long long value = strtoull(word, &rest, 10);
	if (errno || *rest || value < least || value > most)
		end(BROKEN, "not a limit", word);
	return value;
}

/* Points the module's names and values into the environment, which is taken apart. */
static void take_environment(char **environment)
{
	size_t count = 0;
	while (environment[count])
		count++;
	module.names = calloc(count + 1, sizeof *module.names);
	module.values = calloc(count + 1, sizeof *module.values);
	if (!module.names || !module.values)
		end(BROKEN, "no memory for the environment", "");
	for (; *environment; environment++) {
		char *value = strchr(*environment, '=');
		if (**environment != '+' || !value)
			continue;
		*value = 0;
		module.names[module.variable_count] = *environment + 1;
		module.values[module.variable_count++] = value + 1;
	}
}

static void take_words(int argc, char **argv)
{
	enum { FIRST = 9 };
	if (argc < FIRST || strlen(argv[3]) + 16 > WASM_PATH_MAX)
		end(BROKEN,
		    "usage: worker LIBRARY MODULE DIRECTORY MEMORY ELEMENTS TIMEOUT THREADS HANDLER "
		    "[ARGUMENT]...",
		    "");
	module.limits = (struct wasm_limits){
		.memory = number(argv[4], 1 << 16, 4ULL << 30),
		.elements = number(argv[5], 1, 10 << 20),
		.timeout = (int64_t)number(argv[6], 1, INT64_MAX / 4),
		.threads = (uint32_t)number(argv[7], 1, WASM_THREADS_MAX),
	};
	module.handler = argv[8];
	module.arguments = (const char *const *)argv + FIRST;
	module.argument_count = (size_t)(argc - FIRST);
}

int main(int argc, char **argv)
{
	char reason[WASM_REASON_MAX];
	const char *why = "";
	size_t size;
	take_words(argc, argv);
	take_environment(environ);
	signal(SIGPIPE, SIG_IGN);
	if (wasmtime_load(argv[1], &why))
		end(BROKEN, "cannot load wasmtime", why);
	int error = wasm_confine();
	if (error)
		end(BROKEN, "cannot give up system calls", strerror(-error));
	char *bytes = read_module(argv[2], &size);
	if (wasm_module_make(&module, bytes, size, reason))
		end(REFUSED, reason, "");
	free(bytes);
	int vacated = wasm_connections_open();
	if (vacated < 0)
		end(BROKEN, "cannot wait for connections", strerror(-vacated));
	start(be_clock, NULL);
	for (uint32_t i = 0; i < module.limits.threads; i++) {
		runners[i].module = &module;
		snprintf(runners[i].directory, sizeof runners[i].directory, "%s/%u", argv[3], i);
		start(be_runner, runners + i);
	}
	serve_connections(vacated);
	_exit(0);
}
