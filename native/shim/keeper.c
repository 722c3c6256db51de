/* shim-keeper: stands in front of the shim's server, and does not end while pods run.
 *
 *   shim-keeper SOCKET PROGRAM [ARGUMENT]...
 *
 * containerd takes the end of a connection for the end of its pod, and only its parent gets a
 * container's exit status. So the keeper holds both. It starts the server (PROGRAM), and starts it again
 * when it ends. It relays containerd's requests, and gives those that a server left unanswered to the
 * next, marked as such. Containers are orphaned by the program that made them and become the keeper's
 * children; it reports their ends until the server has noted them. It returns the server's deposits (a
 * terminal's master) to the next server.
 *
 *   descriptor 3 of the server  a stream of frames, each after a struct relay
 *   descriptor 4                messages of struct note, one descriptor with KEPT
 *
 * SIGHUP restarts the server. SIGTERM is passed to it, and the keeper ends after it. The keeper is C
 * because it runs as long as the node does, and must be small and never change. It is one file because
 * calls, connections, the server and the deposits change together when one of them ends.
 */
#include "common/clock.h"
#include "common/socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	LINK = 3, /* the server's descriptors */
	NOTES = 4,
	HEADER = 10, /* of ttrpc: length, stream, type, flags; see its PROTOCOL.md */
	FRAME_MAX = HEADER + (4 << 20),
	REQUEST = 1,
	PART = 64 << 10,
	BACKLOG = 1024,
	NAME = 112,
	HELD_MAX = 4096,
	AGAIN_MS = 100, /* between a server's end and the next, doubled up to AGAIN_MAX_MS */
	AGAIN_MAX_MS = 5000,
	HEALTHY_MS = 10000,
	PAUSE_MS = 100 /* for what the kernel lacks: it may come from anywhere */
};

/* Before each frame between keeper and server, and instead of one when a connection has ended. */
struct relay {
	uint32_t connection, flags, size;
};
enum { RELAY_AGAIN = 1, RELAY_ENDED = 2 };
_Static_assert(sizeof(struct relay) == 12, "agile/shim/keeper.py has it too");

struct note {
	uint32_t kind;
	int32_t pid, status, unused;
	int64_t time; /* ns since 1970 */
	char name[NAME];
};
enum { NOTE_EXIT = 1, NOTE_NOTED, NOTE_KEPT, NOTE_DROP, NOTE_ALL };
_Static_assert(sizeof(struct note) == 136, "agile/shim/keeper.py has it too");

struct buffer {
	char *bytes;
	size_t begin, end, room;
};

struct call {
	struct call *next;
	size_t size;
	uint32_t stream;
	char frame[];
};

struct connection {
	struct connection *next;
	int socket;
	uint32_t number;
	struct buffer in, out;
	struct call *calls, **last;
};

struct held { /* a note for the server, and its descriptor */
	struct held *next;
	struct note note;
	int descriptor;
	bool is_told;
};

static struct keeper {
	char **program;
	int epoll, listener, signals, link, notes;
	pid_t server;
	bool is_ending, all_told;
	long long started, again; /* ms; again: when to start the next server, or 0 */
	long long accepts, sends; /* ms; accepted or sent again then, or 0 */
	int delay;
	uint32_t last;
	struct connection *connections;
	struct held *held;
	size_t held_count;
	struct buffer in, out; /* of the link */
	struct rlimit files;
} keeper;

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "shim-keeper: cannot %s: %s\n", what, strerror(errno));
	exit(1);
}

static long long now_ms(void)
{
	return clock_now() / 1000000;
}

static void *memory(void *old, size_t size)
{
	void *new = realloc(old, size);
	if (!new)
		fail("get memory");
	return new;
}

static void buffer_add(struct buffer *buffer, const void *bytes, size_t size)
{
	if (buffer->begin == buffer->end)
		buffer->begin = buffer->end = 0;
	if (buffer->end + size > buffer->room) {
		if (buffer->begin) {
			memmove(buffer->bytes, buffer->bytes + buffer->begin,
				buffer->end - buffer->begin);
			buffer->end -= buffer->begin;
			buffer->begin = 0;
		}
		if (buffer->end + size > buffer->room) {
			buffer->room = 2 * (buffer->end + size);
			buffer->bytes = memory(buffer->bytes, buffer->room);
		}
	}
	memcpy(buffer->bytes + buffer->end, bytes, size);
	buffer->end += size;
}

