/* A network set-up request by netlink, within one process. */
#include "netlink.h"
#include "netsetup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#define DUPLICATES_MS 10000 /* far beyond the 1 to 2 s of duplicate-address detection */

static int turn_off(struct setup *setup, const char *path)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0 && errno == ENOENT)
		return 0; /* a kernel without IPv6 has it off */
	if (file < 0)
		return fail(setup, "cannot open %s", path);
	int result = write(file, "1", 1) == 1 ? 0 : fail(setup, "cannot write %s", path);
	close(file);
	return result;
}

static int turn_ipv6_off(struct setup *setup)
{
	if (turn_off(setup, "/proc/sys/net/ipv6/conf/all/disable_ipv6") < 0)
		return -1;
	return turn_off(setup, "/proc/sys/net/ipv6/conf/default/disable_ipv6");
}

static int name_namespace(struct setup *setup)
{
	int file = open(setup->path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0);
	if (file < 0)
		return fail(setup, "cannot create %s", setup->path);
	close(file);
	setup->named = true;
	if (mount("/proc/thread-self/ns/net", setup->path, NULL, MS_BIND, NULL) < 0)
		return fail(setup, "cannot mount the network namespace on %s", setup->path);
	return 0;
}

static int enter_new_namespace(struct setup *setup)
{
	if (unshare(CLONE_NEWNET) < 0)
		return fail(setup, "cannot create the network namespace %s", setup->name);
	setup->namespace = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (setup->namespace < 0)
		return fail(setup, "cannot open the network namespace %s", setup->name);
	setup->socket = netlink_open(0);
	if (setup->socket >= 0 && setup->has_address6)
		setup->news = netlink_open(RTMGRP_IPV6_IFADDR);
	if (setup->socket < 0 || (setup->has_address6 && setup->news < 0))
		return fail(setup, "cannot open a netlink socket in %s", setup->name);
	if (!setup->by_descriptor && name_namespace(setup) < 0)
		return -1;
	return setup->no_ipv6 ? turn_ipv6_off(setup) : 0;
}

int netlink_netns(struct setup *setup)
{
	int host = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (host < 0)
		return fail(setup, "cannot open the host's network namespace");
	int entered = enter_new_namespace(setup);
	if (setns(host, CLONE_NEWNET) < 0)
		entered = fail(setup, "cannot return to the host's network namespace");
	close(host);
	return entered;
}

int netlink_veth(struct setup *setup)
{
	int target = setup->in_place ? setup->namespace : -1;
	setup->linked =
		link_add_veth(setup->host_socket, setup->host, setup->container, target) == 0;
	if (!setup->linked)
		return fail(setup, "cannot create %s with its peer %s", setup->host,
			    setup->container);
	return 0;
}

int netlink_move(struct setup *setup)
{
	if (link_move(setup->host_socket, setup->container, setup->namespace) < 0)
		return fail(setup, "cannot move %s into %s", setup->container, setup->name);
	return 0;
}

int netlink_host_up(struct setup *setup)
{
	if (link_up(setup->host_socket, setup->host) < 0)
		return fail(setup, "cannot bring %s up", setup->host);
	return 0;
}

int netlink_container_up(struct setup *setup)
{
	if (link_up(setup->socket, "lo") < 0)
		return fail(setup, "cannot bring lo up in %s", setup->name);
	if (link_up(setup->socket, setup->container) < 0)
		return fail(setup, "cannot bring %s up", setup->container);
	return 0;
}

int netlink_address(struct setup *setup)
{
	int link = link_index(setup->socket, setup->container);
	if (link == 0 || address_add(setup->socket, link, setup->address) < 0)
		return fail(setup, "cannot add %s to %s", setup->address_text, setup->container);
	return 0;
}

static int await_address6(struct setup *setup)
{
	struct pollfd awaited[] = {
		{.fd = setup->news, .events = POLLIN},
		{.fd = setup->stop, .events = POLLIN},
	};
	enum address_state state = ADDRESS_PENDING;
	while (state == ADDRESS_PENDING) {
		int ready = poll(awaited, 2, DUPLICATES_MS);
		if (ready == 0)
			errno = ETIMEDOUT;
		if (ready > 0 && awaited[1].revents)
			errno = EINTR;
		if (ready <= 0 || awaited[1].revents ||
		    address6_state(setup->news, &setup->address6, &state) < 0)
			return fail(setup, "cannot await the IPv6 address of %s", setup->container);
	}
	errno = EADDRINUSE;
	return state == ADDRESS_USABLE ? 0
				       : fail(setup, "the IPv6 address of %s", setup->container);
}

int netlink_address6(struct setup *setup)
{
	int link = link_index(setup->socket, setup->container);
	if (link == 0 || address6_add(setup->socket, link, &setup->address6, !setup->no_dad) < 0)
		return fail(setup, "cannot add the IPv6 address to %s", setup->container);
	return await_address6(setup);
}

int netlink_route(struct setup *setup)
{
	int link = link_index(setup->host_socket, setup->host);
	if (link == 0 || route_add_host(setup->host_socket, link, setup->address) < 0)
		return fail(setup, "cannot route %s to %s", setup->address_text, setup->host);
	link = link_index(setup->socket, setup->container);
	if (link == 0 || route_add_default(setup->socket, link, setup->gateway) < 0)
		return fail(setup, "cannot route %s by %s", setup->container, setup->gateway_text);
	return 0;
}

void netlink_take_down(struct setup *setup)
{
	if (setup->linked && link_delete(setup->host_socket, setup->host) < 0)
		fail(setup, "cannot delete %s", setup->host);
	if (!setup->named)
		return;
	if (umount2(setup->path, MNT_DETACH) < 0)
		fail(setup, "cannot unmount %s", setup->path);
	if (unlink(setup->path) < 0)
		fail(setup, "cannot remove %s", setup->path);
}
