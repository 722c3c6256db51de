/* Makes network namespaces, examines used ones and maintains the host's side of them. It is a process
 * apart from the one that starts instances, because these calls wait milliseconds for the kernel's
 * network locks and RCU grace periods.
 *
 * net.h has the requests. The requester sets a deadline, and kills a helper that does not answer.
 *
 * It is C because libmnl and libnftables are, and because comparing namespaces means parsing many dumps.
 */
#include "net.h"
#include "../common/cleanup.h"
#include "../common/socket.h"
#include "net_quick.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { CONTROL = 3, LOOPBACK = 1, BACKLOG = 16 };

static int host_namespace = -1;
static struct rtnl host;

_Noreturn static void die(const char *what, int error)
{
	fprintf(stderr, "net-helper: %s: %s\n", what, strerror(error));
	exit(1);
}

/* A namespace belongs to the user namespace of its maker, and a process cannot leave a user
 * namespace again. So a child makes it, and we take it from the child. */
static int make_owned(int owner)
{
	int ready[2], opened = -EPERM;
	char path[64], byte = 0;
	if (pipe2(ready, O_CLOEXEC))
		return -errno;
	pid_t parent = getpid(), child = fork();
	if (child == 0) {
		/* Entering a user namespace clears the signal for the parent's death. So it is set
		 * afterwards, and the parent may have died before. */
		if (setns(owner, CLONE_NEWUSER) == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 &&
		    getppid() == parent && unshare(CLONE_NEWNET) == 0 &&
		    write(ready[1], &byte, 1) == 1)
			pause();
		_exit(1);
	}
	if (child < 0)
		opened = -errno;
	close(ready[1]);
	if (child > 0 && read(ready[0], &byte, 1) == 1) {
		snprintf(path, sizeof path, "/proc/%d/ns/net", child);
		opened = open(path, O_RDONLY | O_CLOEXEC);
		if (opened < 0)
			opened = -errno;
	}
	close(ready[0]);
	if (child > 0) {
		kill(child, SIGKILL);
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			;
	}
	return opened;
}

/* The descriptor of a new namespace, or a negative errno. */
static int make_namespace(int owner)
{
	if (owner >= 0)
		return make_owned(owner);
	if (unshare(CLONE_NEWNET))
		return -errno;
	int opened = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	return opened < 0 ? -errno : opened;
}

static int enter(int namespace)
{
	return setns(namespace, CLONE_NEWNET) ? -errno : 0;
}

static int serve_make(const struct net_request *request, int owner, int *made,
		      struct net_answer *answer, const char **step)
{
	int error;
	*step = "make a namespace";
	*made = make_namespace(owner);
	if (*made < 0)
		return *made;
	if ((error = enter(*made)) || (error = net_make(&host, request, *made, step)))
		return error;
	if (request->flags & NET_POD)
		return 0;
	error = net_digest(&answer->digests, step);
	return error ? error : net_quick_digest(&answer->quick);
}

/* If a step fails, its link goes with it: ending the namespace is not up to us. */
static int serve_fill(const struct net_request *request, int given, const char **step)
{
	*step = "enter the given namespace";
	int error = given < 0 ? -EPROTO : enter(given);
	if (error)
		return error;
	*step = "look for its interface";
	if (if_nametoindex(request->peer))
		return -EEXIST;
	error = net_make(&host, request, given, step);
	if (error)
		(void)rtnl_link_delete(&host, request->index);
	return error;
}

static int serve_check(int used, struct net_answer *answer, const char **step)
{
	*step = "enter a used namespace";
	uint64_t sockets = 0;
	int error = used < 0 ? -EPROTO : enter(used);
	if (error)
		return error;
	*step = "count sockets";
	if ((error = net_sockets(&sockets)) || sockets)
		return error ? error : -EBUSY;
	error = net_digest(&answer->digests, step);
	if (error || (error = net_quick_digest(&answer->quick)))
		return error;
	*step = "forget routes";
	return net_forget_routes();
}

static int serve_wash(int used, const char **step)
{
	*step = "enter a used namespace";
	int error = used < 0 ? -EPROTO : enter(used);
	return error ? error : net_wash(step);
}

/* Makes the bridge. If there is one, the answer is -EEXIST, and it is set up only if it is ours. */
static int serve_host(const struct net_request *request, const char **step)
{
	*step = "create a bridge";
	int made = rtnl_bridge_add(&host, request->link, request->index);
	int index = made ? (int)if_nametoindex(request->link) : request->index;
	if ((made && !(made == -EEXIST && request->flags & NET_OURS)) || !index)
		return made;
	*step = "set it up";
	int error = rtnl_link_up(&host, index);
	if (error)
		return error;
	*step = "add an address to it";
	error = rtnl_address_add(&host, index, rtnl_ip4(request->address));
	if ((!error || error == -EEXIST) && request->flags & NET_IPV6)
		error = rtnl_address_add(&host, index, rtnl_ip6(request->address6));
	return error && error != -EEXIST ? error : made;
}

