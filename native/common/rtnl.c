#include "rtnl.h"
#include "clock.h"

#include <errno.h>
#include <linux/if_link.h>
#include <linux/ip.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

enum { ANSWER_MAX = 32768, WAIT_SECONDS = 5, MAC = 6 };

int rtnl_open(struct rtnl *netlink, int family)
{
	struct timeval wait = {.tv_sec = clock_longer(WAIT_SECONDS)};
	int error;
	netlink->sequence = 0;
	netlink->socket = mnl_socket_open2(family, SOCK_CLOEXEC);
	if (!netlink->socket)
		return -errno;
	if (mnl_socket_bind(netlink->socket, 0, MNL_SOCKET_AUTOPID) ||
	    setsockopt(mnl_socket_get_fd(netlink->socket), SOL_SOCKET, SO_RCVTIMEO, &wait,
		       sizeof wait)) {
		error = errno;
		rtnl_close(netlink);
		return -error;
	}
	return 0;
}

void rtnl_close(struct rtnl *netlink)
{
	if (netlink->socket)
		mnl_socket_close(netlink->socket);
	netlink->socket = NULL;
}

struct nlmsghdr *rtnl_message(void *buffer, uint16_t type, uint16_t flags)
{
	struct nlmsghdr *message = mnl_nlmsg_put_header(buffer);
	message->nlmsg_type = type;
	message->nlmsg_flags = NLM_F_REQUEST | flags;
	return message;
}

/* Returns 1 when the answer is whole, 0 when more of it is to come, or a negative errno. */
static int take(const struct nlmsghdr *message, bool *interrupted, rtnl_each *each, void *data)
{
	const struct nlmsgerr *failure = mnl_nlmsg_get_payload(message);
	if (message->nlmsg_flags & NLM_F_DUMP_INTR)
		*interrupted = true;
	if (message->nlmsg_type == NLMSG_DONE) {
		int error = 0;
		if (mnl_nlmsg_get_payload_len(message) >= sizeof error)
			memcpy(&error, mnl_nlmsg_get_payload(message), sizeof error);
		return error < 0 ? error : *interrupted ? -EINTR : 1;
	}
	if (message->nlmsg_type == NLMSG_ERROR)
		return mnl_nlmsg_get_payload_len(message) < sizeof *failure ? -EPROTO
		       : failure->error                                     ? failure->error
									    : 1;
	if (each)
		each(message, data);
	return 0;
}