static void buffer_drop(struct buffer *buffer)
{
	free(buffer->bytes);
	*buffer = (struct buffer){0};
}

/* False: the kernel has no memory for it. */
static bool watch(int file, void *what)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
	return !epoll_ctl(keeper.epoll, EPOLL_CTL_ADD, file, &event);
}

static void watch_for(uint32_t events, int file, void *what)
{
	struct epoll_event event = {.events = events, .data.ptr = what};
	(void)epoll_ctl(keeper.epoll, EPOLL_CTL_MOD, file, &event); /* takes no memory */
}

/* Sends later: when there is room or, as nothing tells when the kernel has memory, after a pause. */
static void send_later(int failed, int socket, void *what)
{
	watch_for(failed == EAGAIN ? EPOLLIN | EPOLLOUT : EPOLLIN, socket, what);
	if (failed != EAGAIN && !keeper.sends)
		keeper.sends = now_ms() + PAUSE_MS;
}

/* Sends what fits now, and the rest later. False: the other side is gone. */
static bool flush(int socket, struct buffer *out, void *what)
{
	while (out->begin < out->end) {
		ssize_t sent = send(socket, out->bytes + out->begin, out->end - out->begin,
				    MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM)) {
			send_later(errno, socket, what);
			return true;
		}
		if (sent < 0)
			return false;
		out->begin += (size_t)sent;
	}
	watch_for(EPOLLIN, socket, what);
	return true;
}

/* Appends what has arrived, up to the end of a frame with its relay, and a part of the next.
 * False: the other side is gone. */
static bool fill(int socket, struct buffer *in)
{
	static char part[PART];
	while (in->end - in->begin <= sizeof(struct relay) + FRAME_MAX) {
		ssize_t size = recv(socket, part, sizeof part, MSG_DONTWAIT);
		if (size < 0 && errno == EINTR)
			continue;
		if (size < 0)
			return errno == EAGAIN;
		if (!size)
			return false;
		buffer_add(in, part, (size_t)size);
		if ((size_t)size < sizeof part)
			break;
	}
	return true;
}

static void relay(uint32_t connection, uint32_t flags, const char *frame, size_t size)
{
	struct relay relay = {connection, flags, (uint32_t)size};
	if (keeper.link < 0)
		return;
	buffer_add(&keeper.out, &relay, sizeof relay);
	if (size)
		buffer_add(&keeper.out, frame, size);
}

static void push(void)
{
	if (keeper.link >= 0 && !flush(keeper.link, &keeper.out, &keeper.link))
		(void)shutdown(keeper.link, SHUT_RDWR); /* its end is seen as the process's */
}

/* Calls */

static void call_add(struct connection *connection, uint32_t stream, const char *frame, size_t size)
{
	struct call *call = memory(NULL, sizeof *call + size);
	*call = (struct call){.stream = stream, .size = size};
	memcpy(call->frame, frame, size);
	*connection->last = call;
	connection->last = &call->next;
}

static void call_answered(struct connection *connection, uint32_t stream)
{
	for (struct call **at = &connection->calls; *at; at = &(*at)->next)
		if ((*at)->stream == stream) {
			struct call *call = *at;
			*at = call->next;
			if (connection->last == &call->next)
				connection->last = at;
			free(call);
			return;
		}
}

/* Connections of containerd */

static void connection_end(struct connection *connection)
{
	for (struct connection **at = &keeper.connections; *at; at = &(*at)->next)
		if (*at == connection) {
			*at = connection->next;
			break;
		}
	relay(connection->number, RELAY_ENDED, NULL, 0);
	push();
	close(connection->socket);
	while (connection->calls)
		call_answered(connection, connection->calls->stream);
	buffer_drop(&connection->in);
	buffer_drop(&connection->out);
	free(connection);
}

