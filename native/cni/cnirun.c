/* Runs the plugins of one CNI attachment, each stamped: the timed part of backends/cni.py.
 *
 *   cnirun add REQUEST [BESIDE]   ADD, say ready, hold until standard input ends, then DEL;
 *                                 meanwhile, DEL of the attachment of BESIDE
 *   cnirun up REQUEST             ADD, and leave it up
 *   cnirun del REQUEST            DEL, say ready, hold until standard input ends
 *   cnirun pod REQUEST COMMAND... make the namespace, ADD, run a command that says when it is ready
 *                                 and ends with standard input; then DEL and end the namespace
 *
 * What it says is the protocol of backends/__init__.py. A request is lines of a word and a value:
 *
 *   kept PATH       where the result is kept, to after DEL; there before ADD, and then empty
 *   version V       the CNI version that every result must have
 *   namespace PATH  the attachment's, as in CNI_NETNS
 *   interface NAME
 *   packet ADDRESS  optional, after ADD: the step "packet" is an echo to it and back; with
 *                   "gateway", to the first IPv4 gateway of the result, or else of IPv6
 *   until packet    optional: ready when that echo is answered, and not when ADD has returned
 *   fill PATH       optional, for pod: the file in which the echo's address replaces @GATEWAY@
 *                   before the command is run
 *   env NAME=VALUE  the plugins' whole environment, but for CNI_COMMAND
 *   plugin PATH     then its configuration as JSON without the last brace, so that
 *   conf TEXT       prevResult can be added
 */
#include "chain.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a DEL has left in the namespace is the plugin's mistake, and the sample's error. */
static int check_gone(const struct request *request)
{
	scoped_fd there = open(request->namespace, O_RDONLY | O_CLOEXEC);
	if (there < 0 || setns(there, CLONE_NEWNET) || !if_nametoindex(request->interface))
		return 0;
	return fail("DEL left the interface %s in %s", request->interface, request->namespace);
}

static size_t steps(const struct request *request, char *text, size_t size)
{
	size_t used = 0;
	for (size_t i = 0; i < request->count; i++)
		used += (size_t)snprintf(text + used, size - used, "firstlight step %.64s %jd %jd\n",
					 base(request->plugins[i].path), (intmax_t)request->plugins[i].start,
					 (intmax_t)request->plugins[i].end);
	return used;
}

static void say(const struct request *request, int64_t ready)
{
	char text[4096];
	size_t used = error[0] ? 0 : steps(request, text, sizeof text);
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
		bad = first_packet(request);
		keep(request);
	}
	say(request, request->until ? request->packet_end : ready);
	if (bad)
		del(request, true);
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

/* Makes the namespace that the request names, as a file that is mounted, and stays outside. */
static int make_namespace(const struct request *request)
{
	scoped_fd home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	scoped_fd name = open(request->namespace, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
	if (home < 0 || name < 0 || unshare(CLONE_NEWNET))
		return fail("cannot make the namespace %s: %s", request->namespace, strerror(errno));
	int bad = mount("/proc/self/ns/net", request->namespace, NULL, MS_BIND, NULL);
	if (bad)
		fail("cannot name the namespace %s: %s", request->namespace, strerror(errno));
	if (setns(home, CLONE_NEWNET))
		return fail("cannot return from the namespace %s: %s", request->namespace,
			    strerror(errno));
	return bad;
}

static int run_command(char **argv)
{
	pid_t pid;
	int status = 0;
	int wrong = posix_spawn(&pid, argv[0], NULL, NULL, argv, environ);
	if (wrong)
		return fail("cannot execute %s: %s", argv[0], strerror(wrong));
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status ? fail("%s ended with status %d", base(argv[0]), WEXITSTATUS(status)) : 0;
}

static void say_steps(const struct request *request, int64_t start, int64_t made)
{
	char text[4096];
	size_t used = (size_t)snprintf(text, sizeof text, "firstlight step netns %jd %jd\n",
				       (intmax_t)start, (intmax_t)made);
	used += steps(request, text + used, sizeof text - used);
	(void)!write(STDOUT_FILENO, text, used);
}

static int run_pod(struct request *request, char **argv)
{
	int64_t start = now();
	int bad = make_namespace(request);
	int64_t made = now();
	bool asked = !bad;
	bad = bad || add(request);
	if (!bad) {
		keep(request);
		say_steps(request, start, made);
		bad = fill_destination(request) || run_command(argv);
	}
	if (bad)
		say(request, 0);
	if (asked)
		del(request, bad);
	umount2(request->namespace, MNT_DETACH);
	unlink(request->namespace);
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
	bool two = argc == 4 && !strcmp(verb, "add"), pod = argc > 3 && !strcmp(verb, "pod");
	signal(SIGPIPE, SIG_IGN);
	if (argc != 3 && !two && !pod) {
		fputs("usage: cnirun add REQUEST [BESIDE] | up REQUEST | del REQUEST | "
		      "pod REQUEST COMMAND...\n", stderr);
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
	if (pod)
		return run_pod(&request, argv + 3);
	return !strcmp(verb, "up") ? bring_up(&request) : add_and_hold(&request, two ? &beside : NULL);
}
