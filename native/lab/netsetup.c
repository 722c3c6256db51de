/* Sets up one container's network by a list of actions, and stamps the steps that they form.
 *
 *   netsetup ACTION...
 *
 *   enter FILE             the mount namespace of that file
 *   step NAME              begin a step: the actions up to the next one
 *   namespace              make a network namespace, open it as descriptor NAMESPACE, and stay in it
 *   name PATH              mount the current network namespace on a new file
 *   unname PATH            remove both
 *   write PATH TEXT        overwrite a file
 *   listen                 learn of changes of the current namespace's IPv6 addresses
 *   leave                  return to the host's network namespace
 *   host WHAT MESSAGE      send a netlink message in the host's namespace; WHAT is what it does
 *   container WHAT MESSAGE the same in the new namespace
 *   await ADDRESS          wait until that IPv6 address, of which we listen, can be used
 *   mounts                 make a process in a mount namespace of its own, a copy of every mount
 *   run WORD... ;          execute a command, and wait for it
 *   undo ACTION            what to do in the end if the action before it was done
 *
 * MESSAGE and ADDRESS are in hexadecimal digits. The namespace that it is started in plays the host.
 * When standard input ends or a signal asks for it, what was done is undone, the last first. It prints
 * the protocol of backends/__init__.py in one write at the end, so no step includes printing.
 *
 * It is C because what it times are single requests of microseconds.
 */
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/error.h"
#include "common/netlink.h"

#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum {
	ACTIONS = 64,
	STEPS = 16,
	NAMESPACE = 100, /* messages name it */
	DUPLICATES_MS = 10000, /* far beyond the 1 to 2 s of duplicate-address detection */
};

static struct error failure;
static struct step {
	const char *name;
	int64_t start, end;
} steps[STEPS + 1];
static struct step *step = steps; /* the current one; the first has no name */
static int home = -1; /* the host's network namespace */
static int host = -1, container = -1, news = -1; /* netlink sockets */
static int complaints; /* where a command's standard error goes */
static int stop; /* readable once a signal asks to end */
static pid_t child; /* in the copied mount namespace */

static int enter(char **words)
{
	int mounts FILE_SCOPE = open(words[0], O_RDONLY | O_CLOEXEC);
	if (mounts < 0 || setns(mounts, CLONE_NEWNS))
		return error_set(&failure, errno, "cannot enter the mount namespace %s", words[0]);
	return 0;
}

static int begin_step(char **words)
{
	if (step == steps + STEPS)
		return error_set(&failure, 0, "there are more than %d steps", STEPS);
	step->end = clock_now();
	*++step = (struct step){.name = words[0], .start = step[-1].end};
	return 0;
}

static int make_namespace(char **words)
{
	(void)words;
	home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (home < 0 || unshare(CLONE_NEWNET))
		return error_set(&failure, errno, "cannot create a network namespace");
	int made FILE_SCOPE = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (made < 0 || dup3(made, NAMESPACE, O_CLOEXEC) < 0)
		return error_set(&failure, errno, "cannot open the new network namespace");
	container = netlink_open(0);
	if (container < 0)
		return error_set(&failure, -container, "cannot open a netlink socket in it");
	return 0;
}

static int name_namespace(char **words)
{
	int file FILE_SCOPE = open(words[0], O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0);
	if (file < 0)
		return error_set(&failure, errno, "cannot create %s", words[0]);
	if (!mount("/proc/thread-self/ns/net", words[0], NULL, MS_BIND, NULL))
		return 0;
	error_set(&failure, errno, "cannot mount the network namespace on %s", words[0]);
	(void)unlink(words[0]);
	return -failure.code;
}

static int remove_name(char **words)
{
	if (umount2(words[0], MNT_DETACH) || unlink(words[0]))
		return error_set(&failure, errno, "cannot remove %s", words[0]);
	return 0;
}

static int write_file(char **words)
{
	int file FILE_SCOPE = open(words[0], O_WRONLY | O_CLOEXEC);
	if (file < 0 || write(file, words[1], strlen(words[1])) < 0)
		return error_set(&failure, errno, "cannot write %s", words[0]);
	return 0;
}

static int listen_for_addresses(char **words)
{
	(void)words;
	news = netlink_open(RTMGRP_IPV6_IFADDR);
	return news < 0 ? error_set(&failure, -news, "cannot listen for IPv6 addresses") : 0;
}

static int leave(char **words)
{
	(void)words;
	if (setns(home, CLONE_NEWNET))
		return error_set(&failure, errno, "cannot return to the host's network namespace");
	return 0;
}

