/* The link of a new network namespace, everything preset. */
#include "../common/cleanup.h"
#include "net.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <string.h>

enum { LOOPBACK = 1, ETH0 = 2 };

static const unsigned char HOST_MAC[] = {2, 0x66, 0x6c, 0, 0, 1};
static const unsigned char INSTANCE_MAC[] = {2, 0x66, 0x6c, 0, 0, 2};

static const struct {
	const char *path, *text;
} SETTINGS[] = {
	{"/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"},
	{"/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"},
	{"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"},
	{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
};

/* A setting that the kernel does not have, of IPv6 above all, needs no change. */
static int set(const char *path, const char *text)
{
	int file FILE_SCOPE = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0)
		return errno == ENOENT ? 0 : -errno;
	ssize_t written = write(file, text, strlen(text));
	return written == (ssize_t)strlen(text) ? 0 : written < 0 ? -errno : -EIO;
}

#define TRY(what, call)               \
	do {                          \
		int error = (call);   \
		*step = (what);       \
		if (error)            \
			return error; \
	} while (0)

int net_make(struct rtnl *host, const struct net_request *request, int namespace, const char **step)
{
	struct rtnl inside RTNL_SCOPE = {0};
	struct in_addr none = {0};
	struct rtnl_veth veth = {
		.name = request->link,
		.index = request->index,
		.mac = HOST_MAC,
		.peer = "eth0",
		.peer_index = ETH0,
		.peer_mac = INSTANCE_MAC,
		.peer_namespace = namespace,
	};
	bool neighbours = request->flags & NET_NEIGHBOURS;
	for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++)
		TRY("write sysctls", set(SETTINGS[i].path, SETTINGS[i].text));
	if (!(request->flags & NET_WIRED))
		return 0;
	TRY("open netlink", rtnl_open(&inside, NETLINK_ROUTE));
	TRY("set loopback up", rtnl_link_up(&inside, LOOPBACK));
	TRY("create its link", rtnl_veth_add(host, &veth));
	TRY("set its link up", rtnl_link_up(host, request->index));
	TRY("route to it",
	    rtnl_route_host(host, request->index, request->address, request->gateway));
	TRY("set eth0 up", rtnl_link_up(&inside, ETH0));
	TRY("settle its link", rtnl_link_settle(host, request->index));
	TRY("settle eth0", rtnl_link_settle(&inside, ETH0));
	TRY("add its address", rtnl_address_add(&inside, ETH0, request->address));
	if (neighbours) {
		TRY("add its neighbour",
		    rtnl_neighbour_add(host, request->index, request->address, INSTANCE_MAC));
		TRY("add the gateway's neighbour",
		    rtnl_neighbour_add(&inside, ETH0, request->gateway, HOST_MAC));
	}
	TRY("route to the gateway", rtnl_route_host(&inside, ETH0, request->gateway, none));
	TRY("add its default route", rtnl_route_default(&inside, ETH0, request->gateway));
	return 0;
}
