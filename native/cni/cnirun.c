/* Runs the plugins of one CNI attachment, each stamped: the timed part of backends/cni.py.
 *
 *   cnirun add REQUEST [BESIDE]   ADD, say ready, hold until standard input ends, then DEL;
 *                                 meanwhile, DEL of the attachment of BESIDE
 *   cnirun up REQUEST             ADD, and leave it up
 *   cnirun del REQUEST            DEL, say ready, hold until standard input ends
 *   cnirun pod REQUEST COMMAND... make the namespace, ADD, run a command that says when it is ready
 *                                 and ends with standard input; then DEL and end the namespace
 *   cnirun burst REQUEST...       ADD of all at once, a thread each; print when each began and ended;
 *                                 then DEL of all at once
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
 *
 * It is C because all of it lies inside a timed start: an interpreter takes longer than a plugin.
 */
#include "cni/chain.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/process.h"

#include <fcntl.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>

/* What a DEL leaves in the namespace is the plugin's mistake, and the sample's error. */
static int check_gone(struct chain *chain)
{
	int there FILE_SCOPE = open(chain->namespace, O_RDONLY | O_CLOEXEC);
	if (there < 0 || setns(there, CLONE_NEWNET) || !if_nametoindex(chain->interface))
		return 0;
	return error_set(&chain->error, 0, "DEL left the interface %s in %s", chain->interface,
			 chain->namespace);
}

static void print_step(const char *name, int64_t start, int64_t end)
{
	printf("firstlight step %.64s %jd %jd\n", name, (intmax_t)start, (intmax_t)end);
}

static void print_plugins(const struct chain *chain)
{
	for (size_t i = 0; i < chain->count; i++)
		print_step(chain_name(chain->plugins[i].path), chain->plugins[i].start,
			   chain->plugins[i].end);
}

static void print_outcome(const struct chain *chain, int64_t ready)
{
	if (chain->error.code) {
		error_print(&chain->error);
		return;
	}
	print_plugins(chain);
	if (chain->packet_end)
		print_step("packet", chain->packet_start, chain->packet_end);
	printf("firstlight ready %jd\n", (intmax_t)ready);
	fflush(stdout); /* if it has no reader, standard input has ended, too */
}

static void hold(void)
{
	char ignored[256];
	ssize_t n;
	do
		n = read(STDIN_FILENO, ignored, sizeof ignored);
	while (n > 0 || (n < 0 && errno == EINTR));
}

static pid_t delete_beside(struct chain *chain)
{
	pid_t pid = fork();
	if (pid)
		return pid;
	chain_recall(chain);
	_exit(chain_delete(chain, false) ? 1 : 0);
}

static int add_and_hold(struct chain *chain, struct chain *beside)
{
	pid_t pid = beside ? delete_beside(beside) : 0;
	int bad = chain_add(chain);
	int64_t ready = clock_now();
	if (!bad)
		bad = chain_first_packet(chain);
	if (!bad)
		bad = chain_keep(chain);
	print_outcome(chain, chain->until ? chain->packet_end : ready);
	if (bad)
		chain_delete(chain, true);
	while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	if (bad)
		return bad;
	hold();
	return chain_delete(chain, false);
}

static int delete_and_hold(struct chain *chain)
{
	chain_recall(chain);
	int bad = chain_delete(chain, false);
	int64_t ready = clock_now();
	bad = bad ? bad : check_gone(chain);
	print_outcome(chain, ready);
	hold();
	return bad;
}

