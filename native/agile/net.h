/* Messages between the agile runtime and its network helper, in Python:
 * src/firstlight/agile/network/nethelper.py.
 *
 * They go over a seqpacket socket, the helper's descriptor 3, one record each. Integers are in host
 * order, addresses in network order.
 */
#ifndef FIRSTLIGHT_NET_H
#define FIRSTLIGHT_NET_H

#include "../common/rtnl.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NET_LINK = 16, NET_BODY_MAX = 65536, NET_RANGES_MAX = 1024 };

enum net_verb {
	NET_HOST = 1, /* the gateway's link and its address */
	NET_MAKE, /* a network namespace; a user namespace may come along, to own it */
	NET_CHECK, /* comes with a used network namespace */
	NET_FORGET, /* followed by struct net_range; end their connections */
	NET_RULES, /* followed by commands in nft's language, ending in NUL */
	NET_LOCALNET, /* the link accepts what the host sends to itself; followed by indices */
	NET_REMOVE, /* the link of that index and name, if there is one */
	NET_FILL, /* comes with another program's namespace, which gets a link as with MAKE */
	NET_WASH, /* comes with a used network namespace */
	NET_LISTEN, /* listen at a port, the index, on the loopback of the namespace that comes along */
};

enum net_flag {
	NET_WIRED = 1, /* MAKE: with a link to the host */
	NET_NEIGHBOURS = 2, /* MAKE: instance and gateway know each other's link address */
	NET_POD =
		4, /* MAKE, FILL: sysctls stay as they are, the link's address is the pod's own, and no digests are made */
	NET_IPV6 = 8, /* HOST, MAKE, FILL: with address6 and gateway6, too */
	NET_OURS = 16, /* HOST: an existing link of that name is set up, too */
};

struct net_request {
	uint32_t verb, flags;
	uint64_t id;
	int32_t index; /* of the link on the host */
	struct in_addr address, gateway;
	char link[NET_LINK], peer[NET_LINK]; /* on the host, and in the namespace */
	uint32_t mtu; /* 0 is the kernel's default */
	struct in6_addr address6, gateway6;
};

/* Digests of everything that can be read in a namespace. */
struct net_digests {
	uint64_t state, counters; /* counters: of packets and failed calls */
};

/* MAKE and CHECK answer with the namespace's digests. CHECK fails with EBUSY if somebody holds
 * one of its sockets, as we do until a grace period after closing it. The answer to MAKE carries
 * the namespace, to LISTEN the socket, to RULES a memory file with nft's output. FORGET's is
 * followed by a byte for each range: 1 if its connections are gone, 0 if its link is still there. */
struct net_answer {
	uint64_t id;
	struct net_digests digests;
	uint64_t quick; /* see net_quick.h */
	int32_t error; /* errno, or 0 */
	char step[28]; /* what failed */
};

struct net_range {
	struct in_addr first, last;
	int32_t index; /* of the link that must be gone first, or 0 */
};

/* Each of these returns 0 or a negative errno, with what failed in *step. */
int net_make(struct rtnl *host, const struct net_request *request, int namespace,
	     const char **step);
int net_digest(struct net_digests *digests, const char **step);
int net_wash(const char **step);
int net_forget(struct rtnl *host, const struct net_range *ranges, size_t count, uint8_t *gone,
	       const char **step);
int net_rules(const char *commands, int *output, const char **step);

_Static_assert(sizeof(struct net_request) == 96, "nethelper.py has the same");
_Static_assert(sizeof(struct net_answer) == 64, "nethelper.py has the same");
_Static_assert(sizeof(struct net_range) == 12, "nethelper.py has the same");

#endif
