/* Runs the plugins of one CNI attachment, each stamped: the timed part of backends/cni.py.
 *
 *   cnirun add REQUEST [BESIDE]   ADD, say ready, hold until standard input ends, then DEL;
 *                                 meanwhile, DEL of the attachment of BESIDE
 *   cnirun up REQUEST             ADD, and leave it up
 *   cnirun del REQUEST            DEL, say ready, hold until standard input ends
 *
 * What it says is the protocol of backends/__init__.py. A request is lines of a word and a value:
 *
 *   kept PATH       where the result is kept, from before ADD to after DEL; empty if it failed
 *   version V       the CNI version that every result must have
 *   namespace PATH  the attachment's, as in CNI_NETNS
 *   interface NAME
 *   packet ADDRESS  optional, after ADD: the step "packet" is an echo to it and back; with
 *                   "gateway", to the first IPv4 gateway of the result
 *   env NAME=VALUE  the plugins' whole environment, but for CNI_COMMAND
 *   plugin PATH     then its configuration as JSON without the last brace, so that
 *   conf TEXT       prevResult can be added
 */
#include "json.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PLUGINS = 16, VARIABLES = 64, RESULT_MAX = 1 << 20, PACKET_TRIES = 3, PACKET_MS = 1000 };

struct plugin {
	char *path, *conf;
	int64_t start, end;
};

struct request {
	char *text, *kept, *version, *namespace, *interface, *packet;
	char *variables[VARIABLES + 2]; /* the first is CNI_COMMAND */
	struct plugin plugins[PLUGINS];
	size_t count, variable_count;
	char *result; /* of the last ADD, or NULL */
	int64_t packet_start, packet_end;
};

static char error[1200];

static int64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Keeps the first reason only: what follows is clean-up. Returns -1. */
__attribute__((format(printf, 1, 2))) static int fail(const char *format, ...)
{
	if (error[0])
		return -1;
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(error, sizeof error, format, arguments);
	va_end(arguments);
	return -1;
}

static void close_fd(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}
#define scoped_fd __attribute__((cleanup(close_fd))) int

static const char *base(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

/* Reads to the end of the stream; the caller frees it. NULL on error or above RESULT_MAX. */
static char *read_all(int fd)
{
	size_t used = 0, room = 16384;
	char *text = malloc(room + 1);
	while (text) {
		ssize_t n = read(fd, text + used, room - used);
		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0) {
			text[used] = 0;
			return text;
		}
		used += n > 0 ? (size_t)n : 0;
		if (n < 0 || (used == room && room >= RESULT_MAX))
			break;
		char *more = used == room ? realloc(text, 2 * room + 1) : text;
		room = used == room ? 2 * room : room;
		if (!more)
			break;
		text = more;
	}
	free(text);
	return NULL;
}

static int write_all(int fd, const char *text, size_t length)
{
	while (length > 0) {
		ssize_t n = write(fd, text, length);
		if (n < 0 && errno != EINTR)
			return -1;
		text += n > 0 ? n : 0;
		length -= n > 0 ? (size_t)n : 0;
	}
	return 0;
}

static int take_line(struct request *request, char *line)
{
	struct plugin *last = request->plugins + request->count - 1;
	char *value = strchr(line, ' ');
	if (!value)
		return -1;
	*value++ = 0;
	struct { const char *word; char **to; } words[] = {
		{"kept", &request->kept}, {"version", &request->version},
		{"namespace", &request->namespace}, {"interface", &request->interface},
		{"packet", &request->packet},
	};
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		if (!strcmp(line, words[i].word)) {
			*words[i].to = value;
			return 0;
		}
	if (!strcmp(line, "env") && request->variable_count < VARIABLES)
		request->variables[1 + request->variable_count++] = value;
	else if (!strcmp(line, "plugin") && request->count < PLUGINS)
		request->plugins[request->count++].path = value;
	else if (!strcmp(line, "conf") && request->count)
		last->conf = value;
	else
		return -1;
	return 0;
}

static int load(struct request *request, const char *file)
{
	scoped_fd fd = open(file, O_RDONLY | O_CLOEXEC);
	request->text = fd < 0 ? NULL : read_all(fd);
	if (!request->text)
		return fail("cannot read the request %s: %s", file, strerror(errno));
	char *rest = request->text, *line;
	while ((line = strsep(&rest, "\n")) && *line)
		if (take_line(request, line))
			return fail("the request %s has a line that cannot be: %s", file, line);
	bool whole = request->kept && request->version && request->namespace && request->interface;
	for (size_t i = 0; i < request->count; i++)
		whole = whole && request->plugins[i].conf;
	return whole && request->count ? 0 : fail("the request %s is not whole", file);
}

