/* Replaces, enters and checks the pod's network namespace. */
#include "cni/plugin.h"
#include "common/cleanup.h"
#include "common/netlink.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#define PREPARED "eth0" /* in every prepared namespace */

/* Of <linux/mount.h>, which does not go with <sys/mount.h>. */
enum { TREE_CLONE = 1, MOVE_FROM_EMPTY = 4 };

static bool is_same(const struct stat *one, const struct stat *other)
{
	return one->st_dev == other->st_dev && one->st_ino == other->st_ino;
}

/* Whether it belongs to our user namespace: the kernel names no owner above ours. */
static bool is_ours(int namespace)
{
	struct stat owner, ours;
	int file FILE_SCOPE = ioctl(namespace, NS_GET_USERNS);
	return file >= 0 && !fstat(file, &owner) && !stat("/proc/self/ns/user", &ours) &&
	       is_same(&owner, &ours);
}

/* Whether a link is up; opens a control socket for the first. */
static bool is_up(const char *name, int *control)
{
	struct ifreq request = {0};
	if (*control < 0)
		*control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	strcpy(request.ifr_name, name);
	return *control < 0 ||
	       (!ioctl(*control, SIOCGIFFLAGS, &request) && request.ifr_flags & IFF_UP);
}

enum { LINE_MOST = 256 }; /* of /proc/net/dev, and more */

/* Whether any link but the loopback is up in the current namespace, and whether it has the
 * interface. By /proc, which does not wait for the kernel's network locks as a dump does. */
static bool has_links(const char *interface, bool *is_attached)
{
	char table[4096], name[IFNAMSIZ], *rest = table, *line;
	int control FILE_SCOPE = -1;
	int file FILE_SCOPE = open("/proc/self/net/dev", O_RDONLY | O_CLOEXEC);
	ssize_t size = file < 0 ? -1 : read(file, table, sizeof table - 1);
	/* A read ends with a whole line: this may be less than everything, but is more than a new
	 * namespace has. */
	bool any = size < 0 || (size_t)size > sizeof table - 2 * LINE_MOST;
	table[size > 0 ? size : 0] = 0;
	while ((line = strsep(&rest, "\n"))) {
		char *colon = strchr(line, ':');
		if (!colon || sscanf(line, " %15[^:]:", name) != 1 || !strcmp(name, "lo"))
			continue; /* or one of its two head lines */
		*is_attached = *is_attached || !strcmp(name, interface);
		any = any || is_up(name, &control);
	}
	return any;
}

int call_enter(struct call *call, int *namespace, const char **obstacle, bool *is_attached)
{
	struct stat given, named, host;
	struct statfs system;
	const char *path = call->namespace, *interface = call->request.attachment.interface;
	*obstacle = NULL;
	*is_attached = false;
	*namespace = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (*namespace < 0 || fstatfs(*namespace, &system) || fstat(*namespace, &given))
		return CALL_FAIL(call, CALL_BAD_ENVIRONMENT, errno, "cannot open CNI_NETNS %s",
				 path);
	if (system.f_type != NSFS_MAGIC || ioctl(*namespace, NS_GET_NSTYPE) != CLONE_NEWNET)
		return CALL_FAIL(call, CALL_BAD_ENVIRONMENT, 0,
				 "CNI_NETNS %s is not a network namespace", path);
	if (stat("/proc/self/ns/net", &host))
		return CALL_FAIL(call, CALL_NAMESPACE, errno, "cannot look at /proc/self/ns/net");
	if (is_same(&given, &host))
		return CALL_FAIL(call, CALL_BAD_ENVIRONMENT, 0,
				 "CNI_NETNS %s is the host's network namespace", path);
	if (lstat(path, &named) || !is_same(&given, &named))
		*obstacle = "its path is a link to it and not a mount of it";
	else if (!is_ours(*namespace))
		*obstacle = "it belongs to another user namespace";
	else if (strcmp(interface, PREPARED))
		*obstacle = "the interface is not called " PREPARED;
	if (setns(*namespace, CLONE_NEWNET))
		return CALL_FAIL(call, CALL_NAMESPACE, errno, "cannot enter CNI_NETNS %s", path);
	bool any = has_links(interface, is_attached);
	if (!*obstacle && any)
		*obstacle = "it has a link already";
	return 0;
}

