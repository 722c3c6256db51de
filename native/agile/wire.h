/* Messages between the node, its clients and its manager, in Python: src/firstlight/agile/node/wire.py.
 *
 * They go over seqpacket sockets, one record each, integers in host order.
 */
#ifndef FIRSTLIGHT_WIRE_H
#define FIRSTLIGHT_WIRE_H

#include <stdint.h>

enum {
	ASK_MAGIC = 0x314e4c46, /* "FLN1": its first byte begins no JSON */
	PROFILES = 4,
	PROFILE_BASE = PROFILES, /* the node's own, which all inherit */
	PROFILE_MAX = 4096,
	WORDS_MAX = 2 << 20, /* as Linux allows with a stack of 8 MiB */
	ARGUMENTS_MAX = 65536,
	TOPS_MAX = 3,
	NOTE_MAX = 120,
	RESOLVERS_MAX = 4096,
	EVENTS_MAX = 64,
	KEPT = 4096,
};

/* The steps of a start, in order. A failure names its step. */
#define WIRE_STEPS(STEP)                                       \
	STEP(CLONE, clone)                                     \
	STEP(CGROUP, cgroup)                                   \
	STEP(MOUNT_NAMESPACE, mount_namespace)                 \
	STEP(PROC, proc)                                       \
	STEP(MASK, mask)                                       \
	STEP(TMPFS, tmpfs)                                     \
	STEP(WAIT, wait) /* a generic sandbox is ready here */ \
	STEP(FUNCTION, function)                               \
	STEP(NETWORK, network)                                 \
	STEP(CGROUP_LIMITS, cgroup_limits)                     \
	STEP(ROOT, root)                                       \
	STEP(HOST_NAME, host_name)                             \
	STEP(STREAMS, streams)                                 \
	STEP(USER, user)                                       \
	STEP(LIMITS, limits)                                   \
	STEP(CAPABILITIES, capabilities)                       \
	STEP(SECCOMP, seccomp)                                 \
	STEP(EXEC, exec)

#define WIRE_STEP(step, name) STEP_##step,
enum step { WIRE_STEPS(WIRE_STEP) STEPS };
#define WIRE_STEP_NAME(step, name) #name,

/* A client's request. START carries standard input, output and error, and with WORDS a memory
 * file of struct words. EXEC carries the same four; its words are all that the program gets,
 * including its directory. */
enum ask_verb { ASK_PING = 1, ASK_START = 2, ASK_SIGNAL = 3, ASK_EXEC = 5 };
enum ask_flag {
	ASK_DETACHED = 1,
	ASK_WORDS = 2,
	ASK_LOG = 4, /* output and error go to the log, not to the given streams */
	ASK_TERMINAL =
		8, /* input is a socket, to which a struct winsize may be sent, and which brings the master */
	ASK_AWAITED = 16, /* requested by the manager: its events are not held back */
};

struct ask {
	uint32_t magic;
	uint16_t verb, flags;
	uint32_t function, version; /* version 0 is the newest */
	uint64_t tag; /* the client's own, returned with each answer */
	int64_t asked; /* ns of CLOCK_MONOTONIC; 0: on arrival */
	uint64_t instance; /* of SIGNAL and EXEC */
	int32_t signal;
	uint32_t reserved;
};

enum answer_verb { ANSWER_PONG = 1, ANSWER_STARTED = 2, ANSWER_ENDED = 3, ANSWER_REFUSED = 4 };
enum answer_flag { ANSWER_WARM = 1, ANSWER_OUT_OF_MEMORY = 2, ANSWER_TIMED_OUT = 4 };

struct answer {
	uint32_t magic;
	uint16_t verb, flags;
	uint64_t tag, instance;
	int32_t pid, status; /* status: as waitpid gives it */
	int32_t error; /* errno of REFUSED, in the step that failed */
	uint32_t step;
	uint32_t address, version; /* address: IPv4, network order; 0 is none */
	int64_t user, system; /* ns of CPU time, of ENDED */
	int64_t stamps[STEPS + 2]; /* ns by step; then when it was requested, and known to run */
};

/* Words of a function or a start, in a memory file: strings that end with NUL follow, argv, then
 * envp, then a function's directory. */
struct words {
	uint32_t argc, envc, size;
};

enum definition_flag {
	DEFINITION_ZYGOTE = 2, /* stays root of its user namespace, to enter sandboxes of it */
	DEFINITION_USER_NAMESPACE = 4,
	DEFINITION_REFUSES = 8, /* do not wait for parts */
	DEFINITION_TERMINALS = 32, /* /dev/ptmx can be opened */
	DEFINITION_VOLUMES = 64, /* read-only, except the mounts in the tree */
	DEFINITION_OWN_IDENTITY =
		16, /* uid and gid are the first of a range, one for each instance */
};
enum reach { REACH_OUTBOUND, REACH_INTERNAL, REACH_NONE, REACHES };
enum reuse { REUSE_NONE, REUSE_NETWORK, REUSE_SANDBOX, REUSES };