/* The configuration, with the previous result if there is one, in a pipe that the plugin reads. */
static int input(const struct plugin *plugin, const char *previous)
{
	int ends[2];
	size_t size = strlen(plugin->conf) + (previous ? strlen(previous) : 0) + 32;
	char *text = malloc(size);
	if (!text || pipe2(ends, O_CLOEXEC)) {
		free(text);
		return fail("cannot make a pipe: %s", strerror(errno));
	}
	int length = snprintf(text, size, "%s%s%s}", plugin->conf, previous ? ",\"prevResult\":" : "",
			      previous ? previous : "");
	int bad = length >= 65536 && fcntl(ends[1], F_SETPIPE_SZ, length) < 0;
	fcntl(ends[1], F_SETFL, O_NONBLOCK); /* it fits, or says so */
	bad = bad || write_all(ends[1], text, (size_t)length);
	free(text);
	close(ends[1]);
	if (!bad)
		return ends[0];
	close(ends[0]);
	return fail("a configuration of %d bytes does not fit into a pipe", length);
}

static int spawn(const struct request *request, const struct plugin *plugin, int in, int out,
		 pid_t *pid)
{
	char *argv[] = {plugin->path, NULL};
	posix_spawn_file_actions_t actions;
	int wrong = posix_spawn_file_actions_init(&actions);
	if (wrong)
		return wrong;
	wrong = posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
	wrong = wrong ? wrong : posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
	if (!wrong)
		wrong = posix_spawn(pid, plugin->path, &actions, NULL, argv, request->variables);
	posix_spawn_file_actions_destroy(&actions);
	return wrong;
}

static int explain(const char *command, const struct plugin *plugin, const char *said, int status)
{
	char message[600] = "", details[400] = "", code[16];
	bool object = json_end(said) && said[strspn(said, " \t\r\n")] == '{';
	const char *msg = object ? json_member(said, "msg") : NULL;
	const char *more = object ? json_member(said, "details") : NULL;
	const char *number = object ? json_member(said, "code") : NULL;
	if (msg) {
		json_text(msg, message, sizeof message);
		if (more)
			json_text(more, details, sizeof details);
		return fail("plugin %s %s: %s%s%s%s%s%s", base(plugin->path), command, message,
			    number ? " (code " : "", number ? json_text(number, code, sizeof code) : "",
			    number ? ")" : "", *details ? ": " : "", details);
	}
	if (WIFSIGNALED(status))
		return fail("plugin %s %s: killed by signal %d", base(plugin->path), command,
			    WTERMSIG(status));
	for (size_t i = 0; said[i] && i < sizeof message - 1; i++)
		message[i] = said[i] == '\n' ? ' ' : said[i];
	return fail("plugin %s %s: exit status %d%s%s", base(plugin->path), command,
		    WEXITSTATUS(status), *message ? ": " : ", and no word of why", message);
}

/* Executes one plugin; returns what it printed, for the caller to free, or NULL. */
static char *execute(const struct request *request, const struct plugin *plugin,
		     const char *command, const char *previous)
{
	int out[2], status = 0;
	pid_t pid;
	scoped_fd in = input(plugin, previous);
	if (in < 0)
		return NULL;
	if (pipe2(out, O_CLOEXEC)) {
		fail("cannot make a pipe: %s", strerror(errno));
		return NULL;
	}
	int wrong = spawn(request, plugin, in, out[1], &pid);
	close(out[1]);
	char *said = wrong ? NULL : read_all(out[0]);
	close(out[0]);
	if (wrong) {
		fail("plugin %s %s: cannot execute %s: %s", base(plugin->path), command, plugin->path,
		     strerror(wrong));
		return NULL;
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!said)
		fail("plugin %s %s: its output cannot be read", base(plugin->path), command);
	else if (status)
		explain(command, plugin, said, status);
	if (said && !status)
		return said;
	free(said);
	return NULL;
}

/* Plugins of before 0.3.1 leave the version out: then it is the network's. */
static char *with_version(const struct request *request, char *result)
{
	const char *rest = result ? result + strspn(result, " \t\r\n") : NULL;
	char *whole = NULL;
	if (!rest || *rest != '{' || !json_end(rest) || json_member(rest, "cniVersion"))
		return result;
	rest += 1 + strspn(rest + 1, " \t\r\n");
	if (asprintf(&whole, "{\"cniVersion\":\"%s\"%s%s", request->version, *rest == '}' ? "" : ",",
		     rest) < 0)
		return result;
	free(result);
	return whole;
}

