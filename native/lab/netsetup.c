/* One network set-up request, as a container's start makes it, each step stamped.
 *
 * In order: netns, veth, move, host.up, container.up, address[, address6], route[, mount.ns].
 * The namespace it is started in plays the host. It prints the protocol of backends/__init__.py in
 * one write at the end, so no step includes printing.
 *
 * It is C because what it times are single requests of microseconds.
 */
#include "lab/netsetup.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "lab/netlink.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

/* The first thing a container's start does next: a mount namespace, a copy of every mount. */

_Noreturn static void stay_in_new_mount_namespace(int result, int held)
{
	int wrong = 0;
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0)
		wrong = errno;
	char end;
	if (write(result, &wrong, sizeof wrong) == sizeof wrong)
		while (read(held, &end, 1) < 0 && errno == EINTR)
			;
	_exit(0);
}

static int mount_namespace(struct setup *setup)
{
	int result[2], held[2];
	if (pipe2(result, O_CLOEXEC) < 0 || pipe2(held, O_CLOEXEC) < 0)
		return error_set(&setup->error, errno,
				 "cannot make a pipe to the mount namespace's process");
	setup->child = fork();
	if (setup->child == 0) {
		close(held[1]);
		stay_in_new_mount_namespace(result[1], held[0]);
	}
	close(result[1]);
	close(held[0]);
	setup->held = held[1];
	if (setup->child < 0)
		return error_set(&setup->error, errno, "cannot fork the mount namespace's process");
	int wrong = 0;
	ssize_t length = read(result[0], &wrong, sizeof wrong);
	close(result[0]);
	if (length != sizeof wrong)
		wrong = EPIPE;
	if (!wrong)
		return 0;
	return error_set(&setup->error, wrong, "cannot create the mount namespace of %s",
			 setup->name);
}

static struct step {
	const char *name, *by_ip;
	int (*by_netlink)(struct setup *);
	int64_t start, end;
} steps[] = {
	{"netns", "netns add $namespace", netsetup_netlink_netns, 0, 0},
	{"veth", "link add $host type veth peer name $container", netsetup_netlink_veth, 0, 0},
	{"move", "link set $container netns $namespace", netsetup_netlink_move, 0, 0},
	{"host.up", "link set $host up", netsetup_netlink_host_up, 0, 0},
	{"container.up", "-n $namespace link set lo up;-n $namespace link set $container up",
	 netsetup_netlink_container_up, 0, 0},
	{"address", "-n $namespace address add $address dev $container", netsetup_netlink_address,
	 0, 0},
	{"address6", NULL, netsetup_netlink_address6, 0, 0},
	{"route",
	 "route add $address dev $host;"
	 "-n $namespace route add default via $gateway dev $container onlink",
	 netsetup_netlink_route, 0, 0},
	{"mount.ns", NULL, mount_namespace, 0, 0},
};
#define EACH_STEP(step) \
	for (struct step *step = steps; step < steps + sizeof steps / sizeof *steps; step++)

static bool left_out(const struct setup *setup, const struct step *step)
{
	return (step->by_netlink == netsetup_netlink_move && setup->in_place) ||
	       (step->by_netlink == netsetup_netlink_address6 && !setup->has_address6) ||
	       (step->by_netlink == mount_namespace && !setup->mount_ns);
}

static int take_step(struct setup *setup, const struct step *step)
{
	bool is_veth = step->by_netlink == netsetup_netlink_veth;
	if (!setup->by_ip || !step->by_ip)
		return step->by_netlink(setup);
	int bad = netsetup_ip(setup, is_veth && setup->in_place
					     ? "link add $host type veth peer name $container "
					       "netns $namespace"
					     : step->by_ip);
	setup->linked |= is_veth && !bad;
	setup->named |= step->by_netlink == netsetup_netlink_netns && !bad;
	return bad;
}

static int set_up(struct setup *setup)
{
	EACH_STEP(step)
	{
		if (left_out(setup, step))
			continue;
		setup->step = step->name;
		step->start = clock_now();
		int bad = take_step(setup, step);
		if (bad)
			return bad;
		step->end = clock_now();
	}
	return 0;
}

static void take_down(struct setup *setup)
{
	if (!setup->error.code)
		setup->step = "take-down";
	if (setup->child > 0) {
		close(setup->held);
		while (waitpid(setup->child, NULL, 0) < 0 && errno == EINTR)
			;
	}
	if (!setup->by_ip)
		netsetup_netlink_take_down(setup);
	if (setup->by_ip && setup->linked)
		netsetup_ip(setup, "link delete $host");
	if (setup->by_ip && setup->named)
		netsetup_ip(setup, "netns delete $namespace");
}

static int print_error(const struct setup *setup)
{
	printf("firstlight error %s%s%s%s\n", setup->step ? "step " : "",
	       setup->step ? setup->step : "", setup->step ? ": " : "", setup->error.text);
	fflush(stdout);
	return 1;
}

static int print_ready(int64_t ready)
{
	EACH_STEP(step)
	if (step->end)
		printf("firstlight step %s %jd %jd\n", step->name, (intmax_t)step->start,
		       (intmax_t)step->end);
	printf("firstlight ready %jd\n", (intmax_t)ready);
	return fflush(stdout) ? -errno : 0;
}

