#include "netlink.h"

#include <assert.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

struct request {
	struct nlmsghdr header;
	char body[512];
};

static struct request begin(uint16_t type, uint16_t flags, const void *fixed, size_t size)
{
	static uint32_t sequence;
	struct request request = {
		.header =
			{
				.nlmsg_len = (uint32_t)NLMSG_LENGTH(size),
				.nlmsg_type = type,
				.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags),
				.nlmsg_seq = ++sequence,
			},
	};
	memcpy(request.body, fixed, size);
	return request;
}

/* Returns where in the body it stands. Always by memcpy: the compiler may take a typed store into
 * these bytes for one that cannot concern them, and drop it. */
static size_t append(struct request *request, const void *part, size_t size)
{
	size_t at = NLMSG_ALIGN(request->header.nlmsg_len) - sizeof request->header;
	assert(at + size <= sizeof request->body);
	if (size)
		memcpy(request->body + at, part, size);
	request->header.nlmsg_len = (uint32_t)(sizeof request->header + at + size);
	return at;
}

static size_t put(struct request *request, uint16_t type, const void *data, size_t size)
{
	struct rtattr attribute = {.rta_type = type, .rta_len = (uint16_t)RTA_LENGTH(size)};
	size_t at = append(request, &attribute, sizeof attribute);
	append(request, data, size);
	return at;
}

static void put_name(struct request *request, uint16_t type, const char *name)
{
	put(request, type, name, strlen(name) + 1);
}

static void put_number(struct request *request, uint16_t type, int number)
{
	put(request, type, &number, sizeof number);
}

static size_t open_nest(struct request *request, uint16_t type)
{
	return put(request, type, NULL, 0);
}

/* The attribute at that place holds all that was put since. */
static void close_nest(struct request *request, size_t at)
{
	uint16_t length = (uint16_t)(request->header.nlmsg_len - sizeof request->header - at);
	memcpy(request->body + at + offsetof(struct rtattr, rta_len), &length, sizeof length);
}

static ssize_t receive(int socket, void *buffer, size_t size)
{
	ssize_t length;
	do
		length = recv(socket, buffer, size, 0);
	while (length < 0 && errno == EINTR);
	return length;
}

static int ask(int socket, const struct request *request)
{
	if (send(socket, request, request->header.nlmsg_len, 0) < 0)
		return -1;
	for (;;) {
		_Alignas(struct nlmsghdr) char answer[2048];
		ssize_t length = receive(socket, answer, sizeof answer);
		if (length < 0)
			return -1;
		size_t left = (size_t)length;
		for (struct nlmsghdr *message = (void *)answer; NLMSG_OK(message, left);
		     message = NLMSG_NEXT(message, left)) {
			if (message->nlmsg_type != NLMSG_ERROR)
				continue;
			if (message->nlmsg_seq != request->header.nlmsg_seq)
				continue;
			errno = -((struct nlmsgerr *)NLMSG_DATA(message))->error;
			return errno ? -1 : 0;
		}
	}
}

int netlink_open(unsigned groups)
{
	int opened = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	struct sockaddr_nl local = {.nl_family = AF_NETLINK, .nl_groups = groups};
	if (opened < 0 || bind(opened, (struct sockaddr *)&local, sizeof local) == 0)
		return opened;
	int error = errno;
	close(opened);
	errno = error;
	return -1;
}

int link_index(int socket, const char *name)
{
	struct ifreq ifreq = {0};
	strncpy(ifreq.ifr_name, name, IFNAMSIZ - 1);
	return ioctl(socket, SIOCGIFINDEX, &ifreq) < 0 ? 0 : ifreq.ifr_ifindex;
}

static struct request begin_link(uint16_t type, uint16_t flags, unsigned up, const char *name)
{
	struct ifinfomsg fixed = {.ifi_family = AF_UNSPEC, .ifi_flags = up, .ifi_change = up};
	struct request request = begin(type, flags, &fixed, sizeof fixed);
	put_name(&request, IFLA_IFNAME, name);
	return request;
}

int link_add_veth(int socket, const char *name, const char *peer, int peer_namespace)
{
	struct request request = begin_link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0, name);
	size_t info = open_nest(&request, IFLA_LINKINFO);
	put_name(&request, IFLA_INFO_KIND, "veth");
	size_t data = open_nest(&request, IFLA_INFO_DATA);
	size_t other = open_nest(&request, VETH_INFO_PEER);
	append(&request, &(struct ifinfomsg){0}, sizeof(struct ifinfomsg));
	put_name(&request, IFLA_IFNAME, peer);
	if (peer_namespace >= 0)
		put_number(&request, IFLA_NET_NS_FD, peer_namespace);
	close_nest(&request, other);
	close_nest(&request, data);
	close_nest(&request, info);
	return ask(socket, &request);
}

int link_move(int socket, const char *name, int namespace)
{
	struct request request = begin_link(RTM_NEWLINK, 0, 0, name);
	put_number(&request, IFLA_NET_NS_FD, namespace);
	return ask(socket, &request);
}

int link_up(int socket, const char *name)
{
	struct request request = begin_link(RTM_NEWLINK, 0, IFF_UP, name);
	return ask(socket, &request);
}

int link_query(int socket, const char *name)
{
	struct request request = begin_link(RTM_GETLINK, 0, 0, name);
	return ask(socket, &request);
}

int link_set_mtu(int socket, const char *name, unsigned mtu)
{
	struct request request = begin_link(RTM_SETLINK, 0, 0, name);
	put(&request, IFLA_MTU, &mtu, sizeof mtu);
	return ask(socket, &request);
}

