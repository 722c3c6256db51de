/* One network set-up request, as a container's start makes it, each step stamped.
 *
 * In order: netns, veth, move, host.up, container.up, address[, address6], route[, mount.ns].
 * The namespace it is started in plays the host. What it prints is the protocol of
 * backends/__init__.py, in one write at the end, so that no step contains printing.
 */
#include "netsetup.h"
#include "netlink.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

int fail(struct setup *setup, const char *format, ...)
{
	int error = errno;
	if (setup->error[0])
		return -1;
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(setup->error, sizeof setup->error, format, arguments);
	va_end(arguments);
	size_t length = strlen(setup->error);
	if (error)
		snprintf(setup->error + length, sizeof setup->error - length, ": %s (errno %d)",
			 strerror(error), error);
	return -1;
}

/* The first thing a container's start does next: a mount namespace, a copy of every mount. */

_Noreturn static void stay_in_new_mount_namespace(int said, int held)
{
	int error = 0;
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0)
		error = errno;
	char end;
	if (write(said, &error, sizeof error) == sizeof error)
		while (read(held, &end, 1) < 0 && errno == EINTR)
			;
	_exit(0);
}

static int mount_namespace(struct setup *setup)
{
	int said[2], held[2];
	if (pipe2(said, O_CLOEXEC) < 0 || pipe2(held, O_CLOEXEC) < 0)
		return fail(setup, "cannot make a pipe to the mount namespace's process");
	setup->child = fork();
	if (setup->child == 0) {
		close(held[1]);
		stay_in_new_mount_namespace(said[1], held[0]);
	}
	close(said[1]);
	close(held[0]);
	setup->held = held[1];
	if (setup->child < 0)
		return fail(setup, "cannot fork the mount namespace's process");
	int error = 0;
	ssize_t length = read(said[0], &error, sizeof error);
	close(said[0]);
	errno = length == sizeof error ? error : EPIPE;
	return errno ? fail(setup, "cannot create the mount namespace of %s", setup->name) : 0;
}

struct step {
	const char *name;
	int (*by_ip)(struct setup *);
	int (*by_netlink)(struct setup *);
	int64_t start, end;
};

static struct step steps[] = {
	{"netns", ip_netns, netlink_netns, 0, 0},
	{"veth", ip_veth, netlink_veth, 0, 0},
	{"move", ip_move, netlink_move, 0, 0},
	{"host.up", ip_host_up, netlink_host_up, 0, 0},
	{"container.up", ip_container_up, netlink_container_up, 0, 0},
	{"address", ip_address, netlink_address, 0, 0},
	{"address6", NULL, netlink_address6, 0, 0},
	{"route", ip_route, netlink_route, 0, 0},
	{"mount.ns", mount_namespace, mount_namespace, 0, 0},
};
#define EACH_STEP(step) \
	for (struct step *step = steps; step < steps + sizeof steps / sizeof *steps; step++)

static bool left_out(const struct setup *setup, const struct step *step)
{
	return (step->by_netlink == netlink_move && setup->in_place) ||
	       (step->by_netlink == netlink_address6 && !setup->has_address6) ||
	       (step->by_netlink == mount_namespace && !setup->mount_ns);
}

static int set_up(struct setup *setup)
{
	EACH_STEP(step)
	{
		if (left_out(setup, step))
			continue;
		setup->step = step->name;
		step->start = now();
		if ((setup->by_ip ? step->by_ip : step->by_netlink)(setup) < 0)
			return -1;
		step->end = now();
	}
	return 0;
}

static void take_down(struct setup *setup)
{
	if (!setup->error[0])
		setup->step = "take-down";
	if (setup->child > 0) {
		close(setup->held);
		while (waitpid(setup->child, NULL, 0) < 0 && errno == EINTR)
			;
	}
	(setup->by_ip ? ip_take_down : netlink_take_down)(setup);
}

static int say(const char *text, size_t length)
{
	while (length > 0) {
		ssize_t written = write(STDOUT_FILENO, text, length);
		if (written < 0 && errno != EINTR)
			return -1;
		if (written > 0) {
			text += written;
			length -= (size_t)written;
		}
	}
	return 0;
}

static int say_error(const struct setup *setup)
{
	char line[sizeof setup->error + 64];
	int length = snprintf(line, sizeof line, "firstlight error %s%s%s%s\n",
			      setup->step ? "step " : "", setup->step ? setup->step : "",
			      setup->step ? ": " : "", setup->error);
	say(line, (size_t)length);
	return 1;
}

static int say_ready(int64_t ready)
{
	char text[1024];
	size_t length = 0;
	EACH_STEP(step)
	if (step->end)
		length += (size_t)snprintf(text + length, sizeof text - length,
					   "firstlight step %s %jd %jd\n", step->name,
					   (intmax_t)step->start, (intmax_t)step->end);
	length += (size_t)snprintf(text + length, sizeof text - length, "firstlight ready %jd\n",
				   (intmax_t)ready);
	return say(text, length);
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
	signal(SIGPIPE, SIG_IGN);
	sigprocmask(SIG_BLOCK, &asked, NULL);
	return signalfd(-1, &asked, SFD_CLOEXEC);
}

static int prepare(struct setup *setup)
{
	setup->stop = catch_signals();
	setup->complaints = memfd_create("complaints", MFD_CLOEXEC);
	setup->host_socket = netlink_open(0);
	if (setup->stop < 0 || setup->complaints < 0 || setup->host_socket < 0)
		return fail(setup, "cannot open a signal, memory or netlink descriptor");
	if (!setup->mounts)
		return 0;
	int mounts = open(setup->mounts, O_RDONLY | O_CLOEXEC);
	if (mounts < 0 || setns(mounts, CLONE_NEWNS) < 0)
		return fail(setup, "cannot enter the mount namespace %s", setup->mounts);
	close(mounts);
	return 0;
}

static int bad_option(struct setup *setup, const char *text)
{
	errno = 0;
	return fail(
		setup,
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
	snprintf(setup->path, sizeof setup->path, NAMED "%s", setup->name);
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
	struct setup setup = {0};
	if (read_options(&setup, argc, argv) < 0 || prepare(&setup) < 0)
		return say_error(&setup);
	if (set_up(&setup) == 0 && say_ready(now()) == 0)
		await_end(setup.stop);
	take_down(&setup);
	return setup.error[0] ? say_error(&setup) : 0;
}
