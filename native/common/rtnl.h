/* Netlink over libmnl: requests, and the links, addresses and routes of an instance.
 *
 * A socket stays with the network namespace that it was opened in, wherever its process moves. Every
 * function returns 0 or a negative errno.
 */
#ifndef FIRSTLIGHT_RTNL_H
#define FIRSTLIGHT_RTNL_H

#include <libmnl/libmnl.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

struct rtnl {
	struct mnl_socket *socket;
	uint32_t sequence;
};

/* family: NETLINK_ROUTE, NETLINK_NETFILTER, ... An answer that does not come in 5 s is ETIMEDOUT. */
int rtnl_open(struct rtnl *netlink, int family);
void rtnl_close(struct rtnl *netlink);
#define RTNL_SCOPE __attribute__((cleanup(rtnl_close)))

typedef void rtnl_each(const struct nlmsghdr *message, void *data);

/* Sends a request and reads up to its acknowledgement or the end of its dump, skipping answers to
 * other requests. ``each`` (or NULL) gets every message of the answer. */
int rtnl_ask(struct rtnl *netlink, struct nlmsghdr *request, rtnl_each *each, void *data);

/* The head of a message in a buffer of RTNL_BUFFER bytes. */
enum { RTNL_BUFFER = 1024 };
struct nlmsghdr *rtnl_message(void *buffer, uint16_t type, uint16_t flags);

/* The attributes after a message's head of that size, and those in another: libmnl's own loops do not
 * compile with -Wconversion. */
#define RTNL_ATTRIBUTES(part, message, size)                                               \
	for ((part) = mnl_nlmsg_get_payload_offset((message), (size));                     \
	     mnl_attr_ok((part), (int)((const char *)mnl_nlmsg_get_payload_tail(message) - \
				       (const char *)(part)));                             \
	     (part) = mnl_attr_next(part))
#define RTNL_NESTED(part, nest)                                                                 \
	for ((part) = mnl_attr_get_payload(nest);                                               \
	     mnl_attr_ok((part),                                                                \
			 (int)((const char *)(nest) + (nest)->nla_len - (const char *)(part))); \
	     (part) = mnl_attr_next(part))

/* An IPv4 (4 bytes) or IPv6 address (16). */
struct rtnl_ip {
	uint8_t family, size, bytes[16];
};

struct rtnl_ip rtnl_ip4(struct in_addr address);
struct rtnl_ip rtnl_ip6(struct in6_addr address);

/* The peer is born in that namespace; an index of 0 is the kernel's choice, an MTU of 0 its default. */
struct rtnl_veth {
	const char *name, *peer;
	int index, peer_index, peer_namespace;
	uint32_t mtu;
	const unsigned char *mac, *peer_mac;
};

int rtnl_veth_add(struct rtnl *netlink, const struct rtnl_veth *veth);
/* A bridge without ports, up: a link that only has an address. */
int rtnl_bridge_add(struct rtnl *netlink, const char *name, int index);
/* Stops IPv6 from making addresses there, so that none is probed for duplicates. */
int rtnl_link_up(struct rtnl *netlink, int index);
/* Asks for a link: before the answer, the kernel finishes pending work on its carrier. */
int rtnl_link_settle(struct rtnl *netlink, int index);
int rtnl_link_delete(struct rtnl *netlink, int index);
/* Whether packets of 127.0.0.0/8 may pass that link. */
int rtnl_link_route_localnet(struct rtnl *netlink, int index, bool on);
/* That address alone, without a prefix; IPv6 does not probe it for duplicates. */
int rtnl_address_add(struct rtnl *netlink, int index, struct rtnl_ip address);
/* To one address on the link itself; ``source`` may be NULL. */
int rtnl_route_host(struct rtnl *netlink, int index, struct rtnl_ip to,
		    const struct rtnl_ip *source);
int rtnl_route_default(struct rtnl *netlink, int index, struct rtnl_ip gateway);
int rtnl_neighbour_add(struct rtnl *netlink, int index, struct rtnl_ip address,
		       const unsigned char *mac);

#endif
