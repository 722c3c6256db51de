#include "plugin.h"

#include "link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { INVALID = 4, FAILED = 999 };

static const char VERSIONS[] = "\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\"";
static char version[16] = "1.0.0"; /* of the protocol that is spoken */

__attribute__((noreturn)) static void cni_fail_with(int code, const char *reason)
{
	printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"", version, code);
	for (; *reason; reason++)
		if (*reason == '"' || *reason == '\\')
			printf("\\%c", *reason);
		else
			putchar((unsigned char)*reason < ' ' ? ' ' : *reason);
	puts("\"}");
	exit(1);
}

void cni_fail(const char *format, ...)
{
	char reason[1024];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(reason, sizeof reason, format, arguments);
	va_end(arguments);
	cni_fail_with(FAILED, reason);
}

void cni_check(int done, const char *format, ...)
{
	char what[256];
	int why = done < -1 ? -done : errno;
	va_list arguments;
	if (done >= 0)
		return;
	va_start(arguments, format);
	vsnprintf(what, sizeof what, format, arguments);
	va_end(arguments);
	cni_fail("cannot %s: %s", what, strerror(why));
}

char *text_of(const char *format, ...)
{
	char *text;
	va_list arguments;
	va_start(arguments, format);
	int length = vasprintf(&text, format, arguments);
	va_end(arguments);
	if (length < 0)
		cni_fail("no memory is left");
	return text;
}

char *conf_string(const struct call *call, const char *key, char *to, size_t size,
		  const char *otherwise)
{
	const char *value = json_member(call->conf, key);
	if (value)
		return json_text(value, to, size);
	snprintf(to, size, "%s", otherwise);
	return to;
}

int open_namespace(const struct call *call)
{
	int fd = open(call->namespace, O_RDONLY | O_CLOEXEC);
	cni_check(fd, "open the namespace %s", call->namespace);
	return fd;
}

struct rtnl open_route(void)
{
	struct rtnl route;
	cni_check(rtnl_open(&route, NETLINK_ROUTE), "open a netlink socket");
	return route;
}

struct visit enter(const struct call *call)
{
	struct visit visit = {open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC), 0};
	cni_check(visit.home, "open the plugin's own namespace");
	visit.there = open_namespace(call);
	cni_check(setns(visit.there, CLONE_NEWNET), "enter the namespace %s", call->namespace);
	return visit;
}

void leave(const struct visit *visit)
{
	cni_check(setns(visit->home, CLONE_NEWNET), "return from the pod's namespace");
	close(visit->home);
	close(visit->there);
}

void set_sysctl(const char *value, const char *format, ...)
{
	char path[PATH_MAX] = "/proc/sys/net/";
	size_t used = strlen(path);
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(path + used, sizeof path - used, format, arguments);
	va_end(arguments);
	int fd FILE_SCOPE = open(path, O_WRONLY | O_CLOEXEC);
	cni_check(fd < 0 ? -1 : process_write_all(fd, value, strlen(value)), "write %s to %s",
		  value, path);
}

void delete_interface(const struct call *call)
{
	if (!call->namespace || access(call->namespace, F_OK))
		return;
	struct visit visit = enter(call);
	struct rtnl route RTNL_SCOPE = open_route();
	if (!link_query(&route, call->interface))
		cni_check(link_delete(&route, call->interface), "delete %s", call->interface);
	leave(&visit);
}

int run(char *const argv[], const char *text, char **output)
{
	struct error error = {0};
	int input FILE_SCOPE = process_pipe((const char *[]){text, NULL});
	cni_check(input, "hand %s its input", argv[0]);
	int status = process_run(argv, environ, input, output, &error);
	if (status < 0)
		cni_fail("%s", error.text);
	return status;
}

