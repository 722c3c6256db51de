/* The worker of a WebAssembly function: compiles its module and runs its instances.
 *
 *   worker LIBRARY MODULE DIRECTORY MEMORY ELEMENTS TIMEOUT THREADS HANDLER
 *          ARGUMENTS [ARGUMENT]... [NAME VALUE]...
 *
 * DIRECTORY is where instances have their /tmp, each one of its own; ARGUMENTS is how many arguments
 * follow.
 *
 * It is what an ordinary sandbox executes, as the function's user, with the function's limits: a hole
 * in the compiler is one into that sandbox. Nothing of the module is trusted here, and nothing that
 * this process says is trusted outside.
 *
 * Threads take requests from the clients' connections (wasm.h), each for itself, run an instance for
 * each event, and answer. What waits, waits in the sockets' buffers, which are bounded. A clock ends
 * instances whose time is over, by wasmtime's epochs; one that this does not end (a defect of ours or
 * of wasmtime's) ends the worker, and the next request finds a new one.
 *
 * It ends with 0 when its control socket does or its last client has left, with REFUSED and words on standard error if the module
 * is none that it can run, and with BROKEN if it cannot go on.
 */
#include "wasm_module.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CONTROL = 0, REFUSED = 3, BROKEN = 4 };
enum { THREAD_STACK = 4 << 20, IDLE_TICKS = 20, READ_MS = 1000, LINGER_MS = 1000 };
static const int64_t GRACE_NS = 5LL * 1000 * 1000 * 1000;

static struct wasm_module module;
static struct wasm_runner runners[WASM_THREADS_MAX];

/* A client's connection. Its generation tells an event of epoll's that came too late from one of the
 * connection that has its place now; the descriptor is closed when no thread uses it any more. */
static struct connection {
	int descriptor;
	uint32_t generation, users;
	bool open;
} connections[WASM_CONNECTIONS_MAX];
static pthread_mutex_t connections_lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t open_connections;
static int ready;   /* epoll */
static int vacated; /* an eventfd: the last connection was closed */

static atomic_int running;	    /* instances */
static atomic_uint clock_is_asleep; /* a futex */

_Noreturn static void end(int status, const char *what, const char *why)
{
	dprintf(STDERR_FILENO, "%s%s%s\n", what, *why ? ": " : "", why);
	_exit(status);
}

static void wake_clock(void)
{
	atomic_fetch_add(&running, 1);
	if (atomic_load(&clock_is_asleep)) {
		atomic_store(&clock_is_asleep, 0);
		syscall(SYS_futex, &clock_is_asleep, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	}
}

static void check_deadlines(void)
{
	int64_t now = wasm_now();
	for (uint32_t i = 0; i < module.limits.threads; i++) {
		int64_t deadline = runners[i].deadline;
		if (deadline && now > deadline + GRACE_NS)
			end(BROKEN, "an instance could not be stopped", "");
	}
}

/* Counts time and not its own turns, which may be rare where CPU time is limited. Sleeps while nothing
 * runs: whoever adds to running looks at clock_is_asleep afterwards, and we set it before we look at
 * running, so one of the two sees the other. */
static void *be_clock(void *nothing)
{
	struct timespec tick = {0, WASM_TICK_NS};
	int64_t counted = wasm_now();
	for (int idle = 0;;) {
		clock_nanosleep(CLOCK_MONOTONIC, 0, &tick, NULL);
		for (int64_t now = wasm_now(); counted + WASM_TICK_NS <= now; counted += WASM_TICK_NS)
			wasmtime_engine_increment_epoch(module.engine);
		check_deadlines();
		idle = atomic_load(&running) ? 0 : idle + 1;
		if (idle < IDLE_TICKS)
			continue;
		atomic_store(&clock_is_asleep, 1);
		while (!atomic_load(&running) && atomic_load(&clock_is_asleep))
			syscall(SYS_futex, &clock_is_asleep, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
		atomic_store(&clock_is_asleep, 0);
		counted = wasm_now();
		idle = 0;
	}
	return nothing;
}

static void add_connection(int descriptor)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE};
	uint32_t place = 0;
	pthread_mutex_lock(&connections_lock);
	while (place < WASM_CONNECTIONS_MAX && (connections[place].open || connections[place].users))
		place++;
	if (place < WASM_CONNECTIONS_MAX) {
		struct connection *connection = connections + place;
		connection->descriptor = descriptor;
		connection->open = true;
		event.data.u64 = (uint64_t)++connection->generation << 32 | place;
		if (epoll_ctl(ready, EPOLL_CTL_ADD, descriptor, &event)) {
			connection->open = false;
			place = WASM_CONNECTIONS_MAX;
		} else
			open_connections++;
	}
	pthread_mutex_unlock(&connections_lock);
	if (place == WASM_CONNECTIONS_MAX)
		close(descriptor); /* the client sees that it has no connection */
}

