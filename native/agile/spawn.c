/* The spawner: makes sandboxes from prepared parts, one clone each.
 *
 * A small single-threaded process in a pruned mount namespace, so that a clone copies little. It
 * reads requests on descriptor 3 and tells there what it made and what ended (spawner.h). A child
 * speaks for itself on its control socket: it makes itself a sandbox, says so, waits for the
 * message that says what to execute, and executes it. A start message that was sent before the
 * request is read at once; so a prepared sandbox and a direct start are the same code.
 *
 * All that it made dies with it, and it ends when descriptor 3 does.
 *
 * It is C because a start begins with a clone of it, and an interpreter has far more memory to map.
 */
#include "common/message.h"
#include "spawner.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CONTROL = 3, DESCRIPTORS = 3 + CGROUPS_MAX, ARGUMENTS = 4096 };

static struct sock_filter programs[PROFILES][PROFILE_MAX];
static struct sock_fprog profiles[PROFILES];

/* Filled by a child only, after its clone: it has no other memory to parse its start into. */
static char words[START_MAX];
static char *pointers[ARGUMENTS + 2];

_Noreturn static void die(const char *what)
{
	fprintf(stderr, "spawn: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void close_all(const int *descriptors, int count)
{
	for (int i = 0; i < count; i++)
		close(descriptors[i]);
}

/* Returns the message's size, 0 at the end, or -1. Descriptors beyond the most are not kept. */
static ssize_t receive(int socket, void *to, size_t size, int flags, int *descriptors, int most,
		       int *count)
{
	_Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int[DESCRIPTORS]))];
	struct iovec part = {to, size};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = space,
				 .msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)most)};
	ssize_t got;
	*count = 0;
	do
		got = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	struct cmsghdr *header = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_type == SCM_RIGHTS) {
		size_t bytes = header->cmsg_len - CMSG_LEN(0);
		if (bytes > sizeof(int) * (size_t)most)
			bytes = sizeof(int) * (size_t)most; /* padding may hold one more */
		*count = (int)(bytes / sizeof(int));
		memcpy(descriptors, CMSG_DATA(header), bytes);
	}
	if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
		close_all(descriptors, *count);
		*count = 0;
		errno = EMSGSIZE;
		return -1;
	}
	return got;
}

static void tell(const struct news *news, int descriptor)
{
	if (message_send(CONTROL, news, sizeof *news, &descriptor, descriptor >= 0))
		exit(1); /* the runtime is gone: so are we, and all that we made */
}

