/* Makes network namespaces and looks into used ones, away from the process that starts instances:
 * these calls wait for the kernel's network locks and RCU grace periods, milliseconds each.
 *
 * It only carries out scripts; what is in them, the agile runtime decides (network.py). On
 * descriptor 3, one message each:
 *
 *   request  struct request, then its actions, each struct action and its bytes, padded to 4
 *            MAKE comes with nothing, or with a user namespace that is to own the new one
 *            LOOK comes with a network namespace
 *   answer   struct answer; that of MAKE comes with the new network namespace
 *
 * While a script runs, the namespace is descriptor NAMESPACE, for IFLA_NET_NS_FD.
 *
 *   ASK, ASK_HOST  a netlink request in the namespace, or to the host's
 *   ABSENT         a request to the host's netfilter that must answer ENOENT
 *   WRITE          path NUL text NUL
 *   READ           path NUL
 *   COUNTS         path NUL; of a sockstat file, the counts that are the namespace's own
 *
 * The digest is an FNV-1a hash of all that ASK, READ and COUNTS saw, without what changes by itself.
 */
#include "common/message.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CONTROL = 3, NAMESPACE = 9, SCRIPT_MAX = 16384 };
enum verb { MAKE = 1, LOOK = 2, HOST = 3 };
enum kind { ASK_HOST = 1, ASK = 2, WRITE = 3, READ = 4, COUNTS = 5, ABSENT = 6 };

struct request {
	uint32_t verb, actions;
	uint64_t id;
};

struct action {
	uint16_t kind, family; /* family: of the netlink socket */
	uint32_t size;
};

struct sockets {
	int route, netfilter;
};

struct answer {
	uint64_t id, digest;
	int32_t error, action; /* errno of the action that failed, or -1 where it was none */
};

static int host_namespace = -1;
static struct sockets host;