static void accept_all(void)
{
	for (;;) {
		int socket = accept4(keeper.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (socket < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (socket < 0 && errno == EAGAIN)
			return;
		if (socket < 0) {
			keeper.accepts = now_ms() + PAUSE_MS;
			watch_for(0, keeper.listener, &keeper.listener);
			return;
		}
		struct connection *connection = memory(NULL, sizeof *connection);
		*connection = (struct connection){
			.next = keeper.connections, .socket = socket, .number = ++keeper.last};
		connection->last = &connection->calls;
		keeper.connections = connection;
		if (!watch(socket, connection))
			connection_end(connection);
	}
}

/* Relays the whole frames that have arrived. False: they are not of ttrpc. */
static bool relay_requests(struct connection *connection)
{
	struct buffer *in = &connection->in;
	while (in->end - in->begin >= HEADER) {
		const char *frame = in->bytes + in->begin;
		uint32_t length, stream;
		memcpy(&length, frame, sizeof length);
		memcpy(&stream, frame + 4, sizeof stream);
		size_t size = HEADER + (size_t)ntohl(length);
		if (size > FRAME_MAX)
			return false;
		if (in->end - in->begin < size)
			break;
		if (frame[8] == REQUEST) {
			call_add(connection, stream, frame, size);
			relay(connection->number, 0, frame, size);
		}
		in->begin += size;
	}
	push();
	return true;
}

static void connection_ready(struct connection *connection, uint32_t events)
{
	if (events & EPOLLOUT && !flush(connection->socket, &connection->out, connection)) {
		connection_end(connection);
		return;
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		bool is_open = fill(connection->socket, &connection->in);
		if (!relay_requests(connection) || !is_open)
			connection_end(connection);
	}
}

/* The server */

static void held_flush(void)
{
	int sent = 0;
	if (keeper.notes < 0)
		return;
	for (struct held *held = keeper.held; held; held = held->next) {
		if (held->is_told)
			continue;
		sent = socket_send(keeper.notes, &held->note, sizeof held->note, &held->descriptor,
				   held->descriptor >= 0);
		if (sent < 0)
			goto later;
		held->is_told = true;
	}
	if (!keeper.all_told) {
		struct note all = {.kind = NOTE_ALL};
		sent = socket_send(keeper.notes, &all, sizeof all, NULL, 0);
		if (sent < 0)
			goto later;
		keeper.all_told = true;
	}
	watch_for(EPOLLIN, keeper.notes, &keeper.notes);
	return;
later:
	send_later(-sent, keeper.notes, &keeper.notes);
}

static void held_add(const struct note *note, int descriptor, bool is_told)
{
	struct held *held = memory(NULL, sizeof *held), **at = &keeper.held;
	*held = (struct held){.note = *note, .descriptor = descriptor, .is_told = is_told};
	while (*at)
		at = &(*at)->next;
	*at = held;
	keeper.held_count++;
}

static void held_drop(uint32_t kind, int32_t pid, const char *name)
{
	for (struct held **at = &keeper.held; *at;) {
		struct held *held = *at;
		if (held->note.kind != kind || (kind == NOTE_EXIT && held->note.pid != pid) ||
		    (kind == NOTE_KEPT && strncmp(held->note.name, name, NAME) != 0)) {
			at = &held->next;
			continue;
		}
		*at = held->next;
		descriptor_close(&held->descriptor);
		free(held);
		keeper.held_count--;
		if (kind == NOTE_EXIT)
			return; /* a pid may have ended twice */
	}
}

/* No server may live without its link, or with one that is out of step: the next server gets
 * everything that this one has not answered. */
static void server_lost(void)
{
	descriptor_close(&keeper.link);
	if (keeper.server && !keeper.is_ending)
		(void)kill(keeper.server, SIGKILL);
}

static void notes_ready(void)
{
	while (keeper.notes >= 0) {
		struct note note;
		struct rights rights RIGHTS_SCOPE = {0};
		ssize_t size =
			socket_receive(keeper.notes, &note, sizeof note, MSG_DONTWAIT, &rights);
		if (size == 0) {
			descriptor_close(&keeper.notes);
			server_lost();
		}
		if (size != sizeof note)
			return;
		note.name[NAME - 1] = 0;
		if (note.kind == NOTE_NOTED)
			held_drop(NOTE_EXIT, note.pid, "");
		else if (note.kind == NOTE_DROP)
			held_drop(NOTE_KEPT, 0, note.name);
		else if (note.kind == NOTE_KEPT && rights.count == 1 &&
			 keeper.held_count < HELD_MAX) {
			held_add(&note, rights.descriptors[0], true);
			rights.descriptors[0] = -1;
		}
	}
}

static void link_ready(uint32_t events)
{
	struct buffer *in = &keeper.in;
	struct relay relay;
	if (keeper.link < 0)
		return;
	if (events & EPOLLOUT)
		push();
	bool is_whole = fill(keeper.link, in);
	while (in->end - in->begin >= sizeof relay) {
		memcpy(&relay, in->bytes + in->begin, sizeof relay);
		is_whole &= relay.size <= FRAME_MAX;
		if (relay.size > FRAME_MAX || in->end - in->begin < sizeof relay + relay.size)
			break;
		const char *frame = in->bytes + in->begin + sizeof relay;
		struct connection *to = keeper.connections;
		while (to && to->number != relay.connection)
			to = to->next;
		if (to && relay.size >= HEADER) {
			uint32_t stream;
			memcpy(&stream, frame + 4, sizeof stream);
			call_answered(to, stream);
			buffer_add(&to->out, frame, relay.size);
			(void)flush(to->socket, &to->out, to); /* its end is an event of its own */
		}
		in->begin += sizeof relay + relay.size;
	}
	if (!is_whole)
		server_lost();
}

static _Noreturn void execute(int link, int notes)
{
	enum { BEYOND = NOTES + 1 };
	sigset_t none;
	sigemptyset(&none);
	/* Both are moved away first: each may have the other's number. */
	link = fcntl(link, F_DUPFD_CLOEXEC, BEYOND);
	notes = fcntl(notes, F_DUPFD_CLOEXEC, BEYOND);
	if (link < 0 || notes < 0 || dup2(link, LINK) < 0 || dup2(notes, NOTES) < 0 ||
	    prctl(PR_SET_PDEATHSIG, SIGKILL) || sigprocmask(SIG_SETMASK, &none, NULL) ||
	    setrlimit(RLIMIT_NOFILE, &keeper.files))
		_exit(126);
	execvp(keeper.program[0], keeper.program);
	fprintf(stderr, "shim-keeper: cannot execute %s: %s\n", keeper.program[0], strerror(errno));
	_exit(127);
}

/* Whether a server's process could be made, with its end of each pair. */
static bool server_made(const int *link, const int *notes)
{
	if (link[0] < 0 || notes[0] < 0 || fcntl(link[0], F_SETFL, O_NONBLOCK) ||
	    fcntl(notes[0], F_SETFL, O_NONBLOCK) || !watch(link[0], &keeper.link) ||
	    !watch(notes[0], &keeper.notes))
		return false;
	pid_t pid = fork();
	if (!pid)
		execute(link[1], notes[1]);
	keeper.server = pid > 0 ? pid : 0;
	return pid > 0;
}

static void server_start_later(void)
{
	keeper.again = now_ms() + keeper.delay;
	keeper.delay = keeper.delay ? 2 * keeper.delay : AGAIN_MS;
	if (keeper.delay > AGAIN_MAX_MS)
		keeper.delay = AGAIN_MAX_MS;
}

/* If the host has no descriptor or pid left, it tries again: all pods would end with the keeper. */
static void server_start(void)
{
	int link[2] = {-1, -1}, notes[2] = {-1, -1};
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, link) ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, notes) ||
	    !server_made(link, notes)) {
		fprintf(stderr, "shim-keeper: cannot start the server yet: %s\n", strerror(errno));
		descriptor_close(&link[0]);
		descriptor_close(&notes[0]);
		server_start_later();
	}
	descriptor_close(&link[1]);
	descriptor_close(&notes[1]);
	if (!keeper.server)
		return;
	keeper.link = link[0];
	keeper.notes = notes[0];
	keeper.started = now_ms();
	keeper.again = 0;
	keeper.all_told = false;
	for (struct held *held = keeper.held; held; held = held->next)
		held->is_told = false;
	held_flush();
	for (struct connection *each = keeper.connections; each; each = each->next)
		for (struct call *call = each->calls; call; call = call->next)
			relay(each->number, RELAY_AGAIN, call->frame, call->size);
	push();
}

