/* Gives messages from standard input to a program that is built in: one of KEEPER, SANDBOX, SHIM and PLACE
 * says to which, and nothing is executed, mounted or written.
 *
 * Input: records of a byte that says where to, a byte with the number of descriptors that come along,
 * four bytes of length, and the message. Fails if a descriptor is left open at the end.
 */
#define main program_main
#if defined KEEPER
#include "shim/keeper.c"
#elif defined SANDBOX
#include "shim/sandbox.c"
#elif defined SHIM
#include "shim/shim.c"
#else
#include "agile/place.c"
#endif
#undef main

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static void check(int good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "not as it should be: %s\n", what);
	abort();
}

static int open_files(void)
{
	int count = 0;
	DIR *directory = opendir("/proc/self/fd");
	check(directory != NULL, "/proc");
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

#if defined KEEPER

static struct ends {
	int ours;
} client, server, noter;

static void drain(int from)
{
	static char bytes[1 << 16];
	struct rights rights;
	while (from >= 0 && socket_receive(from, bytes, sizeof bytes, MSG_DONTWAIT, &rights) > 0)
		rights_close(&rights);
}

static int pair(int type, int *theirs)
{
	int ends[2];
	check(!socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), "a pair");
	*theirs = ends[1];
	return ends[0];
}

/* What is not there is made, as a client comes and a server is started. */
static void open_all(void)
{
	if (!keeper.connections) {
		descriptor_close(&client.ours);
		struct connection *connection = memory(NULL, sizeof *connection);
		*connection = (struct connection){.number = ++keeper.last % 3};
		connection->last = &connection->calls;
		client.ours = pair(SOCK_STREAM, &connection->socket);
		keeper.connections = connection;
		check(watch(connection->socket, connection), "watch");
	}
	if (keeper.link >= 0 && keeper.notes >= 0)
		return;
	server_ended(0);
	descriptor_close(&server.ours);
	descriptor_close(&noter.ours);
	server.ours = pair(SOCK_STREAM, &keeper.link);
	noter.ours = pair(SOCK_SEQPACKET, &keeper.notes);
	keeper.all_told = false;
	check(watch(keeper.link, &keeper.link) && watch(keeper.notes, &keeper.notes), "watch");
}

static void take(int where, const char *text, size_t size, const int *given, int count)
{
	struct epoll_event event;
	open_all();
	if (where % 5 == 0)
		(void)send(client.ours, text, size, MSG_NOSIGNAL | MSG_DONTWAIT);
	else if (where % 5 == 1)
		(void)send(server.ours, text, size, MSG_NOSIGNAL | MSG_DONTWAIT);
	else if (where % 5 == 2)
		(void)socket_send(noter.ours, text, size, given, count);
	else if (where % 5 == 3)
		descriptor_close(size % 3 == 0   ? &client.ours
				 : size % 3 == 1 ? &server.ours
						 : &noter.ours);
	else if (size)
		held_add(&(struct note){.kind = NOTE_EXIT, .pid = text[0]}, -1, false);
	for (int turn = 0; turn < 4 && epoll_wait(keeper.epoll, &event, 1, 0) > 0; turn++)
		handle(&event);
	held_flush();
	if (where & 16) {
		drain(client.ours);
		drain(server.ours);
		drain(noter.ours);
	}
	if (keeper.connections)
		check(keeper.connections->in.end - keeper.connections->in.begin <= FRAME_MAX + PART,
		      "what a client sends is bounded");
	check(keeper.in.end - keeper.in.begin <= FRAME_MAX + PART,
	      "what a server sends is bounded");
	struct relay relay;
	if (keeper.link < 0 || keeper.in.end - keeper.in.begin < sizeof relay)
		return;
	memcpy(&relay, keeper.in.bytes + keeper.in.begin, sizeof relay);
	check(relay.size <= FRAME_MAX, "its rest can come");
}