int rtnl_ask(struct rtnl *netlink, struct nlmsghdr *request, rtnl_each *each, void *data)
{
	_Alignas(struct nlmsghdr) char answer[ANSWER_MAX];
	unsigned port = mnl_socket_get_portid(netlink->socket);
	bool interrupted = false;
	request->nlmsg_seq = ++netlink->sequence;
	if (mnl_socket_sendto(netlink->socket, request, request->nlmsg_len) < 0)
		return -errno;
	for (;;) {
		ssize_t size = mnl_socket_recvfrom(netlink->socket, answer, sizeof answer);
		int left = (int)size;
		if (size < 0 && errno == EINTR)
			continue;
		if (size < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		for (const struct nlmsghdr *message = (void *)answer; mnl_nlmsg_ok(message, left);
		     message = mnl_nlmsg_next(message, &left)) {
			if (!mnl_nlmsg_seq_ok(message, request->nlmsg_seq) ||
			    !mnl_nlmsg_portid_ok(message, port))
				continue;
			int done = take(message, &interrupted, each, data);
			if (done)
				return done < 0 ? done : 0;
		}
	}
}

struct rtnl_ip rtnl_ip4(struct in_addr address)
{
	struct rtnl_ip ip = {.family = AF_INET, .size = sizeof address};
	memcpy(ip.bytes, &address, sizeof address);
	return ip;
}

struct rtnl_ip rtnl_ip6(struct in6_addr address)
{
	struct rtnl_ip ip = {.family = AF_INET6, .size = sizeof address};
	memcpy(ip.bytes, &address, sizeof address);
	return ip;
}

static struct nlmsghdr *link_message(void *buffer, uint16_t flags, int index, unsigned up)
{
	struct nlmsghdr *message = rtnl_message(buffer, RTM_NEWLINK, NLM_F_ACK | flags);
	struct ifinfomsg *link = mnl_nlmsg_put_extra_header(message, sizeof *link);
	link->ifi_index = index;
	link->ifi_flags = link->ifi_change = up;
	return message;
}

int rtnl_veth_add(struct rtnl *netlink, const struct rtnl_veth *veth)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message = link_message(buffer, NLM_F_CREATE | NLM_F_EXCL, veth->index, 0);
	mnl_attr_put_strz(message, IFLA_IFNAME, veth->name);
	mnl_attr_put(message, IFLA_ADDRESS, MAC, veth->mac);
	if (veth->mtu)
		mnl_attr_put_u32(message, IFLA_MTU, veth->mtu);
	struct nlattr *info = mnl_attr_nest_start(message, IFLA_LINKINFO);
	mnl_attr_put_strz(message, IFLA_INFO_KIND, "veth");
	struct nlattr *kind = mnl_attr_nest_start(message, IFLA_INFO_DATA);
	struct nlattr *peer = mnl_attr_nest_start(message, VETH_INFO_PEER);
	struct ifinfomsg *link = mnl_nlmsg_put_extra_header(message, sizeof *link);
	link->ifi_index = veth->peer_index;
	mnl_attr_put_strz(message, IFLA_IFNAME, veth->peer);
	mnl_attr_put(message, IFLA_ADDRESS, MAC, veth->peer_mac);
	if (veth->mtu)
		mnl_attr_put_u32(message, IFLA_MTU, veth->mtu);
	mnl_attr_put_u32(message, IFLA_NET_NS_FD, (uint32_t)veth->peer_namespace);
	mnl_attr_nest_end(message, peer);
	mnl_attr_nest_end(message, kind);
	mnl_attr_nest_end(message, info);
	return rtnl_ask(netlink, message, NULL, NULL);
}

int rtnl_bridge_add(struct rtnl *netlink, const char *name, int index)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message = link_message(buffer, NLM_F_CREATE | NLM_F_EXCL, index, IFF_UP);
	mnl_attr_put_strz(message, IFLA_IFNAME, name);
	struct nlattr *info = mnl_attr_nest_start(message, IFLA_LINKINFO);
	mnl_attr_put_strz(message, IFLA_INFO_KIND, "bridge");
	mnl_attr_nest_end(message, info);
	return rtnl_ask(netlink, message, NULL, NULL);
}

static int link_up(struct rtnl *netlink, int index, bool ipv6)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message = link_message(buffer, 0, index, IFF_UP);
	if (ipv6) {
		struct nlattr *families = mnl_attr_nest_start(message, IFLA_AF_SPEC);
		struct nlattr *family = mnl_attr_nest_start(message, AF_INET6);
		mnl_attr_put_u8(message, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
		mnl_attr_nest_end(message, family);
		mnl_attr_nest_end(message, families);
	}
	return rtnl_ask(netlink, message, NULL, NULL);
}

int rtnl_link_up(struct rtnl *netlink, int index)
{
	int error = link_up(netlink, index, true);
	/* The kernel or the link has no IPv6. */
	return error == -EAFNOSUPPORT || error == -EINVAL ? link_up(netlink, index, false) : error;
}

int rtnl_link_settle(struct rtnl *netlink, int index)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message = rtnl_message(buffer, RTM_GETLINK, NLM_F_ACK);
	struct ifinfomsg *link = mnl_nlmsg_put_extra_header(message, sizeof *link);
	link->ifi_index = index;
	return rtnl_ask(netlink, message, NULL, NULL);
}

