/* A child of the node between its clone and its exec. Nothing here allocates or logs. */
#ifndef FIRSTLIGHT_SANDBOX_H
#define FIRSTLIGHT_SANDBOX_H

#include "wire.h"

#include <linux/filter.h>
#include <stdbool.h>
#include <sys/types.h>

/* How far a child has come, in memory that the node shares with its children until their exec. */
struct progress {
	int32_t step, error, pid; /* pid: the host's */
	uint32_t out_of_memory; /* how often the kernel had killed in its cgroup before */
	int64_t stamps[STEPS];
};

/* What all children of a node have in common. */
struct sandbox_common {
	int blank; /* mount namespace of generic sandboxes */
	int tops[TOPS_MAX], top_count; /* on version 1 those of cpu, memory and pids */
	bool unified; /* cgroups of version 2 */
	dev_t pipes; /* the device of anonymous pipes */
	char socket[108]; /* where clients connect: no instance gets such a socket as a stream */
	struct sock_fprog profiles[PROFILES];
	bool mask[10]; /* which of the paths to mask exist and are readable */
};

/* What is made before a start: see ahead.c. Descriptors, or -1. */
struct ahead {
	int control[2];
	int mounts, ipc; /* namespaces; the mount namespace has a /tmp. Both or none */
	bool has_tasks;
	uint32_t cgroup, out_of_memory; /* of tasks; see struct progress */
	int tasks[TOPS_MAX];
};

/* A child's own part of a start: descriptors, or -1. */
struct sandbox_spec {
	struct definition function;
	struct limits limits; /* to be set in its cgroup if it has others: see set_limits */
	uint32_t set_limits, has_words, has_hosts, terminal;
	int control; /* the socket that ends with the exec; -1 in a reused sandbox */
	uint32_t cgroup; /* its name below the top */
	int network_part; /* the index of its network's part */
	int tree, network, words, own_words, hosts, streams[3];
};

/* Descriptors that the node leaves free, for those that a waiting sandbox keeps. */
enum { SPEC_RIGHTS = 8, FIRST_RESERVED = 3, RESERVED = 2 + TOPS_MAX };

/* The message that gives a waiting sandbox its function; descriptors: tree, network, the three
 * streams, the function's words, then /etc/hosts and the start's own words, if any. */
struct enter {
	struct definition function;
	struct limits limits;
	uint32_t set_limits, has_words, has_hosts, terminal;
};

/* What follows for a reused sandbox; descriptors: the three streams, then a network, /etc/hosts
 * and the start's own words, if any. */
struct enter_again {
	uint32_t uid, gid, slot; /* slot: of its progress */
	uint32_t has_words, has_network, has_hosts, terminal;
};

/* What a reused sandbox reports. RUNS comes with a descriptor of the instance's process. */
enum news_kind { NEWS_RUNS = 1, NEWS_ENDED, NEWS_RENEWED };
struct news {
	uint32_t kind;
	int32_t status;
	int64_t user, system; /* ns */
	uint32_t clean; /* of RENEWED: its network is unchanged */
	uint32_t out_of_memory; /* of RENEWED: see struct progress */
};

/* Its pid in the host's /proc; and a descriptor of it there. Each returns a negative errno if it
 * fails. */
int sandbox_find_pid(struct progress *progress);
int sandbox_open_self(void);

/* Makes this process a sandbox without a function: with its own /proc and /tmp, in a copy of the
 * blank namespace or in the namespaces that were made ahead. Returns 0 or a negative errno;
 * progress has the step. */
int sandbox_make(const struct sandbox_common *common, const struct ahead *ahead, bool in_ahead,
		 uint32_t cgroup, struct progress *progress);
int sandbox_enter_blank(const struct sandbox_common *common);

/* Makes it lead a session, if it does not. A waiting sandbox does already: the kernel gives each
 * session a scheduling group, and whoever makes one queues behind all others that wait for a CPU.
 * Returns 0 or a negative errno. */
int sandbox_lead_session(void);

/* Executes the function in it. Returns only if that fails. */
int sandbox_enter(const struct sandbox_common *common, struct sandbox_spec *spec, int self,
		  struct progress *progress);

/* The two halves of it: what a sandbox gets once, and what each instance in it does. */
int sandbox_settle(const struct sandbox_common *common, struct sandbox_spec *spec,
		   struct progress *progress);
int sandbox_execute(const struct sandbox_common *common, struct sandbox_spec *spec, int self,
		    char **argv, char **envp, const char *directory, struct progress *progress);
int sandbox_enter_network(const struct sandbox_spec *spec);
int sandbox_renew_tmpfs(uint64_t bytes);

/* argv and envp of the function, then the start's own; and their ends. */
int sandbox_read_words(const struct sandbox_spec *spec, char ***argv, char ***envp,
		       char **directory);
void sandbox_forget_words(void);

/* How often the kernel has killed in a cgroup for lack of memory; and the same by a descriptor. */
uint32_t sandbox_out_of_memory(const struct sandbox_common *common, uint32_t cgroup);
int sandbox_open_out_of_memory(const struct sandbox_common *common, uint32_t cgroup);
uint32_t sandbox_read_out_of_memory(int file);
/* Bytes that are still charged to a cgroup, for its processes or for what they left. */
uint64_t sandbox_memory_left(const struct sandbox_common *common, uint32_t cgroup);
int sandbox_open_processes(const struct sandbox_common *common,
			   uint32_t cgroup); /* how many are in it */

/* Gives up all capabilities but these. */
int sandbox_keep_capabilities(uint64_t keep);

/* init.c: is PID 1 of a sandbox that its function reuses, one instance at a time. control:
 * where it gets requests and reports; slots: the progress of all. */
_Noreturn void init_run(const struct sandbox_common *common, struct sandbox_spec *spec, int control,
			int self, struct progress *slots, uint32_t slot);
/* Executes a program in a running instance, given by a descriptor of its first process. The
 * control socket ends with the exec. Returns only on failure. */
int sandbox_join(const struct sandbox_common *common, struct sandbox_spec *spec, int instance,
		 int control, struct progress *progress);

/* Writes a small file of the kernel's. Returns 0 or a negative errno. */
int sandbox_write(int directory, const char *name, const char *text);

/* Sets what all children inherit. Returns 0 or a negative errno. */
int inherit_set(void);

/* Which of the paths to mask an unprivileged process could read. */
void sandbox_find_masks(struct sandbox_common *common);

#endif