_Noreturn static void die(const char *what)
{
	fprintf(stderr, "spawn-net: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void close_file(int *file)
{
	int error = errno;
	if (*file >= 0)
		close(*file);
	errno = error;
}

#define FILE_SCOPE __attribute__((cleanup(close_file)))

static void digest_add(uint64_t *digest, const void *bytes, size_t size)
{
	const unsigned char *at = bytes;
	while (size--)
		*digest = (*digest ^ *at++) * 1099511628211ULL;
}

static int netlink_open(int family)
{
	struct sockaddr_nl local = {.nl_family = AF_NETLINK};
	int opened = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, family);
	if (opened >= 0 && bind(opened, (struct sockaddr *)&local, sizeof local)) {
		close_file(&opened);
		return -1;
	}
	return opened;
}

/* What changes by itself: the ages of neighbours, the kernel's own neighbours, and that the
 * carrier of a link comes up a while after the link. */
static void digest_message(uint64_t *digest, const struct nlmsghdr *message)
{
	const char *body = NLMSG_DATA(message);
	size_t size = message->nlmsg_len - NLMSG_LENGTH(0);
	struct ndmsg neighbour;
	struct rtmsg route;
	if (message->nlmsg_type == RTM_NEWROUTE) {
		memcpy(&route, body, sizeof route);
		route.rtm_flags &= ~(unsigned)(RTNH_F_LINKDOWN | RTNH_F_DEAD);
		digest_add(digest, &route, sizeof route);
		digest_add(digest, body + sizeof route, size - sizeof route);
		return;
	}
	if (message->nlmsg_type != RTM_NEWNEIGH) {
		digest_add(digest, body, size);
		return;
	}
	memcpy(&neighbour, body, sizeof neighbour);
	if (neighbour.ndm_state & NUD_NOARP)
		return;
	digest_add(digest, &neighbour, sizeof neighbour);
	size_t left = size - sizeof neighbour;
	for (struct rtattr *part = (void *)(body + NLMSG_ALIGN(sizeof neighbour));
			RTA_OK(part, left); part = RTA_NEXT(part, left))
		if (part->rta_type != NDA_CACHEINFO && part->rta_type != NDA_PROBES)
			digest_add(digest, part, part->rta_len);
}

/* One request; reads to its acknowledgement, or to the end of its dump. */
static int ask(int socket, const char *bytes, size_t size, uint64_t *digest)
{
	_Alignas(struct nlmsghdr) char answer[16384];
	if (send(socket, bytes, size, 0) < 0)
		return -1;
	for (;;) {
		ssize_t length = recv(socket, answer, sizeof answer, MSG_TRUNC);
		if (length < 0 && errno == EINTR)
			continue;
		if (length < 0)
			return -1;
		if (length > (ssize_t)sizeof answer) {
			errno = EMSGSIZE;
			return -1;
		}
		size_t left = (size_t)length;
		for (struct nlmsghdr *message = (void *)answer; NLMSG_OK(message, left);
				message = NLMSG_NEXT(message, left)) {
			if (message->nlmsg_type == NLMSG_DONE)
				return 0;
			if (message->nlmsg_type == NLMSG_ERROR) {
				errno = -((struct nlmsgerr *)NLMSG_DATA(message))->error;
				return errno ? -1 : 0;
			}
			digest_message(digest, message);
		}
	}
}

static int write_file(const char *path, const char *text)
{
	int file FILE_SCOPE = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0)
		return -1;
	return write(file, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -1;
}

static int read_file(const char *path, uint64_t *digest)
{
	char text[4096];
	int file FILE_SCOPE = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = file < 0 ? -1 : read(file, text, sizeof text);
	if (length > 0)
		digest_add(digest, text, (size_t)length);
	return length < 0 ? -1 : 0;
}

/* Of "TCP: inuse 0 orphan 0 tw 0 alloc 1 mem 0", what counts one namespace and not all. "used" has
 * our own netlink sockets in it, for a grace period after they were closed. */
static int read_counts(const char *path, uint64_t *digest)
{
	char text[1024], *rest = text;
	int file FILE_SCOPE = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
	if (length < 0)
		return -1;
	text[length] = 0;
	for (char *word; (word = strtok_r(rest, " \n", &rest));)
		if (!strcmp(word, "inuse") || !strcmp(word, "tw")) {
			const char *count = strtok_r(rest, " \n", &rest);
			if (count)
				digest_add(digest, count, strlen(count) + 1);
		}
	return 0;
}

static int ask_family(struct sockets *sockets, const struct action *action, const char *bytes,
		      uint64_t *digest)
{
	int *socket = action->family == NETLINK_ROUTE ? &sockets->route : &sockets->netfilter;
	if (action->family != NETLINK_ROUTE && action->family != NETLINK_NETFILTER)
		return errno = EPROTO, -1;
	if (*socket < 0)
		*socket = netlink_open(action->family);
	return *socket < 0 ? -1 : ask(*socket, bytes, action->size, digest);
}

static int act(const struct action *action, const char *bytes, struct sockets *inside,
	       uint64_t *digest)
{
	const char *value = memchr(bytes, 0, action->size);
	bool text = value && !bytes[action->size - 1];
	uint64_t ignored = 0;
	if (action->kind == ASK_HOST)
		return ask_family(&host, action, bytes, &ignored);
	if (action->kind == ASK)
		return ask_family(inside, action, bytes, digest);
	if (action->kind == ABSENT && ask_family(&host, action, bytes, &ignored) == 0)
		return errno = EEXIST, -1;
	if (action->kind == ABSENT)
		return errno == ENOENT ? 0 : -1;
	if (action->kind == WRITE && text)
		return write_file(bytes, value + 1);
	if (action->kind == READ && text)
		return read_file(bytes, digest);
	if (action->kind == COUNTS && text)
		return read_counts(bytes, digest);
	errno = EPROTO;
	return -1;
}

static int run(const struct request *request, const char *at, const char *end, struct answer *answer)
{
	struct sockets inside = {-1, -1};
	int failed = 0;
	answer->digest = 14695981039346656037ULL;
	for (uint32_t i = 0; i < request->actions && !failed; i++) {
		struct action action;
		answer->action = (int32_t)i;
		errno = EPROTO;
		if ((size_t)(end - at) < sizeof action)
			return -1;
		memcpy(&action, at, sizeof action);
		at += sizeof action;
		uint32_t padded = (action.size + 3) & ~3U;
		if (!action.size || padded > (size_t)(end - at))
			return -1;
		failed = act(&action, at, &inside, &answer->digest);
		at += padded;
	}
	close_file(&inside.route);
	close_file(&inside.netfilter);
	return failed;
}

/* A namespace belongs to the user namespace of who makes it, and one cannot come back from there:
 * so a child makes it, and we take it from the child. */
static int make_owned(int owner)
{
	int ready[2], opened = -1;
	char path[64], byte = 0;
	if (pipe2(ready, O_CLOEXEC))
		return -1;
	pid_t child = fork();
	if (child == 0) {
		/* Entering a user namespace clears the signal of the parent's death: so it is set after. */
		if (setns(owner, CLONE_NEWUSER) == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 &&
		    unshare(CLONE_NEWNET) == 0 && write(ready[1], &byte, 1) == 1)
			pause();
		_exit(1);
	}
	close(ready[1]);
	if (child > 0 && read(ready[0], &byte, 1) == 1) {
		snprintf(path, sizeof path, "/proc/%d/ns/net", child);
		opened = open(path, O_RDONLY | O_CLOEXEC);
	} else {
		errno = EPERM;
	}
	int error = errno;
	close(ready[0]);
	if (child > 0) {
		kill(child, SIGKILL);
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			;
	}
	errno = error;
	return opened;
}

static int make_namespace(int owner)
{
	if (owner >= 0)
		return make_owned(owner);
	if (unshare(CLONE_NEWNET))
		return -1;
	return open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
}

/* The same, where it cannot be taken for the one that scripts speak of. */
static int above_namespace(int opened)
{
	int file FILE_SCOPE = opened;
	return file < 0 ? -1 : fcntl(file, F_DUPFD_CLOEXEC, NAMESPACE + 1);
}

static void serve_one(const struct request *request, const char *actions, const char *end, int given)
{
	struct answer answer = {.id = request->id, .action = -1};
	int made FILE_SCOPE = -1;
	errno = EPROTO;
	if (request->verb == MAKE)
		made = above_namespace(make_namespace(given));
	else if (request->verb == LOOK && given >= 0)
		made = above_namespace(dup(given));
	if (request->verb != HOST && (made < 0 || setns(made, CLONE_NEWNET) ||
				      dup3(made, NAMESPACE, O_CLOEXEC) < 0))
		answer.error = errno;
	else if (run(request, actions, end, &answer))
		answer.error = errno;
	close(NAMESPACE);
	if (setns(host_namespace, CLONE_NEWNET))
		die("return to the host's network namespace");
	int given_back = !answer.error && request->verb == MAKE;
	if (message_send(CONTROL, &answer, sizeof answer, &made, given_back))
		exit(0);
}

int main(void)
{
	static _Alignas(struct request) char script[SCRIPT_MAX];
	_Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))];
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT); /* Ctrl-C is for the runtime to handle, in order */
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	(void)setpriority(PRIO_PROCESS, 0, 0); /* it prepares: the runtime's own haste is not for it */
	fcntl(CONTROL, F_SETFD, FD_CLOEXEC);
	close_range(CONTROL + 1, ~0U, 0);
	host_namespace = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	host = (struct sockets){netlink_open(NETLINK_ROUTE), netlink_open(NETLINK_NETFILTER)};
	if (host_namespace < 0 || host.route < 0 || host.netfilter < 0)
		die("open the host's network");
	for (;;) {
		struct iovec part = {script, sizeof script};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space,
					 .msg_controllen = sizeof space};
		int given FILE_SCOPE = -1;
		struct request request;
		ssize_t size = recvmsg(CONTROL, &message, MSG_CMSG_CLOEXEC);
		if (size < 0 && errno == EINTR)
			continue;
		if (size <= 0)
			return 0;
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		if (header && header->cmsg_type == SCM_RIGHTS)
			memcpy(&given, CMSG_DATA(header), sizeof given);
		if (size < (ssize_t)sizeof request)
			continue;
		memcpy(&request, script, sizeof request);
		serve_one(&request, script + sizeof request, script + size, given);
	}
}