/* Makes the namespace that the request names, as a mounted file, and stays outside. */
static int make_namespace(struct chain *chain)
{
	struct error *error = &chain->error;
	int home FILE_SCOPE = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	int name FILE_SCOPE = open(chain->namespace, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
	if (home < 0 || name < 0 || unshare(CLONE_NEWNET))
		return error_set(error, errno, "cannot make the namespace %s", chain->namespace);
	int bad = mount("/proc/self/ns/net", chain->namespace, NULL, MS_BIND, NULL);
	if (bad)
		bad = error_set(error, errno, "cannot name the namespace %s", chain->namespace);
	if (setns(home, CLONE_NEWNET))
		bad = error_set(error, errno, "cannot leave the namespace %s", chain->namespace);
	return bad;
}

static int run_pod(struct chain *chain, char **argv)
{
	int64_t start = clock_now();
	int bad = make_namespace(chain);
	int64_t made = clock_now();
	bool has_asked = !bad;
	bad = bad ? bad : chain_add(chain);
	bad = bad ? bad : chain_keep(chain);
	if (!bad) {
		print_step("netns", start, made);
		print_plugins(chain);
		fflush(stdout);
		bad = chain_fill_gateway(chain);
	}
	bad = bad ? bad : process_execute(argv, &chain->error);
	if (bad)
		error_print(&chain->error);
	if (has_asked)
		chain_delete(chain, bad);
	(void)umount2(chain->namespace, MNT_DETACH); /* nothing can be done about it */
	(void)unlink(chain->namespace);
	return -chain->error.code;
}

static int bring_up(struct chain *chain)
{
	int bad = chain_add(chain);
	if (bad)
		chain_delete(chain, true);
	else
		bad = chain_keep(chain);
	if (bad)
		fprintf(stderr, "%s\n", chain->error.text);
	return bad;
}

struct burst {
	struct chain chain;
	pthread_t thread;
	pthread_barrier_t *together;
	int64_t start, end;
};

/* As in a resident runtime, the thread exists before the pod is requested. */
static void *add_together(void *argument)
{
	struct burst *burst = argument;
	struct chain *chain = &burst->chain;
	pthread_barrier_wait(burst->together);
	burst->start = clock_now();
	int bad = chain_add(chain);
	burst->end = chain->plugins[chain->count - 1].end; /* DEL writes its own */
	pthread_barrier_wait(burst->together);
	chain_delete(chain, bad);
	return NULL;
}

static int run_burst(size_t count, char **files)
{
	struct burst *bursts = calloc(count, sizeof *bursts);
	pthread_barrier_t together;
	int wrong = bursts ? pthread_barrier_init(&together, NULL, (unsigned)count) : ENOMEM;
	int failed = 0;
	for (size_t i = 0; i < count && !wrong && !failed; i++) {
		bursts[i].together = &together;
		failed = chain_load(&bursts[i].chain, files[i]);
		if (failed)
			fprintf(stderr, "%s\n", bursts[i].chain.error.text);
	}
	/* Threads that wait for one that cannot be made end with this process. */
	for (size_t i = 0; i < count && !wrong && !failed; i++)
		wrong = pthread_create(&bursts[i].thread, NULL, add_together, &bursts[i]);
	if (wrong)
		fprintf(stderr, "cannot call the plugins at once: %s\n", strerror(wrong));
	if (wrong || failed)
		exit(1);
	for (size_t i = 0; i < count; i++)
		pthread_join(bursts[i].thread, NULL);
	for (size_t i = 0; i < count; i++) {
		const struct chain *chain = &bursts[i].chain;
		if (chain->error.code) {
			fprintf(stderr, "%s\n", chain->error.text);
			failed = 1;
			continue;
		}
		print_step("add", bursts[i].start, bursts[i].end);
	}
	for (size_t i = 0; i < count; i++)
		free(bursts[i].chain.result);
	free(bursts);
	return failed;
}

int main(int argc, char **argv)
{
	static struct chain chain, beside;
	const char *verb = argc > 2 ? argv[1] : "";
	bool is_pod = argc > 3 && !strcmp(verb, "pod");
	bool has_beside = argc == 4 && !strcmp(verb, "add");
	bool is_known = !strcmp(verb, "add") || !strcmp(verb, "up") || !strcmp(verb, "del");
	(void)signal(SIGPIPE, SIG_IGN);
	if (argc > 2 && !strcmp(verb, "burst"))
		return run_burst((size_t)argc - 2, argv + 2);
	if (!is_pod && !has_beside && !(argc == 3 && is_known)) {
		fputs("usage: cnirun add REQUEST [BESIDE] | up REQUEST | del REQUEST | "
		      "pod REQUEST COMMAND... | burst REQUEST...\n",
		      stderr);
		return 2;
	}
	if (has_beside && chain_load(&beside, argv[3]))
		chain.error = beside.error;
	if (chain.error.code || chain_load(&chain, argv[2])) {
		error_print(&chain.error);
		return 2;
	}
	int bad = is_pod                 ? run_pod(&chain, argv + 3)
		  : !strcmp(verb, "del") ? delete_and_hold(&chain)
		  : !strcmp(verb, "up")  ? bring_up(&chain)
					 : add_and_hold(&chain, has_beside ? &beside : NULL);
	return bad ? 1 : 0;
}