static int serve_localnet(const void *body, size_t size, const char **step)
{
	int32_t index;
	*step = "let localhost in";
	for (size_t at = 0; at + sizeof index <= size; at += sizeof index) {
		memcpy(&index, (const char *)body + at, sizeof index);
		int error = rtnl_link_route_localnet(&host, index, true);
		if (error)
			return error;
	}
	return 0;
}

/* A server of ours that only the namespace can reach. */
static int serve_listen(const struct net_request *request, int namespace, int *made,
			const char **step)
{
	struct rtnl inside RTNL_SCOPE = {0};
	struct sockaddr_in at = {
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t)request->index),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	*step = "enter a namespace to listen in";
	int error = namespace < 0 ? -EPROTO : enter(namespace);
	if (error)
		return error;
	*step = "set loopback up";
	if ((error = rtnl_open(&inside, NETLINK_ROUTE)) ||
	    (error = rtnl_link_up(&inside, LOOPBACK)))
		return error;
	*step = "listen";
	*made = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (*made < 0 || bind(*made, (struct sockaddr *)&at, sizeof at) || listen(*made, BACKLOG))
		return -errno;
	return 0;
}

static int serve_remove(const struct net_request *request, const char **step)
{
	unsigned index = if_nametoindex(request->link);
	*step = "delete the link";
	int error = index ? rtnl_link_delete(&host, (int)index) : 0;
	return error == -ENODEV ? 0 : error;
}

static void serve(const struct net_request *request, const void *body, size_t size, int given)
{
	struct {
		struct net_answer head;
		uint8_t gone[NET_RANGES_MAX];
	} answer = {.head.id = request->id};
	size_t length = sizeof answer.head, count = size / sizeof(struct net_range);
	const char *step = "read the request";
	int made FILE_SCOPE = -1, error = -EPROTO;
	switch (request->verb) {
	case NET_HOST:
		error = serve_host(request, &step);
		break;
	case NET_MAKE:
		error = serve_make(request, given, &made, &answer.head, &step);
		break;
	case NET_CHECK:
		error = serve_check(given, &answer.head, &step);
		break;
	case NET_WASH:
		error = serve_wash(given, &step);
		break;
	case NET_FORGET:
		if (count > NET_RANGES_MAX)
			break;
		error = net_forget(&host, body, count, answer.gone, &step);
		length += count;
		break;
	case NET_RULES:
		if (size && !((const char *)body)[size - 1])
			error = net_rules(body, &made, &step);
		break;
	case NET_LOCALNET:
		error = serve_localnet(body, size, &step);
		break;
	case NET_REMOVE:
		error = serve_remove(request, &step);
		break;
	case NET_FILL:
		error = serve_fill(request, given, &step);
		break;
	case NET_LISTEN:
		error = serve_listen(request, given, &made, &step);
		break;
	}
	if (enter(host_namespace))
		die("return to the host's network namespace", errno);
	answer.head.error = -error;
	strncpy(answer.head.step, step, sizeof answer.head.step - 1);
	bool comes = made >= 0 && (!error || request->verb == NET_RULES);
	if (socket_send(CONTROL, &answer, length, &made, comes))
		exit(0);
}

int main(void)
{
	static _Alignas(uint64_t) struct {
		struct net_request head;
		char body[NET_BODY_MAX];
	} request;
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT); /* Ctrl-C is for the runtime to handle, in order */
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	/* This is preparation, so it does not have the runtime's own priority. */
	(void)setpriority(PRIO_PROCESS, 0, 0);
	if (fcntl(CONTROL, F_SETFD, FD_CLOEXEC) || close_range(CONTROL + 1, ~0U, 0))
		die("set up descriptors", errno);
	host_namespace = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (host_namespace < 0)
		die("open the host's network namespace", errno);
	int error = net_quick_open();
	if (error)
		die("open our directory in /proc", -error);
	error = rtnl_open(&host, NETLINK_ROUTE);
	if (error)
		die("open the host's network", -error);
	for (;;) {
		struct rights given RIGHTS_SCOPE = {0};
		ssize_t size = socket_receive(CONTROL, &request, sizeof request, 0, &given);
		if (size == 0 || (size < 0 && size != -EMSGSIZE))
			return 0;
		if (size < (ssize_t)sizeof request.head)
			continue; /* nothing to answer: the caller has a deadline */
		request.head.link[NET_LINK - 1] = request.head.peer[NET_LINK - 1] = 0;
		serve(&request.head, request.body, (size_t)size - sizeof request.head,
		      given.count ? given.descriptors[0] : -1);
	}
}