/* The runtime's own mount stays below until DEL: removing one waits for an RCU grace period, and
 * ending a namespace keeps others from their locks. */
int call_replace(struct call *call, int prepared)
{
	struct stat wanted, shown;
	const char *path = call->namespace;
	int tree FILE_SCOPE =
		(int)syscall(SYS_open_tree, prepared, "", TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH);
	if (tree < 0 || syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_FROM_EMPTY))
		return -EOPNOTSUPP;
	if (fstat(prepared, &wanted) || stat(path, &shown))
		return CALL_FAIL(call, CALL_NAMESPACE, errno, "cannot replace CNI_NETNS %s", path);
	if (!is_same(&wanted, &shown))
		return CALL_FAIL(call, CALL_NAMESPACE, 0, "CNI_NETNS %s was changed meanwhile",
				 path);
	return 0;
}

/* Compares a path with one of mountinfo, in which some characters are octal. */
static bool is_path(const char *path, const char *listed)
{
	unsigned octal;
	for (; *path; path++) {
		if (*listed == '\\' && sscanf(listed, "\\%3o", &octal) == 1) {
			if ((unsigned char)*path != octal)
				return false;
			listed += 4;
		} else if (*listed++ != *path) {
			return false;
		}
	}
	return !*listed;
}

/* Closes a file that was read line by line; 0, or a negative errno if it could not be. */
static int close_read(FILE *file)
{
	int failed = ferror(file) ? -EIO : 0;
	(void)fclose(file);
	return failed;
}

/* How many network namespaces are mounted at a path, one over the other; or a negative errno. */
static int count_mounted(const char *path)
{
	char whole[PATH_MAX], listed[PATH_MAX], *line = NULL;
	size_t size = 0;
	int count = 0;
	if (!realpath(path, whole))
		return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
	FILE *mounts = fopen("/proc/self/mountinfo", "re");
	if (!mounts)
		return -errno;
	while (getline(&line, &size, mounts) > 0)
		count += sscanf(line, "%*d %*d %*s net:%*s %4095s", listed) == 1 &&
			 is_path(whole, listed);
	free(line);
	int failed = close_read(mounts);
	return failed ? failed : count;
}

/* Whether the current namespace has the IPv4 default route by a gateway; or a negative errno. */
static int has_default(const char *interface, in_addr_t gateway)
{
	char line[256], name[IFNAMSIZ];
	bool any = false;
	unsigned to, by, mask;
	FILE *file = fopen("/proc/thread-self/net/route", "re");
	if (!file)
		return -errno;
	while (!any && fgets(line, sizeof line, file))
		any = sscanf(line, "%15s %x %x %*x %*d %*d %*d %x", name, &to, &by, &mask) == 4 &&
		      !strcmp(name, interface) && !to && !mask && by == gateway;
	int failed = close_read(file);
	return failed ? failed : any;
}

/* Whether a table of the current namespace has a line that begins so, and ends with the interface; or a
 * negative errno. */
static int has_line(const char *path, const char *begin, const char *interface)
{
	char line[256], *name;
	bool any = false;
	FILE *file = fopen(path, "re");
	if (!file)
		return -errno;
	while (!any && fgets(line, sizeof line, file)) {
		line[strcspn(line, "\n")] = 0;
		name = strrchr(line, ' ');
		any = name && !strcmp(name + 1, interface) && !strncmp(line, begin, strlen(begin));
	}
	int failed = close_read(file);
	return failed ? failed : any;
}

static int check_found(struct call *call, int found, const char *what)
{
	const char *interface = call->request.attachment.interface;
	if (found < 0)
		return CALL_FAIL(call, CALL_NAMESPACE, -found, "cannot look for %s of %s", what,
				 interface);
	if (!found)
		return CALL_FAIL(call, CALL_WRONG, 0, "interface %s does not have %s", interface,
				 what);
	return 0;
}

enum { HEX6 = 33 }; /* an IPv6 address as /proc writes it */

