/* The profile of flannel's plugin: reads its subnet, keeps a scratch file, delegates to bridge. */
#include "plugin.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char SCRATCH[] = "/var/lib/cni/flannel";

static char *read_file(const char *path)
{
	scoped_fd fd = open(path, O_RDONLY | O_CLOEXEC);
	char *text = fd < 0 ? NULL : read_all(fd);
	must(text ? 0 : -1, "read %s", path);
	return text;
}

/* The value of a line NAME=VALUE. */
static char *value(const char *lines, const char *name, char *to, size_t size)
{
	size_t length = strlen(name);
	for (const char *line = lines; *line; line += strcspn(line, "\n"), line += *line == '\n')
		if (!strncmp(line, name, length) && line[length] == '=') {
			const char *from = line + length + 1;
			snprintf(to, size, "%.*s", (int)strcspn(from, "\n"), from);
			return to;
		}
	refuse("subnet.env has no %s", name);
}

/* host-local wants the network, and flannel gives the node's address in it. */
static void mask(char *subnet, size_t size)
{
	char text[INET_ADDRSTRLEN];
	size_t length = strcspn(subnet, "/");
	int bits = subnet[length] ? atoi(subnet + length + 1) : 0;
	if (bits < 1 || bits > 32)
		refuse("FLANNEL_SUBNET is %s", subnet);
	subnet[length] = 0;
	struct in_addr address = address_of(subnet);
	address.s_addr &= htonl(~0u << (32 - bits));
	snprintf(subnet, size, "%s/%d", inet_ntop(AF_INET, &address, text, sizeof text), bits);
}

static void keep(const char *path, const char *text)
{
	if (mkdir("/var/lib/cni", 0700) && errno != EEXIST)
		refuse("cannot make /var/lib/cni: %s", strerror(errno));
	if (mkdir(SCRATCH, 0700) && errno != EEXIST)
		refuse("cannot make %s: %s", SCRATCH, strerror(errno));
	scoped_fd fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(fd < 0 || write_all(fd, text, strlen(text)) || fsync(fd) ? -1 : 0, "write %s", path);
}

static void add(const struct call *call)
{
	char file[256], network[64], subnet[64], mtu[16], masquerade[16];
	scoped_text lines =
		read_file(setting(call, "subnetFile", file, sizeof file, "/run/flannel/subnet.env"));
	const char *delegated = json_member(call->conf, "delegate");
	const char *end = delegated ? json_end(delegated) : NULL;
	int inner = end && *delegated == '{' ? (int)(end - delegated) - 2 : 0;
	bool empty = inner <= 0 || (int)strspn(delegated + 1, " \t\r\n") >= inner;
	value(lines, "FLANNEL_NETWORK", network, sizeof network);
	value(lines, "FLANNEL_SUBNET", subnet, sizeof subnet);
	mask(subnet, sizeof subnet);
	scoped_text conf = text_of(
		"{\"cniVersion\":\"%s\",\"name\":\"%s\",\"type\":\"bridge\",%.*s%s\"mtu\":%s,"
		"\"ipMasq\":%s,\"isGateway\":true,\"ipam\":{\"type\":\"host-local\","
		"\"ranges\":[[{\"subnet\":\"%s\"}]],\"routes\":[{\"dst\":\"%s\"}]}}",
		call->version, call->name, empty ? 0 : inner, empty ? "" : delegated + 1,
		empty ? "" : ",", value(lines, "FLANNEL_MTU", mtu, sizeof mtu),
		strcmp(value(lines, "FLANNEL_IPMASQ", masquerade, sizeof masquerade), "true")
			? "true" : "false",
		subnet, network);
	scoped_text path = text_of("%s/%s", SCRATCH, call->container);
	keep(path, conf);
	scoped_text said = delegate("bridge", conf);
	fputs(said, stdout);
}

static void del(const struct call *call)
{
	scoped_text path = text_of("%s/%s", SCRATCH, call->container);
	if (access(path, F_OK))
		return;
	scoped_text conf = read_file(path);
	scoped_text said = delegate("bridge", conf);
	unlink(path);
}

const struct plugin plugin = {add, del};