static int check_result(const struct request *request, const struct plugin *plugin,
			const char *result)
{
	char version[32] = "";
	const char *end = json_end(result), *stated;
	const char *name = base(plugin->path);
	if (!result[strspn(result, " \t\r\n")])
		return fail("plugin %s ADD: printed no result", name);
	if (!end || end[strspn(end, " \t\r\n")] || result[strspn(result, " \t\r\n")] != '{')
		return fail("plugin %s ADD: printed what is not a JSON object: %.200s", name, result);
	if ((stated = json_member(result, "cniVersion")))
		json_text(stated, version, sizeof version);
	if (strcmp(version, request->version))
		return fail("plugin %s ADD: its result is of CNI version %s and not %s", name, version,
			    request->version);
	return 0;
}

static void keep(const struct request *request)
{
	scoped_fd fd = open(request->kept, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || (request->result && write_all(fd, request->result, strlen(request->result))))
		fail("cannot write the result %s: %s", request->kept, strerror(errno));
}

static int add(struct request *request)
{
	request->variables[0] = "CNI_COMMAND=ADD";
	for (struct plugin *plugin = request->plugins; plugin < request->plugins + request->count;
	     plugin++) {
		plugin->start = now();
		char *result = execute(request, plugin, "ADD", request->result);
		plugin->end = now();
		free(request->result);
		request->result = result = with_version(request, result);
		if (!result || check_result(request, plugin, result)) {
			free(request->result);
			request->result = NULL;
			return -1;
		}
	}
	return 0;
}

/* All of them even if one fails when ADD has failed; else the first failure stops it. */
static int del(struct request *request, bool after_failure)
{
	int bad = 0;
	const char *previous = strncmp(request->version, "0.3.", 4) ? request->result : NULL;
	request->variables[0] = "CNI_COMMAND=DEL";
	for (size_t i = request->count; i-- > 0 && !(bad && !after_failure);) {
		request->plugins[i].start = now();
		char *said = execute(request, &request->plugins[i], "DEL", previous);
		request->plugins[i].end = now();
		bad = bad || !said;
		free(said);
	}
	if (!bad)
		unlink(request->kept);
	return bad ? -1 : 0;
}

static void recall(struct request *request)
{
	scoped_fd fd = open(request->kept, O_RDONLY | O_CLOEXEC);
	request->result = fd < 0 ? NULL : read_all(fd);
	if (request->result && !*request->result) {
		free(request->result);
		request->result = NULL;
	}
}

static bool gateway(const struct request *request, struct in_addr *address)
{
	char text[64];
	const char *all = json_member(request->result, "ips"), *one = NULL, *member;
	while (all && (one = json_next(all, one)))
		if ((member = json_member(one, "gateway")) &&
		    inet_pton(AF_INET, json_text(member, text, sizeof text), address) == 1)
			return true;
	return false;
}

static unsigned short checksum(const void *data, size_t length)
{
	uint32_t sum = 0;
	unsigned short word;
	for (size_t i = 0; i + 1 < length; i += 2) {
		memcpy(&word, (const char *)data + i, sizeof word);
		sum += word;
	}
	sum = (sum >> 16) + (sum & 0xffff);
	return (unsigned short)~(sum + (sum >> 16));
}

/* An answer is one to our echo: a raw socket sees all that arrives in its namespace. */
static bool answered(int fd, unsigned short id)
{
	unsigned char packet[1500];
	struct icmphdr echo;
	ssize_t n = recv(fd, packet, sizeof packet, 0);
	size_t header = n > 0 ? (size_t)(packet[0] & 15) * 4 : 0;
	if (n < 0 || (size_t)n < header + sizeof echo)
		return false;
	memcpy(&echo, packet + header, sizeof echo);
	return echo.type == ICMP_ECHOREPLY && echo.un.echo.id == id;
}

static bool echo(struct in_addr address)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = address};
	struct icmphdr request = {.type = ICMP_ECHO, .un.echo.id = (unsigned short)getpid()};
	request.checksum = checksum(&request, sizeof request);
	scoped_fd fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
	for (int tries = 0; fd >= 0 && tries < PACKET_TRIES; tries++) {
		struct pollfd ready = {.fd = fd, .events = POLLIN};
		if (sendto(fd, &request, sizeof request, 0, (struct sockaddr *)&to, sizeof to) < 0)
			return false;
		while (poll(&ready, 1, PACKET_MS) > 0)
			if (answered(fd, request.un.echo.id))
				return true;
	}
	return false;
}