static void server_ended(int status)
{
	keeper.server = 0;
	(void)shutdown(keeper.link, SHUT_RD); /* no child of it adds anything */
	while (keeper.link >= 0)
		link_ready(EPOLLIN); /* its last answers */
	notes_ready();
	descriptor_close(&keeper.notes);
	buffer_drop(&keeper.in);
	buffer_drop(&keeper.out);
	if (keeper.is_ending)
		exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
	if (now_ms() - keeper.started > HEALTHY_MS)
		keeper.delay = 0;
	server_start_later();
}

static void reap(void)
{
	int status;
	for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
		if (pid == keeper.server) {
			server_ended(status);
			continue;
		}
		struct note note = {.kind = NOTE_EXIT,
				    .pid = pid,
				    .status = status,
				    .time = clock_read(CLOCK_REALTIME)};
		held_add(&note, -1, false);
	}
	held_flush();
}

static void signals_ready(void)
{
	struct signalfd_siginfo signal;
	while (read(keeper.signals, &signal, sizeof signal) == sizeof signal) {
		if (signal.ssi_signo == SIGCHLD)
			continue;
		keeper.is_ending |= signal.ssi_signo != SIGHUP;
		if (keeper.server)
			(void)kill(keeper.server, signal.ssi_signo == SIGHUP ? SIGHUP : SIGTERM);
		else if (keeper.is_ending)
			exit(0);
	}
	reap();
}