static void print6(const struct in6_addr *address, char text[HEX6])
{
	for (size_t i = 0; i < sizeof address->s6_addr; i++)
		snprintf(text + 2 * i, 3, "%02x", address->s6_addr[i]);
}

static int check6(struct call *call, const struct agent_answer *expected)
{
	const char *interface = call->request.attachment.interface;
	char text[HEX6], route[4 * HEX6];
	print6(&expected->address6, text);
	int bad = check_found(call, has_line("/proc/thread-self/net/if_inet6", text, interface),
			      "its IPv6 address");
	if (bad)
		return bad;
	print6(&expected->gateway6, text);
	snprintf(route, sizeof route, "%032d 00 %032d 00 %s ", 0, 0, text); /* any to any, by it */
	return check_found(call, has_line("/proc/thread-self/net/ipv6_route", route, interface),
			   "its IPv6 default route");
}

int call_check(struct call *call, const struct agent_answer *expected)
{
	const char *interface = call->request.attachment.interface;
	struct ifreq request = {0};
	struct sockaddr_in *address = (void *)&request.ifr_addr;
	char text[INET_ADDRSTRLEN] = "";
	int file FILE_SCOPE = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	strcpy(request.ifr_name, interface);
	if (file < 0)
		return CALL_FAIL(call, CALL_NAMESPACE, errno, "cannot look at interface %s",
				 interface);
	if (ioctl(file, SIOCGIFFLAGS, &request))
		return CALL_FAIL(call, CALL_WRONG, errno, "interface %s", interface);
	if (!(request.ifr_flags & IFF_UP))
		return CALL_FAIL(call, CALL_WRONG, 0, "interface %s is down", interface);
	if (!(request.ifr_flags & IFF_RUNNING))
		return CALL_FAIL(call, CALL_WRONG, 0, "the host's end of %s is down", interface);
	inet_ntop(AF_INET, &expected->address, text, sizeof text);
	if (ioctl(file, SIOCGIFADDR, &request) ||
	    address->sin_addr.s_addr != expected->address.s_addr)
		return CALL_FAIL(call, CALL_WRONG, 0, "interface %s does not have the address %s",
				 interface, text);
	int bad = check_found(call, has_default(interface, expected->gateway.s_addr),
			      "its default route");
	return bad || !(expected->flags & AGENT_IPV6) ? bad : check6(call, expected);
}

static int delete_link(const char *name)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg link;
		struct rtattr attribute;
		char name[IFNAMSIZ];
	} request = {
		.header = {.nlmsg_len = sizeof request,
			   .nlmsg_type = RTM_DELLINK,
			   .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
		.attribute = {.rta_len = RTA_LENGTH(IFNAMSIZ), .rta_type = IFLA_IFNAME},
	};
	int route FILE_SCOPE = netlink_open(0);
	strcpy(request.name, name);
	return route < 0 ? route : netlink_ask(route, &request);
}

int call_delete(struct call *call)
{
	int namespace FILE_SCOPE = -1;
	const char *path = call->namespace, *interface = call->request.attachment.interface;
	struct stat given, host;
	if (!path || !*path || (namespace = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) < 0)
		return 0; /* the interface went with it */
	if (fstat(namespace, &given) || stat("/proc/self/ns/net", &host) ||
	    is_same(&given, &host) || setns(namespace, CLONE_NEWNET))
		return 0; /* the path shows something else now */
	int bad = delete_link(interface);
	if (bad && bad != -ENODEV)
		return CALL_FAIL(call, CALL_NAMESPACE, -bad, "cannot delete %s in %s", interface,
				 path);
	return 0;
}

int call_uncover(struct call *call)
{
	const char *path = call->namespace;
	if (!path || !*path || strcmp(call->request.attachment.interface, PREPARED))
		return 0;
	int count = count_mounted(path);
	if (count < 0)
		return CALL_FAIL(call, CALL_NAMESPACE, -count, "cannot look what is mounted at %s",
				 path);
	if (count > 1 && umount2(path, MNT_DETACH))
		return CALL_FAIL(call, CALL_NAMESPACE, errno,
				 "cannot take the prepared namespace off %s", path);
	return 0;
}