/* The first packet, from inside the namespace. That none comes back is not a failed ADD. */
static void first_packet(struct request *request)
{
	struct in_addr address;
	bool known = request->packet && (strcmp(request->packet, "gateway")
		? inet_pton(AF_INET, request->packet, &address) == 1 : gateway(request, &address));
	scoped_fd home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	scoped_fd there = open(request->namespace, O_RDONLY | O_CLOEXEC);
	if (!known || home < 0 || there < 0 || setns(there, CLONE_NEWNET))
		return;
	request->packet_start = now();
	if (echo(address))
		request->packet_end = now();
	if (setns(home, CLONE_NEWNET))
		fail("cannot return from the namespace %s: %s", request->namespace, strerror(errno));
}

/* What a DEL has left in the namespace is the plugin's mistake, and the sample's error. */
static int check_gone(const struct request *request)
{
	scoped_fd there = open(request->namespace, O_RDONLY | O_CLOEXEC);
	if (there < 0 || setns(there, CLONE_NEWNET) || !if_nametoindex(request->interface))
		return 0;
	return fail("DEL left the interface %s in %s", request->interface, request->namespace);
}

static void say(const struct request *request, int64_t ready)
{
	char text[4096];
	size_t used = 0;
	for (size_t i = 0; i < request->count && !error[0]; i++)
		used += (size_t)snprintf(text + used, sizeof text - used, "firstlight step %.64s %jd %jd\n",
					 base(request->plugins[i].path), (intmax_t)request->plugins[i].start,
					 (intmax_t)request->plugins[i].end);
	if (!error[0] && request->packet_end)
		used += (size_t)snprintf(text + used, sizeof text - used, "firstlight step packet %jd %jd\n",
					 (intmax_t)request->packet_start, (intmax_t)request->packet_end);
	used += (size_t)(error[0]
		? snprintf(text + used, sizeof text - used, "firstlight error %s\n", error)
		: snprintf(text + used, sizeof text - used, "firstlight ready %jd\n", (intmax_t)ready));
	(void)!write(STDOUT_FILENO, text, used); /* nobody listens: standard input has ended too */
}

static void hold(void)
{
	char ignored[256];
	ssize_t n;
	while ((n = read(STDIN_FILENO, ignored, sizeof ignored)) > 0 || (n < 0 && errno == EINTR))
		;
}

static pid_t start_beside(struct request *request)
{
	pid_t pid = fork();
	if (pid)
		return pid;
	recall(request);
	_exit(del(request, false) ? 1 : 0);
}

static int add_and_hold(struct request *request, struct request *beside)
{
	pid_t pid = beside ? start_beside(beside) : 0;
	int bad = add(request);
	int64_t ready = now();
	if (!bad) {
		first_packet(request);
		keep(request);
	} else {
		say(request, ready);
		del(request, true);
	}
	if (!bad)
		say(request, ready);
	while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	if (bad)
		return 1;
	hold();
	return del(request, false) ? 1 : 0;
}

static int delete_and_hold(struct request *request)
{
	int bad = del(request, false);
	int64_t ready = now();
	if (!bad)
		check_gone(request);
	say(request, ready);
	hold();
	return error[0] ? 1 : 0;
}

static int bring_up(struct request *request)
{
	int bad = add(request);
	if (bad)
		del(request, true);
	else
		keep(request);
	if (error[0])
		fprintf(stderr, "%s\n", error);
	return bad ? 1 : 0;
}

int main(int argc, char **argv)
{
	static struct request request, beside;
	const char *verb = argc > 2 ? argv[1] : "";
	bool two = argc == 4 && !strcmp(verb, "add");
	signal(SIGPIPE, SIG_IGN);
	if (argc != 3 && !two) {
		fputs("usage: cnirun add REQUEST [BESIDE] | up REQUEST | del REQUEST\n", stderr);
		return 2;
	}
	if (load(&request, argv[2]) || (two && load(&beside, argv[3]))) {
		say(&request, 0);
		return 2;
	}
	if (!strcmp(verb, "del")) {
		recall(&request);
		return delete_and_hold(&request);
	}
	keep(&request);
	if (error[0]) {
		say(&request, 0);
		return 2;
	}
	return !strcmp(verb, "up") ? bring_up(&request) : add_and_hold(&request, two ? &beside : NULL);
}