int link_set_mac(int socket, const char *name, const unsigned char mac[6])
{
	struct request request = begin_link(RTM_SETLINK, 0, 0, name);
	put(&request, IFLA_ADDRESS, mac, 6);
	return ask(socket, &request);
}

int link_set_master(int socket, const char *name, int bridge)
{
	struct request request = begin_link(RTM_SETLINK, 0, 0, name);
	put_number(&request, IFLA_MASTER, bridge);
	return ask(socket, &request);
}

int link_rename(int socket, const char *name, const char *to)
{
	struct ifinfomsg fixed = {.ifi_family = AF_UNSPEC, .ifi_index = link_index(socket, name)};
	struct request request = begin(RTM_SETLINK, 0, &fixed, sizeof fixed);
	put_name(&request, IFLA_IFNAME, to);
	return ask(socket, &request);
}

int link_set_hairpin(int socket, const char *name)
{
	struct ifinfomsg fixed = {.ifi_family = AF_BRIDGE, .ifi_index = link_index(socket, name)};
	struct request request = begin(RTM_SETLINK, 0, &fixed, sizeof fixed);
	size_t port = open_nest(&request, IFLA_PROTINFO | NLA_F_NESTED);
	put(&request, IFLA_BRPORT_MODE, &(uint8_t){1}, sizeof(uint8_t));
	close_nest(&request, port);
	return ask(socket, &request);
}

int link_delete(int socket, const char *name)
{
	struct request request = begin_link(RTM_DELLINK, 0, 0, name);
	return ask(socket, &request);
}

static struct request begin_address(int link, uint8_t family, const void *address, uint8_t size,
				    uint8_t prefix)
{
	struct ifaddrmsg fixed = {
		.ifa_family = family,
		.ifa_prefixlen = prefix,
		.ifa_scope = RT_SCOPE_UNIVERSE,
		.ifa_index = (uint32_t)link,
	};
	struct request request =
		begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &fixed, sizeof fixed);
	put(&request, IFA_LOCAL, address, size);
	put(&request, IFA_ADDRESS, address, size);
	return request;
}

int address_add_prefix(int socket, int link, struct in_addr address, uint8_t prefix)
{
	struct request request = begin_address(link, AF_INET, &address, sizeof address, prefix);
	return ask(socket, &request);
}

int address_add(int socket, int link, struct in_addr address)
{
	return address_add_prefix(socket, link, address, 8 * sizeof address);
}

int address6_add(int socket, int link, const struct in6_addr *address, bool detect_duplicates)
{
	struct request request =
		begin_address(link, AF_INET6, address, sizeof *address, 8 * sizeof *address);
	if (!detect_duplicates)
		put_number(&request, IFA_FLAGS, IFA_F_NODAD);
	return ask(socket, &request);
}

static struct request begin_route(int link, uint8_t prefix, uint8_t scope, unsigned flags)
{
	struct rtmsg fixed = {
		.rtm_family = AF_INET,
		.rtm_dst_len = prefix,
		.rtm_table = RT_TABLE_MAIN,
		.rtm_protocol = RTPROT_BOOT,
		.rtm_scope = scope,
		.rtm_type = RTN_UNICAST,
		.rtm_flags = flags,
	};
	struct request request =
		begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &fixed, sizeof fixed);
	put_number(&request, RTA_OIF, link);
	return request;
}

int route_add_host(int socket, int link, struct in_addr destination)
{
	struct request request = begin_route(link, 32, RT_SCOPE_LINK, 0);
	put(&request, RTA_DST, &destination, sizeof destination);
	return ask(socket, &request);
}

int route_add_default(int socket, int link, struct in_addr gateway)
{
	struct request request = begin_route(link, 0, RT_SCOPE_UNIVERSE, RTNH_F_ONLINK);
	put(&request, RTA_GATEWAY, &gateway, sizeof gateway);
	return ask(socket, &request);
}

static enum address_state state_of(const struct nlmsghdr *message, const struct in6_addr *address)
{
	const struct ifaddrmsg *fixed = NLMSG_DATA(message);
	uint32_t flags = fixed->ifa_flags;
	bool ours = false;
	size_t left = IFA_PAYLOAD(message);
	for (struct rtattr *attribute = IFA_RTA(fixed); RTA_OK(attribute, left);
	     attribute = RTA_NEXT(attribute, left)) {
		if (attribute->rta_type == IFA_ADDRESS && RTA_PAYLOAD(attribute) == sizeof *address)
			ours = memcmp(RTA_DATA(attribute), address, sizeof *address) == 0;
		if (attribute->rta_type == IFA_FLAGS)
			memcpy(&flags, RTA_DATA(attribute), sizeof flags);
	}
	if (!ours)
		return ADDRESS_PENDING;
	if (flags & IFA_F_DADFAILED)
		return ADDRESS_DUPLICATE;
	return flags & IFA_F_TENTATIVE ? ADDRESS_PENDING : ADDRESS_USABLE;
}

int address6_state(int socket, const struct in6_addr *address, enum address_state *state)
{
	_Alignas(struct nlmsghdr) char news[8192];
	ssize_t length = receive(socket, news, sizeof news);
	if (length < 0)
		return -1;
	*state = ADDRESS_PENDING;
	size_t left = (size_t)length;
	for (struct nlmsghdr *message = (void *)news; NLMSG_OK(message, left);
	     message = NLMSG_NEXT(message, left))
		if (message->nlmsg_type == RTM_NEWADDR && *state == ADDRESS_PENDING)
			*state = state_of(message, address);
	return 0;
}
