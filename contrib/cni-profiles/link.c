#include "link.h"

#include <errno.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sys/socket.h>

int link_index(const char *name)
{
	return (int)if_nametoindex(name);
}

static struct nlmsghdr *begin(void *buffer, uint16_t type, uint16_t flags, unsigned up,
			      const char *name)
{
	struct nlmsghdr *message = rtnl_message(buffer, type, (uint16_t)(NLM_F_ACK | flags));
	struct ifinfomsg *link = mnl_nlmsg_put_extra_header(message, sizeof *link);
	link->ifi_flags = link->ifi_change = up;
	mnl_attr_put_strz(message, IFLA_IFNAME, name);
	return message;
}

#define REQUEST(message, ...)                               \
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER]; \
	struct nlmsghdr *message = begin(buffer, __VA_ARGS__)

int link_add_veth(struct rtnl *route, const char *name, const char *peer)
{
	REQUEST(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0, name);
	struct nlattr *info = mnl_attr_nest_start(message, IFLA_LINKINFO);
	mnl_attr_put_strz(message, IFLA_INFO_KIND, "veth");
	struct nlattr *kind = mnl_attr_nest_start(message, IFLA_INFO_DATA);
	struct nlattr *other = mnl_attr_nest_start(message, VETH_INFO_PEER);
	mnl_nlmsg_put_extra_header(message, sizeof(struct ifinfomsg));
	mnl_attr_put_strz(message, IFLA_IFNAME, peer);
	mnl_attr_nest_end(message, other);
	mnl_attr_nest_end(message, kind);
	mnl_attr_nest_end(message, info);
	return rtnl_ask(route, message, NULL, NULL);
}

int link_move(struct rtnl *route, const char *name, int namespace)
{
	REQUEST(message, RTM_NEWLINK, 0, 0, name);
	mnl_attr_put_u32(message, IFLA_NET_NS_FD, (uint32_t) namespace);
	return rtnl_ask(route, message, NULL, NULL);
}

int link_up(struct rtnl *route, const char *name)
{
	REQUEST(message, RTM_NEWLINK, 0, IFF_UP, name);
	return rtnl_ask(route, message, NULL, NULL);
}

int link_query(struct rtnl *route, const char *name)
{
	REQUEST(message, RTM_GETLINK, 0, 0, name);
	return rtnl_ask(route, message, NULL, NULL);
}

int link_set_mtu(struct rtnl *route, const char *name, unsigned mtu)
{
	REQUEST(message, RTM_SETLINK, 0, 0, name);
	mnl_attr_put_u32(message, IFLA_MTU, mtu);
	return rtnl_ask(route, message, NULL, NULL);
}

int link_set_mac(struct rtnl *route, const char *name, const unsigned char mac[6])
{
	REQUEST(message, RTM_SETLINK, 0, 0, name);
	mnl_attr_put(message, IFLA_ADDRESS, 6, mac);
	return rtnl_ask(route, message, NULL, NULL);
}

int link_set_master(struct rtnl *route, const char *name, int bridge)
{
	REQUEST(message, RTM_SETLINK, 0, 0, name);
	mnl_attr_put_u32(message, IFLA_MASTER, (uint32_t)bridge);
	return rtnl_ask(route, message, NULL, NULL);
}

int link_delete(struct rtnl *route, const char *name)
{
	REQUEST(message, RTM_DELLINK, 0, 0, name);
	return rtnl_ask(route, message, NULL, NULL);
}

int link_rename(struct rtnl *route, const char *name, const char *to)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message = rtnl_message(buffer, RTM_SETLINK, NLM_F_ACK);
	struct ifinfomsg *link = mnl_nlmsg_put_extra_header(message, sizeof *link);
	link->ifi_index = link_index(name);
	mnl_attr_put_strz(message, IFLA_IFNAME, to);
	return rtnl_ask(route, message, NULL, NULL);
}

int link_set_hairpin(struct rtnl *route, const char *name)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message = rtnl_message(buffer, RTM_SETLINK, NLM_F_ACK);
	struct ifinfomsg *link = mnl_nlmsg_put_extra_header(message, sizeof *link);
	link->ifi_family = AF_BRIDGE;
	link->ifi_index = link_index(name);
	struct nlattr *port = mnl_attr_nest_start(message, IFLA_PROTINFO);
	mnl_attr_put_u8(message, IFLA_BRPORT_MODE, 1);
	mnl_attr_nest_end(message, port);
	return rtnl_ask(route, message, NULL, NULL);
}

int link_add_address(struct rtnl *route, const char *name, struct in_addr address, uint8_t prefix)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message =
		rtnl_message(buffer, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
	struct ifaddrmsg *added = mnl_nlmsg_put_extra_header(message, sizeof *added);
	added->ifa_family = AF_INET;
	added->ifa_prefixlen = prefix;
	added->ifa_index = (uint32_t)link_index(name);
	mnl_attr_put_u32(message, IFA_LOCAL, address.s_addr);
	mnl_attr_put_u32(message, IFA_ADDRESS, address.s_addr);
	return rtnl_ask(route, message, NULL, NULL);
}