static struct connection *use(uint64_t event)
{
	struct connection *connection = connections + (uint32_t)event;
	pthread_mutex_lock(&connections_lock);
	bool current = connection->open && connection->generation == event >> 32;
	connection->users += current;
	pthread_mutex_unlock(&connections_lock);
	return current ? connection : NULL;
}

static void unuse(struct connection *connection, bool keep)
{
	pthread_mutex_lock(&connections_lock);
	if (!keep && connection->open) {
		connection->open = false;
		epoll_ctl(ready, EPOLL_CTL_DEL, connection->descriptor, NULL);
		if (!--open_connections && write(vacated, &(uint64_t){1}, sizeof(uint64_t)) < 0)
			end(BROKEN, "eventfd", strerror(errno));
	}
	if (!--connection->users && !connection->open)
		close(connection->descriptor);
	pthread_mutex_unlock(&connections_lock);
}

/* Sends an answer; who does not read for READ_MS loses the connection. */
static int answer(int descriptor, const void *message, size_t size)
{
	while (send(descriptor, message, size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
		struct pollfd writable = {descriptor, POLLOUT, 0};
		if (errno != EAGAIN && errno != EINTR)
			return -1;
		if (errno == EAGAIN && poll(&writable, 1, READ_MS) == 0)
			return -1;
	}
	return 0;
}

static int serve(struct wasm_runner *runner, int descriptor, const char *message, size_t size, char *to)
{
	struct wasm_request request;
	struct wasm_answer head = {0};
	size_t used = sizeof head;
	const char *at = message + sizeof request, *stop = message + size;
	if (size < sizeof request)
		return -1;
	memcpy(&request, message, sizeof request);
	head.id = request.id;
	for (uint32_t i = 0; i < request.count; i++) {
		struct wasm_event_view event;
		if (wasm_take_event(&at, stop, &event))
			return -1;
		wake_clock();
		int failed = wasm_run(runner, &event);
		atomic_fetch_sub(&running, 1);
		if (failed)
			end(BROKEN, "the files of an instance could not be removed", strerror(errno));
		size_t part = wasm_result_size(&runner->outcome.head);
		if (used + part > WASM_MESSAGE_MAX) {
			memcpy(to, &head, sizeof head);
			if (answer(descriptor, to, used))
				return -1;
			head.first += head.count;
			head.count = 0;
			used = sizeof head;
		}
		wasm_put_result(to + used, &runner->outcome);
		head.count++;
		used += part;
	}
	memcpy(to, &head, sizeof head);
	return answer(descriptor, to, used);
}

static void *be_runner(void *place)
{
	struct wasm_runner *runner = place;
	char *message = malloc(WASM_MESSAGE_MAX), *to = malloc(WASM_MESSAGE_MAX);
	if (!message || !to)
		end(BROKEN, "no memory for a thread", "");
	for (;;) {
		struct epoll_event event;
		if (epoll_wait(ready, &event, 1, -1) != 1)
			continue;
		struct connection *connection = use(event.data.u64);
		if (!connection)
			continue;
		ssize_t size = recv(connection->descriptor, message, WASM_MESSAGE_MAX,
				    MSG_DONTWAIT | MSG_TRUNC);
		bool keep = size < 0 && (errno == EAGAIN || errno == EINTR);
		if (size > 0 && size <= WASM_MESSAGE_MAX)
			keep = !serve(runner, connection->descriptor, message, (size_t)size, to);
		unuse(connection, keep);
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
	_Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))];
	char said[64];
	for (;;) {
		struct iovec part = {said, sizeof said};
		struct msghdr head = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space,
				      .msg_controllen = sizeof space};
		ssize_t got = recvmsg(CONTROL, &head, MSG_CMSG_CLOEXEC);
		struct cmsghdr *rights = got > 0 ? CMSG_FIRSTHDR(&head) : NULL;
		int descriptor;
		if (got == 0 || (got < 0 && errno != EINTR))
			return -1;
		if (!rights || rights->cmsg_type != SCM_RIGHTS ||
		    rights->cmsg_len < CMSG_LEN(sizeof descriptor))
			continue;
		memcpy(&descriptor, CMSG_DATA(rights), sizeof descriptor);
		return descriptor;
	}
}

