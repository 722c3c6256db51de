/* Messages between the CNI plugin and the node's agent, in Python: src/firstlight/agile/pods/wire.py.
 *
 * A connection to the agent's seqpacket socket has one request and one answer. Integers are in host
 * order, addresses in network order, texts end with NUL. A request may carry a descriptor: an ADD with
 * FILL the namespace, GC a memory file of struct agent_attachment. The answer to an ADD without FILL
 * carries a prepared namespace.
 */
#ifndef FIRSTLIGHT_AGENT_H
#define FIRSTLIGHT_AGENT_H

#include <netinet/in.h>
#include <stdint.h>

enum { AGENT_MAGIC = 0x31504c46, AGENT_INTERFACE = 16 };

enum agent_verb { AGENT_ADD = 1, AGENT_DEL, AGENT_CHECK, AGENT_GC, AGENT_STATUS };

enum agent_flag {
	AGENT_FILL = 1, /* ADD: make the link in the namespace that comes along */
	AGENT_IPV6 = 2, /* answer: it has address6 and gateway6 */
};

struct agent_attachment {
	char container[256], interface[AGENT_INTERFACE];
};

struct agent_request {
	uint32_t magic, verb, flags, padding;
	char network[128];
	struct agent_attachment attachment;
	char pod_namespace[64], pod[256], pod_uid[64]; /* of CNI_ARGS, or empty */
};

struct agent_answer {
	uint32_t magic;
	int32_t code; /* the specification's, or 0 */
	uint32_t flags, mtu;
	struct in_addr address, gateway;
	struct in6_addr address6, gateway6;
	uint8_t mac[6], host_mac[6];
	char link[AGENT_INTERFACE]; /* on the host */
	char text[444]; /* why it failed */
};

_Static_assert(sizeof(struct agent_attachment) == 272, "wire.py has the same");
_Static_assert(sizeof(struct agent_request) == 800, "wire.py has the same");
_Static_assert(sizeof(struct agent_answer) == 528, "wire.py has the same");

#endif