struct limits {
	uint64_t memory;
	uint32_t quota, pids; /* quota: us of CPU time in 100 ms */
};

/* A function as the node knows it. */
struct definition {
	uint32_t number, version, flags, profile, reach, reuse;
	uint32_t uid, gid;
	uint64_t files, scratch; /* RLIMIT_NOFILE; bytes of /tmp */
	struct limits limits;
	char host_name[64];
};

/* The manager's orders. HELLO carries the tops of the cgroup hierarchies; FUNCTION the root's
 * detached tree and the words, and the rest of that file is the manager's; PART a network.
 * PROFILE is followed by its program, an array of struct sock_filter, RESOLVERS by its text. */
enum order_verb {
	ORDER_HELLO = 1,
	ORDER_PROFILE,
	ORDER_FUNCTION,
	ORDER_FORGET,
	ORDER_PART,
	ORDER_WITHDRAW,
	ORDER_SANDBOXES, /* count: the high mark; length: the low; flags: us between two */
	ORDER_SIGNAL,
	ORDER_END,
	ORDER_REFUSE, /* starts that wait for a part that cannot be made: kind in count, reach in flags */
	ORDER_RESOLVERS, /* resolv.conf of functions that are registered from now on */
	ORDER_SYNC, /* answered after the events of everything that clients have been told */
	ORDER_KEEP, /* descriptors for the next manager, under a free index, in count */
	ORDER_DROP, /* release those */
	ORDER_LOG, /* with the socket of firstlight-log */
	ORDER_STAY, /* outlive this manager, whatever its HELLO had */
};
enum hello_flag { HELLO_STAY = 1, HELLO_UNIFIED = 2 };
enum {
	WIRE_VERSION = 4
}; /* in count of HELLO; a node and a manager of different versions do not match */
enum part_kind { PART_NETWORK = 1, PART_CGROUP = 2 };

struct part_order {
	uint32_t index, kind;
	int32_t reach, function; /* function: the owner, or -1 */
	uint32_t address, cgroup; /* cgroup: its name below the top, a number */
	struct limits limits;
	uint64_t quick; /* of a network: a digest of what an instance can change; see net_quick.h */
	char note[NOTE_MAX];
};

struct order {
	uint32_t verb, flags;
	uint64_t id; /* the instance of SIGNAL; else the manager's own */
	uint32_t count, length;
	union {
		struct definition definition;
		struct part_order part;
		int32_t signal;
	};
};

enum event_verb {
	EVENT_DONE = 1, /* an order is done: its id, and its errno or 0 */
	EVENT_STARTED,
	EVENT_ENDED,
	EVENT_FAILED, /* a start failed: its parts are given back */
	EVENT_WANT, /* starts wait for a part: kind in step, reach in status, how many in pid */
	EVENT_RICH, /* with a connection whose requests are for the manager */
	EVENT_FUNCTION, /* of the state: with its words */
	EVENT_PART, /* of the state: with its network */
	EVENT_STATE_END,
	EVENT_WAITING, /* generic sandboxes: in status how many wait, in id how many were made, in
			* user the ns that took */
	EVENT_KEPT, /* of the state: with descriptors that were kept, their index in status */
	EVENT_RESTED, /* a used network serves its function again; with status 1, it is left */
};

/* Flags of an instance, besides those of its answers. CARRIED, of ENDED: its sandbox continues,
 * with its cgroup. */
enum event_flag { EVENT_IS_DETACHED = 1 << 16, EVENT_CARRIED = 1 << 17 };

struct event {
	uint32_t verb, flags;
	uint64_t id; /* instance, or order */
	uint32_t function, version;
	int32_t pid, status, error;
	uint32_t step;
	int32_t network, cgroup; /* indices of parts, or -1 */
	int64_t requested, running, user, system; /* requested: of ENDED, when it ended */
};

/* EVENT_FUNCTION and EVENT_PART are followed by the definition or the part. */
struct state {
	struct event event;
	union {
		struct definition definition;
		struct part_order part;
	};
};

_Static_assert(sizeof(struct ask) == 48, "node/wire.py has the same");
_Static_assert(sizeof(struct answer) == 224, "node/wire.py has the same");
_Static_assert(sizeof(struct words) == 12, "node/wire.py has the same");
_Static_assert(sizeof(struct definition) == 128, "node/wire.py has the same");
_Static_assert(sizeof(struct part_order) == 168, "node/wire.py has the same");
_Static_assert(sizeof(struct order) == 192, "node/wire.py has the same");
_Static_assert(sizeof(struct event) == 80, "node/wire.py has the same");

#endif