/* Whether there is no connection, and none came for a while. */
static bool is_left(void)
{
	struct pollfd control = {CONTROL, POLLIN, 0};
	pthread_mutex_lock(&connections_lock);
	bool none = !open_connections;
	pthread_mutex_unlock(&connections_lock);
	return none && poll(&control, 1, LINGER_MS) == 0;
}

/* Takes connections until there is no more need for it. */
static void serve_connections(void)
{
	for (;;) {
		struct pollfd awaited[] = {{CONTROL, POLLIN, 0}, {vacated, POLLIN, 0}};
		uint64_t times;
		if (poll(awaited, 2, -1) < 0 && errno != EINTR)
			end(BROKEN, "poll", strerror(errno));
		if (awaited[1].revents && read(vacated, &times, sizeof times) > 0 && is_left())
			return;
		if (!awaited[0].revents)
			continue;
		int descriptor = take_connection();
		if (descriptor < 0)
			return;
		add_connection(descriptor);
	}
}

static char *read_module(const char *path, size_t *size)
{
	struct stat status;
	int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
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
			end(REFUSED, "it cannot be read", got ? strerror(errno) : "it became shorter");
		*size += (size_t)got;
	}
	if (!bytes)
		end(BROKEN, "no memory for the module", "");
	close(file);
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

static void take_words(int argc, char **argv)
{
	enum { FIRST = 10 };
	if (argc < FIRST || strlen(argv[3]) + 16 > WASM_PATH_MAX)
		end(BROKEN, "usage: worker LIBRARY MODULE DIRECTORY MEMORY ELEMENTS TIMEOUT THREADS HANDLER "
			    "ARGUMENTS [ARGUMENT]... [NAME VALUE]...", "");
	module.limits = (struct wasm_limits){
		.memory = number(argv[4], 1 << 16, 4ULL << 30),
		.elements = number(argv[5], 1, 10 << 20),
		.timeout = (int64_t)number(argv[6], 1, INT64_MAX / 4),
		.threads = (uint32_t)number(argv[7], 1, WASM_THREADS_MAX),
	};
	module.handler = argv[8];
	size_t count = number(argv[9], 0, (uint64_t)(argc - FIRST));
	size_t variables = ((size_t)(argc - FIRST) - count) / 2;
	module.arguments = (const char *const *)argv + FIRST;
	module.argument_count = count;
	module.names = calloc(variables + 1, sizeof *module.names);
	module.values = calloc(variables + 1, sizeof *module.values);
	if (!module.names || !module.values)
		end(BROKEN, "no memory for the environment", "");
	for (; module.variable_count < variables; module.variable_count++) {
		module.names[module.variable_count] = argv[FIRST + count + 2 * module.variable_count];
		module.values[module.variable_count] = argv[FIRST + count + 2 * module.variable_count + 1];
	}
}

int main(int argc, char **argv)
{
	char reason[WASM_REASON_MAX];
	const char *why = "";
	size_t size;
	take_words(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	if (wasmtime_load(argv[1], &why))
		end(BROKEN, "cannot load wasmtime", why);
	if (wasm_confine())
		end(BROKEN, "cannot give up system calls", strerror(errno));
	char *bytes = read_module(argv[2], &size);
	if (wasm_module_make(&module, bytes, size, reason))
		end(REFUSED, reason, "");
	free(bytes);
	ready = epoll_create1(EPOLL_CLOEXEC);
	vacated = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ready < 0 || vacated < 0)
		end(BROKEN, "epoll_create1 or eventfd", strerror(errno));
	start(be_clock, NULL);
	for (uint32_t i = 0; i < module.limits.threads; i++) {
		runners[i].module = &module;
		snprintf(runners[i].directory, sizeof runners[i].directory, "%s/%u", argv[3], i);
		start(be_runner, runners + i);
	}
	serve_connections();
	_exit(0);
}