static void open_signals(void)
{
	static const int handled[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP};
	sigset_t signals;
	sigemptyset(&signals);
	for (size_t i = 0; i < sizeof handled / sizeof *handled; i++)
		sigaddset(&signals, handled[i]);
	if (sigprocmask(SIG_BLOCK, &signals, NULL))
		fail("block signals");
	keeper.signals = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (keeper.signals < 0 || !watch(keeper.signals, &keeper.signals))
		fail("watch signals");
}

static void raise_open_files(void)
{
	if (getrlimit(RLIMIT_NOFILE, &keeper.files))
		fail("read the limit of open files");
	struct rlimit files = {keeper.files.rlim_max, keeper.files.rlim_max};
	if (setrlimit(RLIMIT_NOFILE, &files))
		fail("raise the limit of open files");
}

static void open_listener(const char *path)
{
	keeper.listener = socket_listen(path, SOCK_STREAM | SOCK_NONBLOCK, BACKLOG);
	errno = keeper.listener < 0 ? -keeper.listener : 0;
	if (keeper.listener < 0 || !watch(keeper.listener, &keeper.listener))
		fail("listen");
}

static void send_all(void)
{
	keeper.sends = 0;
	for (struct connection *each = keeper.connections, *next; each; each = next) {
		next = each->next;
		if (!flush(each->socket, &each->out, each))
			connection_end(each);
	}
	push();
	held_flush();
}

/* Does what is due; returns the ms until the next, or -1. */
static int do_what_is_due(void)
{
	long long *const due[] = {&keeper.again, &keeper.accepts, &keeper.sends};
	long long now = now_ms(), next = -1;
	if (keeper.again && keeper.again <= now)
		server_start();
	if (keeper.accepts && keeper.accepts <= now) {
		keeper.accepts = 0;
		watch_for(EPOLLIN, keeper.listener, &keeper.listener);
	}
	if (keeper.sends && keeper.sends <= now)
		send_all();
	for (size_t i = 0; i < sizeof due / sizeof *due; i++)
		if (*due[i] && (next < 0 || *due[i] < next))
			next = *due[i];
	return next < 0 ? -1 : next > now ? (int)(next - now) : 0;
}

static void handle(const struct epoll_event *event)
{
	if (event->data.ptr == &keeper.signals)
		signals_ready();
	else if (event->data.ptr == &keeper.listener)
		accept_all();
	else if (event->data.ptr == &keeper.link)
		link_ready(event->events);
	else if (event->data.ptr == &keeper.notes) {
		notes_ready();
		held_flush();
	} else
		connection_ready(event->data.ptr, event->events);
}

int main(int count, char **words)
{
	if (count < 3) {
		fprintf(stderr, "usage: shim-keeper SOCKET PROGRAM [ARGUMENT]...\n");
		return 2;
	}
	(void)umask(
		022); /* nobody else may write the server's files, whatever the umask of its starter */
	keeper.program = words + 2;
	keeper.link = keeper.notes = -1;
	keeper.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (keeper.epoll < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1))
		fail("set itself up");
	open_signals();
	raise_open_files();
	open_listener(words[1]);
	server_start();
	for (;;) {
		struct epoll_event event;
		/* One at a time: handling an event may end another's object. */
		int ready = epoll_wait(keeper.epoll, &event, 1, do_what_is_due());
		if (ready < 0 && errno != EINTR)
			fail("wait");
		if (ready > 0)
			handle(&event);
	}
}