static int ask_host(char **words)
{
	int bad = netlink_ask(host, words[1]);
	return bad ? error_set(&failure, -bad, "cannot %s", words[0]) : 0;
}

static int ask_container(char **words)
{
	int bad = netlink_ask(container, words[1]);
	return bad ? error_set(&failure, -bad, "cannot %s", words[0]) : 0;
}

/* The kernel tells of an address when it is added, and when it is known to be no duplicate. */
static int await_address(char **words)
{
	struct {
		struct nlmsghdr header;
		struct ifaddrmsg address;
		char rest[2048];
	} told;
	struct pollfd awaited[] = {{news, POLLIN, 0}, {stop, POLLIN, 0}};
	for (;;) {
		int ready = poll(awaited, 2, DUPLICATES_MS);
		if (ready > 0 && awaited[1].revents)
			return error_set(&failure, EINTR, "cannot await the IPv6 address");
		ssize_t size = ready > 0 ? recv(news, &told, sizeof told, 0) : -1;
		if (size < 0)
			return error_set(&failure, ready ? errno : ETIMEDOUT,
					 "cannot await the IPv6 address");
		if (told.header.nlmsg_type != RTM_NEWADDR ||
		    !memmem(&told, (size_t)size, words[0], sizeof(struct in6_addr)))
			continue;
		if (told.address.ifa_flags & IFA_F_DADFAILED)
			return error_set(&failure, EADDRINUSE, "the IPv6 address is a duplicate");
		if (!(told.address.ifa_flags & IFA_F_TENTATIVE))
			return 0;
	}
}

/* As the first thing that a container's start does next. */
static int copy_mounts(char **words)
{
	int result[2], wrong = 0;
	(void)words;
	if (pipe2(result, O_CLOEXEC))
		return error_set(&failure, errno, "cannot make a pipe");
	child = fork();
	if (child == 0) {
		if (prctl(PR_SET_PDEATHSIG, SIGKILL) || unshare(CLONE_NEWNS) ||
		    mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL))
			wrong = errno;
		if (write(result[1], &wrong, sizeof wrong) == sizeof wrong)
			pause();
		_exit(0);
	}
	close(result[1]);
	if (child < 0 || read(result[0], &wrong, sizeof wrong) != sizeof wrong)
		wrong = child < 0 ? errno : EPIPE;
	close(result[0]);
	return wrong ? error_set(&failure, wrong, "cannot create a mount namespace") : 0;
}

static int complain(char **command, int status)
{
	char words[300] = "", complaint[200] = "";
	for (size_t length = 0; *command && length < sizeof words; command++)
		length += (size_t)snprintf(words + length, sizeof words - length, "%s ", *command);
	if (pread(complaints, complaint, sizeof complaint - 1, 0) < 0)
		return error_set(&failure, errno, "cannot read the complaints of %s", words);
	complaint[strcspn(complaint, "\n")] = 0;
	if (WIFSIGNALED(status))
		return error_set(&failure, 0, "%sended by signal %d", words, WTERMSIG(status));
	return error_set(&failure, 0, "%sexited with %d: %s", words, WEXITSTATUS(status),
			 complaint);
}

static int run(char **command)
{
	posix_spawn_file_actions_t actions;
	pid_t pid;
	int status;
	if (ftruncate(complaints, 0) || lseek(complaints, 0, SEEK_SET) < 0)
		return error_set(&failure, errno, "cannot empty the file for complaints");
	int wrong = posix_spawn_file_actions_init(&actions);
	if (!wrong) {
		wrong = posix_spawn_file_actions_adddup2(&actions, complaints, STDERR_FILENO);
		wrong = wrong ? wrong
			      : posix_spawnp(&pid, *command, &actions, NULL, command, environ);
		(void)posix_spawn_file_actions_destroy(&actions);
	}
	if (wrong)
		return error_set(&failure, wrong, "cannot execute %s", *command);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return error_set(&failure, errno, "cannot wait for %s", *command);
	return status ? complain(command, status) : 0;
}

enum { UP_TO_SEMICOLON = -1 };