int rtnl_link_delete(struct rtnl *netlink, int index)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message = rtnl_message(buffer, RTM_DELLINK, NLM_F_ACK);
	struct ifinfomsg *link = mnl_nlmsg_put_extra_header(message, sizeof *link);
	link->ifi_index = index;
	return rtnl_ask(netlink, message, NULL, NULL);
}

int rtnl_link_route_localnet(struct rtnl *netlink, int index, bool on)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message = link_message(buffer, 0, index, 0);
	struct nlattr *families = mnl_attr_nest_start(message, IFLA_AF_SPEC);
	struct nlattr *family = mnl_attr_nest_start(message, AF_INET);
	struct nlattr *settings = mnl_attr_nest_start(message, IFLA_INET_CONF);
	mnl_attr_put_u32(message, IPV4_DEVCONF_ROUTE_LOCALNET, on);
	mnl_attr_nest_end(message, settings);
	mnl_attr_nest_end(message, family);
	mnl_attr_nest_end(message, families);
	return rtnl_ask(netlink, message, NULL, NULL);
}

int rtnl_address_add(struct rtnl *netlink, int index, struct rtnl_ip address)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message =
		rtnl_message(buffer, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
	struct ifaddrmsg *head = mnl_nlmsg_put_extra_header(message, sizeof *head);
	head->ifa_family = address.family;
	head->ifa_prefixlen = (uint8_t)(address.size * 8);
	head->ifa_index = (uint32_t)index;
	head->ifa_flags = address.family == AF_INET6 ? IFA_F_NODAD : 0;
	mnl_attr_put(message, IFA_LOCAL, address.size, address.bytes);
	mnl_attr_put(message, IFA_ADDRESS, address.size, address.bytes);
	return rtnl_ask(netlink, message, NULL, NULL);
}

static struct nlmsghdr *route_message(void *buffer, int index, uint8_t family, uint8_t length,
				      uint8_t scope)
{
	struct nlmsghdr *message =
		rtnl_message(buffer, RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
	struct rtmsg *route = mnl_nlmsg_put_extra_header(message, sizeof *route);
	route->rtm_family = family;
	route->rtm_dst_len = length;
	route->rtm_table = RT_TABLE_MAIN;
	route->rtm_protocol = RTPROT_STATIC;
	route->rtm_scope = scope;
	route->rtm_type = RTN_UNICAST;
	mnl_attr_put_u32(message, RTA_OIF, (uint32_t)index);
	return message;
}

int rtnl_route_host(struct rtnl *netlink, int index, struct rtnl_ip to,
		    const struct rtnl_ip *source)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message =
		route_message(buffer, index, to.family, (uint8_t)(to.size * 8), RT_SCOPE_LINK);
	mnl_attr_put(message, RTA_DST, to.size, to.bytes);
	if (source)
		mnl_attr_put(message, RTA_PREFSRC, source->size, source->bytes);
	return rtnl_ask(netlink, message, NULL, NULL);
}

int rtnl_route_default(struct rtnl *netlink, int index, struct rtnl_ip gateway)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message =
		route_message(buffer, index, gateway.family, 0, RT_SCOPE_UNIVERSE);
	struct rtmsg *route = mnl_nlmsg_get_payload(message);
	route->rtm_flags = RTNH_F_ONLINK;
	mnl_attr_put(message, RTA_GATEWAY, gateway.size, gateway.bytes);
	return rtnl_ask(netlink, message, NULL, NULL);
}

int rtnl_neighbour_add(struct rtnl *netlink, int index, struct rtnl_ip address,
		       const unsigned char *mac)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message =
		rtnl_message(buffer, RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
	struct ndmsg *head = mnl_nlmsg_put_extra_header(message, sizeof *head);
	head->ndm_family = address.family;
	head->ndm_ifindex = index;
	head->ndm_state = NUD_PERMANENT;
	mnl_attr_put(message, NDA_DST, address.size, address.bytes);
	mnl_attr_put(message, NDA_LLADDR, MAC, mac);
	return rtnl_ask(netlink, message, NULL, NULL);
}
