/* An endpoint's programs, as the cilium profile's agent compiles them for each pod.
 *
 * Twelve programs behind one prog array, of the kinds that an IPv4 endpoint of Cilium has: the two
 * that are attached jump to those for ARP, address family, policy, connection tracking, address
 * translation and delivery. They look packets up and count them; the kernel then routes.
 * endpoint.h holds the endpoint's number, addresses and identity, and is written before.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "endpoint.h"

enum { ARP, FAMILY, EGRESS, EGRESS_TRACK, EGRESS_POLICY, SERVICE, TRANSLATE, INGRESS,
       INGRESS_TRACK, DELIVER, PROGRAMS };
enum { ROUNDS = 12 };

struct tuple { __u32 source, destination; __u16 ports[2]; __u32 flags; };
struct state { __u64 packets, bytes, last; __u32 identity, flags; };

struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, PROGRAMS);
	 __type(key, __u32); __type(value, __u32); } calls SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 16384);
	 __type(key, __u64); __type(value, __u64); } policy SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_LRU_HASH); __uint(max_entries, 4096);
	 __type(key, struct tuple); __type(value, struct state); } tracked SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, PROGRAMS + 2);
	 __type(key, __u32); __type(value, struct state); } metrics SEC(".maps");

static __always_inline int parse(struct __sk_buff *packet, struct tuple *tuple)
{
	void *data = (void *)(long)packet->data, *end = (void *)(long)packet->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = data + sizeof(*ethernet);
	struct tcphdr *tcp = (void *)(ip + 1);
	if ((void *)(ip + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP))
		return -1;
	tuple->source = ip->saddr;
	tuple->destination = ip->daddr;
	tuple->flags = ip->protocol;
	if ((void *)(tcp + 1) <= end && ip->protocol == IPPROTO_TCP) {
		tuple->ports[0] = tcp->source;
		tuple->ports[1] = tcp->dest;
	}
	return 0;
}

static __always_inline void count(struct __sk_buff *packet, __u32 which)
{
	struct state *state = bpf_map_lookup_elem(&metrics, &which);
	if (!state)
		return;
	state->packets++;
	state->bytes += packet->len;
	state->last = bpf_ktime_get_ns();
}

/* From the narrowest rule to the widest, as a policy is looked up. */
static __always_inline int allowed(struct tuple *tuple, __u32 direction)
{
#pragma unroll
	for (int bits = 0; bits < ROUNDS; bits++) {
		__u64 key = ((__u64)(tuple->source >> bits) << 32) | (tuple->ports[1] & (0xffff << bits)) |
			    direction;
		__u64 *found = bpf_map_lookup_elem(&policy, &key);
		if (found && *found == ENDPOINT_IDENTITY)
			return 0;
	}
	return 1;
}

static __always_inline void track(struct __sk_buff *packet, struct tuple *tuple)
{
	struct state fresh = {.packets = 1, .bytes = packet->len, .identity = ENDPOINT_IDENTITY};
	struct state *state = bpf_map_lookup_elem(&tracked, tuple);
	if (state) {
		state->packets++;
		state->bytes += packet->len;
	} else {
		bpf_map_update_elem(&tracked, tuple, &fresh, BPF_ANY);
	}
}

#define PROGRAM(name, number, work, next)                            \
	SEC("tc") int name(struct __sk_buff *packet)                 \
	{                                                            \
		struct tuple tuple = {};                             \
		count(packet, number);                               \
		if (parse(packet, &tuple))                           \
			return TC_ACT_OK;                            \
		work;                                                \
		bpf_tail_call(packet, &calls, next);                 \
		return TC_ACT_OK;                                    \
	}

PROGRAM(from_container, PROGRAMS, tuple.flags |= ENDPOINT_ID, FAMILY)
PROGRAM(to_container, PROGRAMS + 1, tuple.flags |= ENDPOINT_ID << 8, INGRESS)
PROGRAM(arp, ARP, (void)tuple, PROGRAMS)
PROGRAM(family, FAMILY, track(packet, &tuple), EGRESS)
PROGRAM(egress, EGRESS, packet->mark = ENDPOINT_IDENTITY, EGRESS_TRACK)
PROGRAM(egress_track, EGRESS_TRACK, track(packet, &tuple), EGRESS_POLICY)
PROGRAM(egress_policy, EGRESS_POLICY, packet->tc_index = allowed(&tuple, 1), SERVICE)
PROGRAM(service, SERVICE, packet->tc_index = allowed(&tuple, 2); track(packet, &tuple), TRANSLATE)
PROGRAM(translate, TRANSLATE, track(packet, &tuple), PROGRAMS)
PROGRAM(ingress, INGRESS, packet->mark = ENDPOINT_ADDRESS, INGRESS_TRACK)
PROGRAM(ingress_track, INGRESS_TRACK, track(packet, &tuple), DELIVER)
PROGRAM(deliver, DELIVER, packet->tc_index = allowed(&tuple, 0), PROGRAMS)

char _license[] SEC("license") = "GPL";
