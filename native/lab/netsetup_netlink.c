/* A network set-up request by netlink, within one process. */
#include "common/cleanup.h"
#include "lab/netlink.h"
#include "lab/netsetup.h"

#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mount.h>

enum { DUPLICATES_MS = 10000 }; /* far beyond the 1 to 2 s of duplicate-address detection */

/* What a step returns after its request: a negative result is the reason that it cannot be done. */
__attribute__((format(printf, 3, 4))) static int done(struct setup *setup, int result,
						      const char *format, ...)
{
	char what[200];
	va_list arguments;
	if (result >= 0)
		return 0;
	va_start(arguments, format);
	vsnprintf(what, sizeof what, format, arguments);
	va_end(arguments);
	return error_set(&setup->error, -result, "cannot %s", what);
}

static int turn_ipv6_off(struct setup *setup)
{
	static const char *const paths[] = {"/proc/sys/net/ipv6/conf/all/disable_ipv6",
					    "/proc/sys/net/ipv6/conf/default/disable_ipv6"};
	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
		int file FILE_SCOPE = open(paths[i], O_WRONLY | O_CLOEXEC);
		if (file < 0 && errno == ENOENT)
			return 0; /* a kernel without IPv6 has it off */
		if (file < 0 || write(file, "1", 1) != 1)
			return done(setup, -errno, "write %s", paths[i]);
	}
	return 0;
}

static int name_namespace(struct setup *setup)
{
	int file FILE_SCOPE = open(setup->path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0);
	if (file < 0)
		return done(setup, -errno, "create %s", setup->path);
	setup->named = true;
	if (mount("/proc/thread-self/ns/net", setup->path, NULL, MS_BIND, NULL))
		return done(setup, -errno, "mount the network namespace on %s", setup->path);
	return 0;
}

static int enter_new_namespace(struct setup *setup)
{
	if (unshare(CLONE_NEWNET))
		return done(setup, -errno, "create the network namespace %s", setup->name);
	setup->namespace = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (setup->namespace < 0)
		return done(setup, -errno, "open the network namespace %s", setup->name);
	setup->socket = netlink_open(0);
	if (setup->has_address6)
		setup->news = netlink_open(RTMGRP_IPV6_IFADDR);
	int bad = setup->socket < 0 ? setup->socket : setup->has_address6 ? setup->news : 0;
	bad = done(setup, bad, "open a netlink socket in %s", setup->name);
	if (!bad && !setup->by_descriptor)
		bad = name_namespace(setup);
	return !bad && setup->no_ipv6 ? turn_ipv6_off(setup) : bad;
}

int netsetup_netlink_netns(struct setup *setup)
{
	int host FILE_SCOPE = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (host < 0)
		return done(setup, -errno, "open the host's network namespace");
	int bad = enter_new_namespace(setup);
	if (setns(host, CLONE_NEWNET))
		bad = done(setup, -errno, "return to the host's network namespace");
	return bad;
}

int netsetup_netlink_veth(struct setup *setup)
{
	int target = setup->in_place ? setup->namespace : -1;
	int bad = netlink_add_veth(setup->host_socket, setup->host, setup->container, target);
	setup->linked = !bad;
	return done(setup, bad, "create %s with its peer %s", setup->host, setup->container);
}

int netsetup_netlink_move(struct setup *setup)
{
	int bad = netlink_move_link(setup->host_socket, setup->container, setup->namespace);
	return done(setup, bad, "move %s into %s", setup->container, setup->name);
}

int netsetup_netlink_host_up(struct setup *setup)
{
	int bad = netlink_set_link_up(setup->host_socket, setup->host);
	return done(setup, bad, "bring %s up", setup->host);
}

int netsetup_netlink_container_up(struct setup *setup)
{
	int bad = netlink_set_link_up(setup->socket, "lo");
	if (bad)
		return done(setup, bad, "bring lo up in %s", setup->name);
	bad = netlink_set_link_up(setup->socket, setup->container);
	return done(setup, bad, "bring %s up", setup->container);
}

int netsetup_netlink_address(struct setup *setup)
{
	int link = netlink_link_index(setup->socket, setup->container);
	int bad = link < 0 ? link : netlink_add_address(setup->socket, link, setup->address);
	return done(setup, bad, "add %s to %s", setup->address_text, setup->container);
}

static int await_address6(struct setup *setup)
{
	struct pollfd awaited[] = {
		{.fd = setup->news, .events = POLLIN},
		{.fd = setup->stop, .events = POLLIN},
	};
	enum netlink_address state = NETLINK_PENDING;
	while (state == NETLINK_PENDING) {
		int ready = poll(awaited, 2, DUPLICATES_MS);
		int bad = ready < 0 ? -errno : ready == 0 ? -ETIMEDOUT : 0;
		if (!bad && awaited[1].revents)
			bad = -EINTR;
		bad = bad ? bad : netlink_address6_state(setup->news, &setup->address6, &state);
		if (bad)
			return done(setup, bad, "await the IPv6 address of %s", setup->container);
	}
	if (state == NETLINK_USABLE)
		return 0;
	return error_set(&setup->error, EADDRINUSE, "the IPv6 address of %s", setup->container);
}

int netsetup_netlink_address6(struct setup *setup)
{
	int link = netlink_link_index(setup->socket, setup->container);
	int bad = link < 0 ? link
			   : netlink_add_address6(setup->socket, link, &setup->address6,
						  !setup->no_dad);
	bad = done(setup, bad, "add the IPv6 address to %s", setup->container);
	return bad ? bad : await_address6(setup);
}

int netsetup_netlink_route(struct setup *setup)
{
	int link = netlink_link_index(setup->host_socket, setup->host);
	int bad =
		link < 0 ? link : netlink_add_host_route(setup->host_socket, link, setup->address);
	if (bad)
		return done(setup, bad, "route %s to %s", setup->address_text, setup->host);
	link = netlink_link_index(setup->socket, setup->container);
	bad = link < 0 ? link : netlink_add_default_route(setup->socket, link, setup->gateway);
	return done(setup, bad, "route %s by %s", setup->container, setup->gateway_text);
}

void netsetup_netlink_take_down(struct setup *setup)
{
	if (setup->linked)
		done(setup, netlink_delete_link(setup->host_socket, setup->host), "delete %s",
		     setup->host);
	if (!setup->named)
		return;
	if (umount2(setup->path, MNT_DETACH))
		done(setup, -errno, "unmount %s", setup->path);
	if (unlink(setup->path))
		done(setup, -errno, "remove %s", setup->path);
}
