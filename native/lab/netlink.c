#include "lab/netlink.h"

#include "common/cleanup.h"

#include <assert.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

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

/* Returns its position in the body. Always uses memcpy: the compiler may assume that a typed store
 * does not alias these bytes, and drop it. */
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
	return length < 0 ? -errno : length;
}

static int ask(int socket, const struct request *request)
{
	if (send(socket, request, request->header.nlmsg_len, 0) < 0)
		return -errno;
	for (;;) {
		_Alignas(struct nlmsghdr) char answer[2048];
		ssize_t length = receive(socket, answer, sizeof answer);
		if (length < 0)
			return (int)length;
		size_t left = (size_t)length;
		for (struct nlmsghdr *message = (void *)answer; NLMSG_OK(message, left);
		     message = NLMSG_NEXT(message, left))
			if (message->nlmsg_type == NLMSG_ERROR &&
			    message->nlmsg_seq == request->header.nlmsg_seq)
				return ((struct nlmsgerr *)NLMSG_DATA(message))->error;
	}
}

int netlink_open(unsigned groups)
{
	int opened FILE_SCOPE = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	struct sockaddr_nl local = {.nl_family = AF_NETLINK, .nl_groups = groups};
	if (opened < 0 || bind(opened, (struct sockaddr *)&local, sizeof local))
		return -errno;
	return descriptor_take(&opened);
}

int netlink_link_index(int socket, const char *name)
{
	struct ifreq ifreq = {0};
	strncpy(ifreq.ifr_name, name, IFNAMSIZ - 1);
	return ioctl(socket, SIOCGIFINDEX, &ifreq) < 0 ? -errno : ifreq.ifr_ifindex;
}

static struct request begin_link(uint16_t type, uint16_t flags, unsigned up, const char *name)
{
	struct ifinfomsg fixed = {.ifi_family = AF_UNSPEC, .ifi_flags = up, .ifi_change = up};
	struct request request = begin(type, flags, &fixed, sizeof fixed);
	put_name(&request, IFLA_IFNAME, name);
	return request;
}

int netlink_add_veth(int socket, const char *name, const char *peer, int peer_namespace)
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

int netlink_move_link(int socket, const char *name, int namespace)
{
	struct request request = begin_link(RTM_NEWLINK, 0, 0, name);
	put_number(&request, IFLA_NET_NS_FD, namespace);
	return ask(socket, &request);
}

int netlink_set_link_up(int socket, const char *name)
{
	struct request request = begin_link(RTM_NEWLINK, 0, IFF_UP, name);
	return ask(socket, &request);
}

int netlink_delete_link(int socket, const char *name)
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

int netlink_add_address(int socket, int link, struct in_addr address)
{
	struct request request = begin_address(link, AF_INET, &address, sizeof address, 32);
	return ask(socket, &request);
}

int netlink_add_address6(int socket, int link, const struct in6_addr *address,
			 bool detect_duplicates)
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

int netlink_add_host_route(int socket, int link, struct in_addr destination)
{
	struct request request = begin_route(link, 32, RT_SCOPE_LINK, 0);
	put(&request, RTA_DST, &destination, sizeof destination);
	return ask(socket, &request);
}

int netlink_add_default_route(int socket, int link, struct in_addr gateway)
{
	struct request request = begin_route(link, 0, RT_SCOPE_UNIVERSE, RTNH_F_ONLINK);
	put(&request, RTA_GATEWAY, &gateway, sizeof gateway);
	return ask(socket, &request);
}

static enum netlink_address state_of(const struct nlmsghdr *message, const struct in6_addr *address)
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
		return NETLINK_PENDING;
	if (flags & IFA_F_DADFAILED)
		return NETLINK_DUPLICATE;
	return flags & IFA_F_TENTATIVE ? NETLINK_PENDING : NETLINK_USABLE;
}

int netlink_address6_state(int socket, const struct in6_addr *address, enum netlink_address *state)
{
	_Alignas(struct nlmsghdr) char news[8192];
	ssize_t length = receive(socket, news, sizeof news);
	if (length < 0)
		return (int)length;
	*state = NETLINK_PENDING;
	size_t left = (size_t)length;
	for (struct nlmsghdr *message = (void *)news; NLMSG_OK(message, left);
	     message = NLMSG_NEXT(message, left))
		if (message->nlmsg_type == RTM_NEWADDR && *state == NETLINK_PENDING)
			*state = state_of(message, address);
	return 0;
}