static void begin(void)
{
	client.ours = server.ours = noter.ours = keeper.link = keeper.notes = -1;
	keeper.epoll = epoll_create1(EPOLL_CLOEXEC);
}

static void finish(void)
{
	while (keeper.connections)
		connection_end(keeper.connections);
	server_ended(0);
	while (keeper.held) {
		struct note note = keeper.held->note;
		held_drop(note.kind, note.pid, note.name);
	}
	check(!keeper.held_count, "what is held is counted");
	descriptor_close(&client.ours);
	descriptor_close(&server.ours);
	descriptor_close(&noter.ours);
	descriptor_close(&keeper.epoll);
}

#elif defined SANDBOX

static void take(int where, char *text, size_t size, const int *given, int count)
{
	(void)given, (void)count;
	unsigned long namespaces = (where & 1 ? CLONE_NEWNET : 0) | (where & 2 ? CLONE_NEWIPC : 0);
	for (char *at = text, *end; at < text + size; at = end + 1) {
		char path[PATH];
		const char *value;
		end = at + strlen(at);
		if (sysctl_parse(at, namespaces, path, &value))
			continue;
		check(!strncmp(path, "/proc/sys/", 10) && !strstr(path, ".."), "a path of sysctls");
		check(value > at && value <= end, "a value");
		check(strncmp(path, "/proc/sys/net/", 14) || where & 1, "a network of its own");
		check(!strncmp(path, "/proc/sys/net/", 14) || where & 2, "IPC of its own");
	}
}

static void begin(void)
{
}

static void finish(void)
{
}

#elif defined SHIM

static void take(int where, const char *text, size_t size, const int *given, int count)
{
	(void)where, (void)given, (void)count;
	struct text response = {.size = size < MESSAGE ? size : MESSAGE};
	memcpy(response.bytes, text, response.size);
	(void)print_payload(&response);
}

static void begin(void)
{
	check(freopen("/dev/null", "w", stdout) != NULL, "/dev/null");
}

static void finish(void)
{
}

#else

static int runtime = -1;

static void take(int where, const char *text, size_t size, const int *given, int count)
{
	struct place_zygote zygote;
	struct rights rights RIGHTS_SCOPE = {0};
	int ends[2];
	check(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), "a pair");
	check(dup2(ends[0], CONTROL) == CONTROL, "its control socket");
	close(ends[0]);
	runtime = ends[1];
	if (size)
		(void)socket_send(runtime, text, size, given, count);
	descriptor_close(&runtime);
	if (where % 2) {
		if (receive_parts(&rights) > 0)
			check(rights.count >= FIRST_DOOR && rights.count <= PARTS, "parts");
	} else if (receive_zygote(&zygote, &rights) > 0) {
		check(size == sizeof zygote && rights.count == ZYGOTE_SPACES, "a zygote");
		check(memchr(zygote.host_name, 0, sizeof zygote.host_name) != NULL, "a host name");
	}
}

static void begin(void)
{
	check(open("/dev/null", O_RDWR) == CONTROL, "descriptor 3 is free");
}

static void finish(void)
{
}

#endif

int main(void)
{
	uint8_t head[2];
	uint32_t size;
	begin();
	int before = open_files();
	while (fread(head, 1, sizeof head, stdin) == sizeof head &&
	       fread(&size, sizeof size, 1, stdin) == 1) {
		int given[RIGHTS_MAX], count = head[1] % (RIGHTS_MAX + 1);
		char *text = malloc((size_t)size + 1); /* so that a byte beyond is seen */
		check(text && fread(text, 1, size, stdin) == size, "input");
		text[size] = 0;
		for (int i = 0; i < count; i++)
			given[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
		take(head[0], text, size, given, count);
		for (int i = 0; i < count; i++)
			close(given[i]);
		free(text);
	}
	finish();
#if defined KEEPER
	before--; /* its epoll */
#endif
	check(open_files() == before, "as many descriptors are open as were");
	return 0;
}