static void await_end(int stop)
{
	char ignored[256];
	struct pollfd awaited[] = {
		{.fd = STDIN_FILENO, .events = POLLIN},
		{.fd = stop, .events = POLLIN},
	};
	while (poll(awaited, 2, -1) > 0 || errno == EINTR) {
		if (awaited[1].revents)
			return;
		if (awaited[0].revents && read(STDIN_FILENO, ignored, sizeof ignored) <= 0)
			return;
	}
}

static int catch_signals(void)
{
	sigset_t asked;
	sigemptyset(&asked);
	sigaddset(&asked, SIGTERM);
	sigaddset(&asked, SIGINT);
	sigaddset(&asked, SIGHUP);
	(void)signal(SIGPIPE, SIG_IGN);
	return sigprocmask(SIG_BLOCK, &asked, NULL) ? -1 : signalfd(-1, &asked, SFD_CLOEXEC);
}

static int prepare(struct setup *setup)
{
	setup->stop = catch_signals();
	setup->complaints = memfd_create("complaints", MFD_CLOEXEC);
	if (setup->stop < 0 || setup->complaints < 0)
		return error_set(&setup->error, errno, "cannot open a signal or memory descriptor");
	setup->host_socket = netlink_open(0);
	if (setup->host_socket < 0)
		return error_set(&setup->error, -setup->host_socket,
				 "cannot open a netlink socket");
	if (!setup->mounts)
		return 0;
	int mounts FILE_SCOPE = open(setup->mounts, O_RDONLY | O_CLOEXEC);
	if (mounts < 0 || setns(mounts, CLONE_NEWNS) < 0)
		return error_set(&setup->error, errno, "cannot enter the mount namespace %s",
				 setup->mounts);
	return 0;
}

static int bad_option(struct setup *setup, const char *text)
{
	return error_set(
		&setup->error, 0,
		"%s; usage: netsetup [--method netlink|ip] --name NAME --address A --gateway A "
		"[--address6 A [--no-dad]] [--in-place] [--no-ipv6] [--by-descriptor] [--mount-ns] "
		"[--mounts FILE]",
		text);
}

static int check_options(struct setup *setup)
{
	if (!setup->name || !setup->address.s_addr || !setup->gateway.s_addr)
		return bad_option(setup, "--name, --address and --gateway are needed");
	if (strlen(setup->name) + sizeof "-h" > IFNAMSIZ || strchr(setup->name, '/'))
		return bad_option(setup, "--name is longer than 13 bytes or has a slash");
	if (setup->by_ip && (setup->no_ipv6 || setup->by_descriptor || setup->has_address6))
		return bad_option(setup, "--no-ipv6, --by-descriptor and --address6 need netlink");
	inet_ntop(AF_INET, &setup->address, setup->address_text, sizeof setup->address_text);
	inet_ntop(AF_INET, &setup->gateway, setup->gateway_text, sizeof setup->gateway_text);
	snprintf(setup->host, sizeof setup->host, "%s-h", setup->name);
	snprintf(setup->container, sizeof setup->container, "%s-c", setup->name);
	snprintf(setup->path, sizeof setup->path, NETSETUP_NAMED "%s", setup->name);
	return 0;
}

enum { METHOD = 1, NAME, ADDRESS, GATEWAY, ADDRESS6, MOUNTS };

static bool take_option(struct setup *setup, int option, const char *value)
{
	switch (option) {
	case 0: /* a flag, set by getopt_long itself */
		return true;
	case METHOD:
		setup->by_ip = strcmp(value, "ip") == 0;
		return setup->by_ip || strcmp(value, "netlink") == 0;
	case NAME:
		setup->name = value;
		return true;
	case ADDRESS:
		return inet_pton(AF_INET, value, &setup->address) == 1;
	case GATEWAY:
		return inet_pton(AF_INET, value, &setup->gateway) == 1;
	case ADDRESS6:
		setup->has_address6 = true;
		return inet_pton(AF_INET6, value, &setup->address6) == 1;
	case MOUNTS:
		setup->mounts = value;
		return true;
	default:
		return false;
	}
}

static int read_options(struct setup *setup, int argc, char **argv)
{
	const struct option options[] = {
		{"method", required_argument, NULL, METHOD},
		{"name", required_argument, NULL, NAME},
		{"address", required_argument, NULL, ADDRESS},
		{"gateway", required_argument, NULL, GATEWAY},
		{"address6", required_argument, NULL, ADDRESS6},
		{"mounts", required_argument, NULL, MOUNTS},
		{"in-place", no_argument, &setup->in_place, 1},
		{"no-ipv6", no_argument, &setup->no_ipv6, 1},
		{"by-descriptor", no_argument, &setup->by_descriptor, 1},
		{"no-dad", no_argument, &setup->no_dad, 1},
		{"mount-ns", no_argument, &setup->mount_ns, 1},
		{NULL, 0, NULL, 0},
	};
	opterr = 0;
	for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
		if (!take_option(setup, option, optarg))
			return bad_option(setup, argv[optind - 1]);
	return optind == argc ? check_options(setup) : bad_option(setup, argv[optind]);
}

int main(int argc, char **argv)
{
	static char printed[2048];
	struct setup setup = {0};
	setvbuf(stdout, printed, _IOFBF, sizeof printed);
	if (read_options(&setup, argc, argv) || prepare(&setup))
		return print_error(&setup);
	if (!set_up(&setup) && !print_ready(clock_now()))
		await_end(setup.stop);
	take_down(&setup);
	return setup.error.code ? print_error(&setup) : 0;
}