static void report(int control, enum step step, int error, const int64_t stamps[STEPS])
{
	struct report message = {.step = step, .error = error};
	memcpy(message.stamps, stamps, sizeof message.stamps);
	while (send(control, &message, sizeof message, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

/* Points argv, envp and the directory into words; -1 if they are not as the protocol says. */
static int parse_start(size_t size, char ***argv, char ***envp, char **directory)
{
	struct start start;
	char *at = words + sizeof start, *end = words + size;
	if (size < sizeof start)
		return -1;
	memcpy(&start, words, sizeof start);
	if (!start.argc || start.argc > ARGUMENTS || start.envc > ARGUMENTS - start.argc)
		return -1;
	uint32_t count = start.argc + start.envc + 1;
	char *strings = at;
	for (uint32_t i = 0; i < count; i++) {
		char *nul = at < end ? memchr(at, 0, (size_t)(end - at)) : NULL;
		if (!nul)
			return -1;
		at = nul + 1;
	}
	at = strings;
	*argv = pointers;
	*envp = pointers + start.argc + 1;
	for (uint32_t i = 0; i < count; i++) {
		if (i == count - 1)
			*directory = at;
		else
			pointers[i < start.argc ? i : i + 1] = at;
		at += strlen(at) + 1;
	}
	return 0;
}

static int take_streams(const int *streams, int count)
{
	if (count != 3) {
		errno = EPROTO;
		return -1;
	}
	for (int i = 0; i < 3; i++)
		if (dup2(streams[i], i) < 0)
			return -1;
	/* What is left is the control socket: it ends by the exec. */
	return setsid() < 0 ? -1 : 0;
}

_Noreturn static void be_instance(const struct request *request, struct parts *parts)
{
	int64_t stamps[STEPS] = {0};
	enum step step = STEP_CGROUP;
	int streams[3], count, control = parts->control;
	char **argv = NULL, **envp = NULL, *directory = NULL;
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (sandbox_enter(&request->sandbox, parts, &profiles[request->sandbox.profile], stamps,
			  &step))
		goto failed;
	if (dup3(control, CONTROL, O_CLOEXEC) < 0)
		goto failed;
	control = CONTROL;
	if (close_range(CONTROL + 1, ~0U, 0))
		goto failed;
	step = STEP_WAIT;
	stamps[step] = monotonic();
	ssize_t size = receive(CONTROL, words, sizeof words, MSG_DONTWAIT, streams, 3, &count);
	if (size < 0 && errno == EAGAIN) {
		report(CONTROL, step, 0, stamps);
		size = receive(CONTROL, words, sizeof words, 0, streams, 3, &count);
	}
	if (size == 0)
		_exit(0); /* not needed any more, or the runtime is gone */
	if (size < 0)
		goto failed;
	step = STEP_STREAMS;
	stamps[step] = monotonic();
	if (parse_start((size_t)size, &argv, &envp, &directory)) {
		errno = EPROTO;
		goto failed;
	}
	if (take_streams(streams, count) || close_range(CONTROL + 1, ~0U, 0))
		goto failed;
	step = STEP_EXEC;
	stamps[step] = monotonic();
	report(CONTROL, step, 0, stamps);
	if (chdir(directory) == 0)
		execve(argv[0], argv, envp);
failed:
	report(control, step, errno, stamps);
	_exit(127);
}

_Noreturn static void be_template(int control, int tree)
{
	int64_t stamps[STEPS] = {0};
	char end;
	int error = template_make(tree) ? errno : 0;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	report(control, error ? STEP_ROOT : STEP_WAIT, error, stamps);
	while (read(control, &end, 1) < 0 && errno == EINTR)
		; /* until the runtime has opened our mount namespace */
	_exit(0);
}

static pid_t clone_child(const struct request *request, const struct parts *parts, int *pidfd)
{
	struct clone_args args = {
		.flags = CLONE_PIDFD, .pidfd = (uintptr_t)pidfd, .exit_signal = SIGCHLD};
	if (request->verb == SPAWN)
		args.flags |= CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS;
	if (request->sandbox.flags & SANDBOX_CLONE_INTO) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (__u64)parts->cgroups[0];
	}
	return (pid_t)syscall(SYS_clone3, &args, sizeof args);
}

static void spawn(const struct request *request, const int *descriptors, int count)
{
	struct news news = {.verb = SPAWNED, .id = request->id, .asked = monotonic()};
	int pidfd = -1, least = request->verb == SPAWN ? 3 : 2;
	struct parts parts = {.control = descriptors[0],
			      .root = descriptors[1],
			      .network = descriptors[2],
			      .cgroup_count = count - 3,
			      .self = -1};
	if (count < least || request->sandbox.profile >= PROFILES) {
		news.verb = REFUSED;
		news.error = EPROTO;
		tell(&news, -1);
		return;
	}
	for (int i = 3; i < count; i++)
		parts.cgroups[i - 3] = descriptors[i];
	pid_t pid = clone_child(request, &parts, &pidfd);
	if (pid == 0) {
		if (request->verb == TEMPLATE)
			be_template(descriptors[0], descriptors[1]);
		if (request->sandbox.flags & SANDBOX_USER_NAMESPACE)
			parts.self = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
		be_instance(request, &parts);
	}
	news.cloned = monotonic();
	news.verb = pid < 0 ? REFUSED : SPAWNED;
	news.error = pid < 0 ? errno : 0;
	news.pid = pid;
	if (pid < 0)
		pidfd = -1; /* the kernel wrote one down before it failed, and closed it */
	tell(&news, pidfd);
	if (pidfd >= 0)
		close(pidfd);
}

static void set_profile(const struct request *request, const char *bytes, size_t size)
{
	uint32_t number = request->sandbox.profile;
	struct news news = {.verb = REFUSED, .id = request->id, .error = EPROTO};
	if (number >= PROFILES || !request->length || request->length > PROFILE_MAX ||
	    size != request->length * sizeof(struct sock_filter)) {
		tell(&news, -1);
		return;
	}
	memcpy(programs[number], bytes, size);
	profiles[number] = (struct sock_fprog){(unsigned short)request->length, programs[number]};
}

static int64_t nanoseconds(struct timeval t)
{
	return t.tv_sec * 1000000000LL + t.tv_usec * 1000LL;
}

static void reap(void)
{
	struct rusage usage;
	struct news news = {.verb = EXITED};
	while ((news.pid = wait4(-1, &news.status, WNOHANG, &usage)) > 0) {
		news.user = nanoseconds(usage.ru_utime);
		news.system = nanoseconds(usage.ru_stime);
		tell(&news, -1);
	}
}

static int serve(void)
{
	static struct {
		struct request head;
		struct sock_filter rest[PROFILE_MAX];
	} request;
	int descriptors[DESCRIPTORS] = {-1}, count;
	ssize_t size =
		receive(CONTROL, &request, sizeof request, 0, descriptors, DESCRIPTORS, &count);
	if (size == 0 || (size < 0 && errno != EMSGSIZE))
		return 0;
	if (size >= (ssize_t)sizeof request.head && request.head.verb == PROFILE)
		set_profile(&request.head, (char *)request.rest,
			    (size_t)size - sizeof request.head);
	else if (size == sizeof request.head &&
		 (request.head.verb == SPAWN || request.head.verb == TEMPLATE))
		spawn(&request.head, descriptors, count);
	else
		tell(&(struct news){.verb = REFUSED, .error = EPROTO}, -1);
	close_all(descriptors, count);
	return 1;
}

/* A mount namespace with nothing in it but a place for trees and a /proc. */
static void prune_mounts(void)
{
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
		  "size=64k,mode=700") ||
	    chdir("/tmp") || mkdir("root", 0700) || mkdir("proc", 0700) ||
	    mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) ||
	    syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		die("prune the mounts");
}

int main(void)
{
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGINT); /* Ctrl-C is for the runtime to handle, in order */
	sigaddset(&signals, SIGTERM);
	if (fcntl(CONTROL, F_SETFD, FD_CLOEXEC) || close_range(CONTROL + 1, ~0U, 0) ||
	    sigprocmask(SIG_BLOCK, &signals, NULL))
		die("set up");
	/* A start must not queue behind the work of those before it; its child is born ordinary. (A
	 * child that lowered its own priority later would be made to wait for what it had before.)
	 * Without the privilege a start is only slower. */
	(void)sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK,
				 &(struct sched_param){.sched_priority = 1});
	sigdelset(&signals, SIGINT);
	sigdelset(&signals, SIGTERM);
	int children = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (children < 0)
		die("signalfd");
	prune_mounts();
	for (int open = 1; open;) {
		struct signalfd_siginfo info;
		struct pollfd ready[] = {{CONTROL, POLLIN, 0}, {children, POLLIN, 0}};
		if (poll(ready, 2, -1) < 0 && errno != EINTR)
			die("poll");
		if (ready[0].revents)
			open = serve();
		if (ready[1].revents && read(children, &info, sizeof info) > 0)
			reap();
	}
	return 0;
}
