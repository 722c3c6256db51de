/* What a child of the node does between its clone and its exec. Nothing here allocates or logs. */
#ifndef FIRSTLIGHT_SANDBOX_H
#define FIRSTLIGHT_SANDBOX_H

#include "wire.h"

#include <linux/filter.h>
#include <stdbool.h>
#include <sys/types.h>

/* How far a child is, in memory that the node shares with its children until they execute. */
struct progress {
	int32_t step, error, pid, reserved; /* pid: the host's */
	int64_t stamps[STEPS];
};

/* What every child of one node has in common. */
struct house {
	int blank; /* mount namespace of sandboxes that have no function yet */
	int tops[TOPS_MAX], top_count;
	bool unified; /* cgroups of version 2 */
	dev_t pipes; /* the device of anonymous pipes */
	char socket[108]; /* where clients connect: an instance gets no such stream */
	struct sock_fprog profiles[PROFILES];
	bool mask[10]; /* which of the paths to mask there are, for others to read */
};

/* A child's own part of a start: descriptors, or -1. */
struct place {
	struct definition function;
	struct limits limits; /* to be set in its cgroup, if they differ: see set_limits */
	uint32_t set_limits, has_words, has_hosts;
	uint32_t cgroup; /* its name below the top */
	int network_part; /* which of the node's parts its network is */
	int tree, network, words, own_words, hosts, streams[3];
};

/* Descriptors that the node leaves free, for a sandbox that waits to keep its own few in. */
enum { PLACE_RIGHTS = 8, FIRST_RESERVED = 3, RESERVED = 2 + TOPS_MAX };

/* The message that gives a waiting sandbox its function; descriptors: tree, network, the three
 * streams, the function's words, then /etc/hosts and the start's own words if there are. */
struct enter {
	struct definition function;
	struct limits limits;
	uint32_t set_limits, has_words, has_hosts;
};

/* A descriptor of this process in /proc, and its pid there; or a negative errno. */
int sandbox_self(struct progress *progress);

/* Makes this process a sandbox without a function: its own /proc and /tmp in the blank namespace.
 * Returns 0 or a negative errno; progress says where. */
int sandbox_make(const struct house *house, uint32_t cgroup, struct progress *progress);

/* Executes the function in it. Returns only if that fails. */
int sandbox_enter(const struct house *house, struct place *place, int self,
		  struct progress *progress);

int64_t monotonic(void);

/* Sets what all children inherit. Returns 0 or a negative errno. */
int inherit_set(void);

/* Which paths a process without privileges could read, of those that are to be masked. */
void sandbox_find_masks(struct house *house);

#endif