static const struct verb {
	const char *name;
	int words, coded; /* how many, and which of them, from 1 on, is in hexadecimal digits */
	int (*take)(char **words);
} verbs[] = {
	{"enter", 1, 0, enter},
	{"step", 1, 0, begin_step},
	{"namespace", 0, 0, make_namespace},
	{"name", 1, 0, name_namespace},
	{"unname", 1, 0, remove_name},
	{"write", 2, 0, write_file},
	{"listen", 0, 0, listen_for_addresses},
	{"leave", 0, 0, leave},
	{"host", 2, 2, ask_host},
	{"container", 2, 2, ask_container},
	{"await", 1, 1, await_address},
	{"mounts", 0, 0, copy_mounts},
	{"run", UP_TO_SEMICOLON, 0, run},
};

static struct action {
	int (*take)(char **words);
	char **words;
	bool undoes;
} actions[ACTIONS];
static size_t action_count;

static void decode(char *text)
{
	unsigned char byte;
	for (const char *at = text; sscanf(at, "%2hhx", &byte) == 1; at += 2)
		*text++ = (char)byte;
}

/* Returns how many words it has with its verb's. */
static int read_action(char **words, int count, struct action *action)
{
	for (const struct verb *verb = verbs; verb < verbs + sizeof verbs / sizeof *verbs; verb++) {
		int length = verb->words;
		if (strcmp(words[0], verb->name) != 0)
			continue;
		if (length == UP_TO_SEMICOLON) {
			for (length = 1; length < count && strcmp(words[length], ";") != 0;)
				length++;
			if (length < count)
				words[length] = NULL;
		}
		if (length >= count)
			break;
		if (verb->coded)
			decode(words[verb->coded]);
		action->take = verb->take;
		action->words = words + 1;
		return 1 + length;
	}
	return error_set(&failure, 0, "the action %s is unknown, or not whole", words[0]);
}

static int read_actions(char **words, int count)
{
	while (count > 0) {
		if (action_count == ACTIONS)
			return error_set(&failure, 0, "there are more than %d actions", ACTIONS);
		struct action *action = &actions[action_count++];
		action->undoes = count > 1 && !strcmp(*words, "undo");
		words += action->undoes;
		count -= action->undoes;
		int taken = read_action(words, count, action);
		if (taken < 0)
			return taken;
		words += taken;
		count -= taken;
	}
	return 0;
}

static int prepare(void)
{
	sigset_t asked;
	sigemptyset(&asked);
	sigaddset(&asked, SIGTERM);
	sigaddset(&asked, SIGINT);
	sigaddset(&asked, SIGHUP);
	(void)signal(SIGPIPE, SIG_IGN);
	stop = sigprocmask(SIG_BLOCK, &asked, NULL) ? -1 : signalfd(-1, &asked, SFD_CLOEXEC);
	complaints = memfd_create("complaints", MFD_CLOEXEC);
	if (stop < 0 || complaints < 0)
		return error_set(&failure, errno, "cannot open a signal or memory descriptor");
	host = netlink_open(0);
	return host < 0 ? error_set(&failure, -host, "cannot open a netlink socket") : 0;
}

static int print_ready(int64_t ready)
{
	for (const struct step *each = steps + 1; each <= step; each++)
		printf("firstlight step %s %jd %jd\n", each->name, (intmax_t)each->start,
		       (intmax_t)each->end);
	printf("firstlight ready %jd\n", (intmax_t)ready);
	return fflush(stdout) ? -errno : 0;
}

static void await_end(void)
{
	char ignored[256];
	struct pollfd awaited[] = {{STDIN_FILENO, POLLIN, 0}, {stop, POLLIN, 0}};
	while (poll(awaited, 2, -1) > 0 || errno == EINTR) {
		if (awaited[1].revents)
			return;
		if (awaited[0].revents && read(STDIN_FILENO, ignored, sizeof ignored) <= 0)
			return;
	}
}

static void undo(size_t done)
{
	if (!failure.code)
		step->name = "take-down";
	if (child > 0) {
		(void)kill(child, SIGKILL);
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			;
	}
	while (done--)
		if (actions[done].undoes)
			(void)actions[done].take(actions[done].words); /* goes on after a failure */
}

int main(int argc, char **argv)
{
	static char printed[2048];
	size_t done = 0;
	setvbuf(stdout, printed, _IOFBF, sizeof printed);
	if (!read_actions(argv + 1, argc - 1) && !prepare())
		while (done < action_count &&
		       (actions[done].undoes || !actions[done].take(actions[done].words)))
			done++;
	step->end = clock_now();
	if (!failure.code && !print_ready(step->end))
		await_end();
	undo(done);
	if (!failure.code)
		return 0;
	printf("firstlight error %s%s%s%s\n", step->name ? "step " : "",
	       step->name ? step->name : "", step->name ? ": " : "", failure.text);
	return 1;
}
