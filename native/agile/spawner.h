/* What the spawner, its children and the agile runtime say to one another.
 *
 * Everything goes over seqpacket sockets, one message each, integers in host order. The Python
 * side of these records is src/firstlight/agile/wire.py.
 */
#ifndef FIRSTLIGHT_SPAWNER_H
#define FIRSTLIGHT_SPAWNER_H

#include <linux/filter.h>
#include <stdint.h>

enum { CGROUPS_MAX = 4, PROFILES = 4, PROFILE_MAX = 4096, START_MAX = 128 * 1024 };

/* The steps of a start, in order. A failure names its step. */
enum step {
	STEP_CLONE,
	STEP_CGROUP,
	STEP_NETWORK,
	STEP_ROOT,
	STEP_MOUNT_NAMESPACE,
	STEP_PROC,
	STEP_MASK,
	STEP_TMPFS,
	STEP_HOST_NAME,
	STEP_LIMITS,
	STEP_USER,
	STEP_CAPABILITIES,
	STEP_SECCOMP,
	STEP_WAIT, /* ready: one step before exec */
	STEP_STREAMS, /* woken */
	STEP_EXEC,
	STEPS,
};

enum {
	SANDBOX_USER_NAMESPACE = 1,
	SANDBOX_ZYGOTE = 2, /* stays root of its user namespace, to make sandboxes in it */
	SANDBOX_CLONE_INTO = 4, /* the first cgroup descriptor is a version 2 directory */
};

struct sandbox {
	uint32_t flags, profile;
	uint32_t uid, gid;
	uint64_t files; /* RLIMIT_NOFILE */
	char tmpfs[64]; /* mount options of /tmp */
	char host_name[64];
};

/* The request's descriptors. Those of cgroups are open for writing: version 1 "tasks" files. */
struct parts {
	int control, root, network, cgroups[CGROUPS_MAX], cgroup_count;
	int self; /* a /proc/self from before the root changed, to write the user maps */
};

enum request_verb { SPAWN = 1, TEMPLATE = 2, PROFILE = 3 };

/* SPAWN's descriptors: control, root, network, cgroups. TEMPLATE's: control, tree.
 * PROFILE is followed by the program, an array of struct sock_filter. */
struct request {
	uint32_t verb, length; /* of PROFILE's program, in instructions */
	uint64_t id;
	struct sandbox sandbox;
};

enum news_verb { SPAWNED = 1, EXITED = 2, REFUSED = 3 };

/* SPAWNED comes with the pidfd; REFUSED is a clone that failed, or a request that is not one. */
struct news {
	uint32_t verb;
	int32_t pid, error, status; /* status: as waitpid gives it */
	uint64_t id;
	int64_t asked, cloned; /* ns of CLOCK_MONOTONIC: request read, clone returned */
	int64_t user, system; /* ns of CPU time, of EXITED */
};

/* What a child says on its control socket: once when it has to wait (step STEP_WAIT), once when it is
 * about to exec (STEP_EXEC), or which step failed, with its errno. stamps[s] is when s began;
 * those of a failed or coming step are 0. The socket ends when the exec succeeds. */
struct report {
	uint32_t step;
	int32_t error;
	int64_t stamps[STEPS];
};

/* The message that wakes a child: argv, envp and the directory, each ending in NUL, follow it;
 * with it come standard input, output and error. */
struct start {
	uint32_t argc, envc;
};

int64_t monotonic(void);

/* All that is between clone and exec. Allocates nothing and logs nothing. Returns 0, or the step
 * that failed in *step with errno. */
int sandbox_enter(const struct sandbox *sandbox, struct parts *parts,
		  const struct sock_fprog *profile, int64_t stamps[STEPS], enum step *step);

/* Turns this process's root into a template: the tree, read-only, with /dev. */
int template_make(int tree);

#endif
