/* Makes the link of a new network namespace, with everything preset. */
#include "../common/cleanup.h"
#include "net.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

enum { LOOPBACK = 1, ETH0 = 2 };

static const unsigned char HOST_MAC[] = {2, 0x66, 0x6c, 0, 0, 1};
static const unsigned char INSTANCE_MAC[] = {2, 0x66, 0x6c, 0, 0, 2};

/* Connections in TIME_WAIT, half a KiB each, count towards no memory limit, and by default a
 * namespace may have as many as the host. */
static const struct {
	const char *path, *text;
} SETTINGS[] = {
	{"/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"},
	{"/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"},
	{"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"},
	{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
	{"/proc/sys/net/ipv4/tcp_max_tw_buckets", "8192"},
};

/* A setting that the kernel lacks (it may have no IPv6) needs no change. */
static int set(const char *path, const char *text)
{
	int file FILE_SCOPE = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0)
		return errno == ENOENT ? 0 : -errno;
	ssize_t written = write(file, text, strlen(text));
	return written == (ssize_t)strlen(text) ? 0 : written < 0 ? -errno : -EIO;
}

/* The first socket that is set to listen for TCP fast open would have the kernel make its key. As it is
 * made before any instance, no used network needs to be read for it: the kernel finds a sysctl the later,
 * the more namespaces there are. */
static int make_fast_open_key(void)
{
	int waiting = 1, made FILE_SCOPE = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (made < 0 || setsockopt(made, IPPROTO_TCP, TCP_FASTOPEN, &waiting, sizeof waiting))
		return -errno;
	return 0;
}

#define TRY(what, call)               \
	do {                          \
		int error = (call);   \
		*step = (what);       \
		if (error)            \
			return error; \
	} while (0)

/* A pod's link address is made from its own: software takes it for a machine's. */
static void choose_mac(const struct net_request *request, unsigned char *mac)
{
	memcpy(mac, INSTANCE_MAC, sizeof INSTANCE_MAC);
	if (request->flags & NET_POD)
		memcpy(mac + 2, &request->address, sizeof request->address);
}

static int add_addresses(struct rtnl *host, struct rtnl *inside, int index, int eth0,
			 struct rtnl_ip address, struct rtnl_ip gateway, const unsigned char *mac,
			 const char **step)
{
	TRY("route to it", rtnl_route_host(host, index, address, &gateway));
	TRY("add its address", rtnl_address_add(inside, eth0, address));
	if (mac) {
		TRY("add its neighbour", rtnl_neighbour_add(host, index, address, mac));
		TRY("add the gateway's neighbour",
		    rtnl_neighbour_add(inside, eth0, gateway, HOST_MAC));
	}
	TRY("route to the gateway", rtnl_route_host(inside, eth0, gateway, NULL));
	TRY("add its default route", rtnl_route_default(inside, eth0, gateway));
	return 0;
}

int net_make(struct rtnl *host, const struct net_request *request, int namespace, const char **step)
{
	struct rtnl inside RTNL_SCOPE = {0};
	unsigned char mac[sizeof INSTANCE_MAC];
	bool is_pod = request->flags & NET_POD;
	struct rtnl_veth veth = {
		.name = request->link,
		.index = request->index,
		.mac = HOST_MAC,
		.peer = request->peer,
		.peer_index = is_pod ? 0 : ETH0,
		.peer_mac = mac,
		.peer_namespace = namespace,
		.mtu = request->mtu,
	};
	const unsigned char *known = request->flags & NET_NEIGHBOURS ? mac : NULL;
	choose_mac(request, mac);
	if (!is_pod) {
		for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++)
			TRY("write sysctls", set(SETTINGS[i].path, SETTINGS[i].text));
		TRY("make its key of TCP fast open", make_fast_open_key());
	}
	if (!(request->flags & NET_WIRED))
		return 0;
	TRY("open netlink", rtnl_open(&inside, NETLINK_ROUTE));
	TRY("set loopback up", rtnl_link_up(&inside, LOOPBACK));
	TRY("create its link", rtnl_veth_add(host, &veth));
	int eth0 = (int)if_nametoindex(request->peer);
	TRY("find its interface", eth0 ? 0 : -ENODEV);
	TRY("set its link up", rtnl_link_up(host, request->index));
	TRY("set its interface up", rtnl_link_up(&inside, eth0));
	TRY("settle its link", rtnl_link_settle(host, request->index));
	TRY("settle its interface", rtnl_link_settle(&inside, eth0));
	int error = add_addresses(host, &inside, request->index, eth0, rtnl_ip4(request->address),
				  rtnl_ip4(request->gateway), known, step);
	if (error || !(request->flags & NET_IPV6))
		return error;
	return add_addresses(host, &inside, request->index, eth0, rtnl_ip6(request->address6),
			     rtnl_ip6(request->gateway6), known, step);
}