static char *find(const char *type)
{
	const char *path = getenv("CNI_PATH");
	while (path && *path) {
		size_t length = strcspn(path, ":");
		char *program = text_of("%.*s/%s", (int)length, path, type);
		if (!access(program, X_OK))
			return program;
		free(program);
		path += length + (path[length] == ':');
	}
	cni_fail("the plugin %s is not in CNI_PATH", type);
}

char *delegate(const char *type, const char *conf)
{
	char *program FREE_SCOPE = find(type);
	char *answer;
	int status = run((char *[]){program, NULL}, conf, &answer);
	if (!status)
		return answer;
	if (!*answer)
		cni_fail("the plugin %s ended with status %d, and no word of why", type, status);
	fputs(answer, stdout);
	exit(1);
}

void say_result(const struct call *call, const char *host, struct in_addr address, int prefix,
		const char *gateway)
{
	char own[INET_ADDRSTRLEN];
	inet_ntop(AF_INET, &address, own, sizeof own);
	printf("{\"cniVersion\":\"%s\",\"interfaces\":[{\"name\":\"%s\"},{\"name\":\"%s\",\"sandbox\":\"%s\"}],",
	       version, host, call->interface, call->namespace);
	printf("\"ips\":[{%s\"interface\":1,\"address\":\"%s/%d\"%s%s%s}],\"dns\":{}}\n",
	       version[0] == '0' ? "\"version\":\"4\"," : "", own, prefix,
	       *gateway ? ",\"gateway\":\"" : "", gateway, *gateway ? "\"" : "");
}

struct in_addr address_of(const char *text)
{
	struct in_addr address;
	if (inet_pton(AF_INET, text, &address) != 1)
		cni_fail("%s is no IPv4 address", text);
	return address;
}

static void check_interface(const struct call *call)
{
	struct visit visit = enter(call);
	struct rtnl route RTNL_SCOPE = open_route();
	cni_check(link_query(&route, call->interface), "find %s in %s", call->interface,
		  call->namespace);
	leave(&visit);
}

static void read_configuration(struct call *call)
{
	const char *end;
	if (process_read_all(STDIN_FILENO, &call->conf) < 0 || !(end = json_end(call->conf)) ||
	    end[strspn(end, " \t\r\n")] || call->conf[strspn(call->conf, " \t\r\n")] != '{')
		cni_fail_with(6, "the configuration is not a JSON object");
	conf_string(call, "cniVersion", call->version, sizeof call->version, "0.3.0");
	conf_string(call, "name", call->name, sizeof call->name, "");
	char quoted[sizeof call->version + 2];
	snprintf(quoted, sizeof quoted, "\"%s\"", call->version);
	if (!strstr(VERSIONS, quoted))
		cni_fail_with(1, "the configuration's cniVersion is not one of 0.3.0 to 1.0.0");
	strcpy(version, call->version);
}

int main(void)
{
	const char *command = getenv("CNI_COMMAND");
	struct call call = {
		.container = getenv("CNI_CONTAINERID"),
		.namespace = getenv("CNI_NETNS"),
		.interface = getenv("CNI_IFNAME"),
	};
	if (!command)
		cni_fail_with(INVALID, "CNI_COMMAND is not set");
	if (!strcmp(command, "VERSION")) {
		printf("{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[%s]}\n", VERSIONS);
		return 0;
	}
	call.adding = !strcmp(command, "ADD");
	if (!call.adding && strcmp(command, "DEL") && strcmp(command, "CHECK"))
		cni_fail_with(INVALID, "CNI_COMMAND is none of ADD, DEL, CHECK and VERSION");
	if (!call.container || !call.interface || (!call.namespace && strcmp(command, "DEL")))
		cni_fail_with(INVALID, "CNI_CONTAINERID, CNI_IFNAME or CNI_NETNS is not set");
	read_configuration(&call);
	if (call.adding)
		plugin.add(&call);
	else if (!strcmp(command, "DEL"))
		plugin.del(&call);
	else
		check_interface(&call);
	return fflush(stdout) ? 1 : 0;
}
