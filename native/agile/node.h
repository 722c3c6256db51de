/* The node's own state. One thread, one event loop: nothing here waits for anybody.
 *
 * Each file calls only those below it:
 *
 *   node.c       the loop, and what happens once
 *   deadline.c   how long the loop waits
 *   manager.c    orders and events
 *   request.c    what clients ask for
 *   pending.c    starts that wait for parts
 *   session.c    programs beside an instance's own
 *   instance_start.c  starts
 *   waiting.c    sandboxes that wait for a function
 *   instance_clone.c  processes of instances
 *   function.c   functions, by their numbers
 *   instance_read.c   what instances say, and their ends
 *   reuse.c      sandboxes that serve their function again; init.c is in them
 *   instance_state.c  an instance runs and ends, and who is told
 *   client.c     connections, and what clients are told
 *   instance.c   records of instances
 *   rest.c       networks that were used
 *   part.c       what is prepared: networks, cgroups
 *   ahead.c      what the next start opens or makes, made before it
 *   output.c     output that is kept
 *   hosts.c      /etc/hosts of each network
 *   loop.c       what the loop watches
 *   queue.c      queues of all of these
 */
#ifndef FIRSTLIGHT_NODE_H
#define FIRSTLIGHT_NODE_H

#include "common/socket.h"
#include "sandbox.h"
#include "wire.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum {
	FUNCTIONS = 4096,
	PARTS = 16384,
	CLIENTS = 4096,
	PENDING = 1024,
	RICH_HELD = 256,
	NOBODY = -1,
	/* Records beyond those of running instances, for ends that nobody has read yet. */
	ENDED_KEPT = 8192,
};

/* What an event is about: the kind in the upper half of its word, an index in the lower. */
enum source { ON_CHILDREN, ON_CLIENTS, ON_MANAGERS, ON_MANAGER, ON_CLIENT, ON_INSTANCE };

/* Indices of a table's records, oldest first. A function gives the place of each record's next
 * index. */
struct queue {
	int first, last, count;
};
typedef int *queue_next(int index);

struct function {
	bool known;
	struct definition definition;
	int root, words; /* words: the manager's memory file */
	bool has_hosts; /* its root has an /etc/hosts to mount over */
	struct queue networks; /* used by it, and clean */
	struct queue sandboxes; /* renewed, of this version: instances */
};

/* LEFT: its instance has ended, and the manager judges it. RESTING: a network that the node will
 * judge itself. */
enum part_state { PART_FREE, PART_SHELVED, PART_USED, PART_LEFT, PART_RESTING };

struct part {
	enum part_state state;
	struct part_order order;
	int network; /* descriptor */
	int next;
	uint32_t uses, rests; /* rests: since it was last used */
	int64_t until; /* it rests */
	bool owed; /* the manager does not know yet what became of it */
	int next_owed;
};

enum instance_state {
	INSTANCE_FREE,
	INSTANCE_MAKING, /* a generic sandbox that is not ready yet */
	INSTANCE_WAITING, /* a generic sandbox */
	INSTANCE_STARTING, /* before its exec */
	INSTANCE_RUNNING,
	INSTANCE_RENEWING, /* a sandbox after its instance's end */
	INSTANCE_RENEWED, /* it waits for the next of its function */
	INSTANCE_ENDED, /* until everybody concerned has been told */
};

/* What is owed to the client and to the manager. */
enum owed { OWES_STARTED = 1, OWES_ENDED = 2 };

struct instance {
	enum instance_state state;
	uint64_t id, tag;
	pid_t pid; /* in the node's namespace; the host's is in its progress */
	int control, network, cgroup, client, function;
	int first_network,
		first_cgroup; /* those that its start took: the manager may be told later */
	int pidfd; /* of an instance in a reused sandbox: pid is that of PID 1 */
	int before; /* of a renewed sandbox: the instance that was in it */
	uint32_t version, client_generation, address;
	uint16_t flags; /* of its answers */
	uint8_t owed_client, owed_manager;
	bool detached, killed, failed, in_dirty, renewing; /* renewing: its sandbox still is */
	bool awaited; /* by the manager */
	bool rests; /* its network, which the node will judge */
	bool carried; /* its cgroup stays with its sandbox */
	bool session; /* a program beside an instance's own */
	struct definition identity; /* of its function when it was started */
	int status, error, step;
	int64_t requested, running, ended, user, system;
	int64_t until; /* its sandbox has to be renewed */
	int next_dirty; /* of those that the manager has yet to be told of */
	int next, previous; /* of its client's, or of those that wait */
	int hash_next; /* of those with the same hash of their pids */
};

struct client {
	int descriptor; /* -1: free */
	uint32_t generation;
	bool fast, blocked,
		held; /* blocked: does not read its answers; held: nothing is read from it */
	bool has_unsent;
	int first; /* its instances */
	int next_free;
	int64_t active_at; /* when it came, or asked last */
	struct answer unsent;
};

struct pending {
	struct ask ask;
	struct rights rights;
	int client;
	uint32_t client_generation;
	int64_t until;
	int error; /* of a refusal that its client does not read, at this step; 0: it waits for parts */
	enum step step;
};

/* One page, with everything that is written between two starts: after each clone, the first write
 * to a page copies it. */
struct node {
	int epoll, children, clients_listener, managers_listener, manager, log;
	bool managed; /* the manager has said HELLO: no other takes its place */
	bool stays, manager_blocked, holds, waiting_changed, has_done;
	struct event done; /* an answer that the manager has not read yet */
	int telling, telling_at; /* the state, to a new manager */
	int64_t owes_since; /* when it was first owed events that can wait; 0: none */
	bool owes_now; /* it is owed an event that cannot wait */
	struct sandbox_common common;
	struct ahead ahead;
	bool is_ahead; /* made, since the last start */
	struct function *functions; /* these tables are not mapped in children */
	struct part *parts;
	int function_count, part_count; /* that were ever used */
	struct queue networks[REACHES], cgroups, resting;
	struct queue rested; /* parts that the manager has yet to be told of */
	struct client *clients;
	int free_client, client_count, client_most; /* count: that were ever used */
	struct pending *pending;
	int pending_count;
	int rich[RICH_HELD], rich_count;
	struct instance *instances;
	struct progress *progress; /* one for each instance, shared with the children */
	int instance_count, instance_most, instance_limit; /* count: that were ever used */
	int up, starting;
	int free_instance;
	struct queue waiting, renewing, dirty, ended;
	int making, low_waiting, high_waiting;
	bool fills; /* filling from the low mark to the high one */
	int64_t accepts_at; /* no client is accepted before this time; 0: at any time */
	int64_t sends_at; /* who lacked the kernel's memory is told then; 0: nobody */
	int64_t fill_interval, last_made, fills_since, fill_time; /* ns */
	uint64_t made; /* sandboxes that were ready */
	int *hash;
	uint32_t hash_mask;
	uint64_t *serial; /* the last instance's number, in a file */
	int64_t last_start, last_run;
	uint8_t wants[PART_CGROUP + 1][REACHES];
};

extern struct node node;

/* loop.c */
int node_watch(int descriptor, enum source source, int index, uint32_t events);
int node_watch_again(int descriptor, enum source source, int index, uint32_t events);
void node_unwatch(int *descriptor); /* and close it */
_Noreturn void node_die(const char *what, int failed);
/* A connection, or a negative number. */
int node_accept(int listener);
void node_accept_again(void);
void node_pause_accepting(void);
/* Watches for room to send again, or, without the kernel's memory for it, waits a moment: the socket is
 * writable all the same. */
void node_watch_room(int descriptor, enum source source, int index, int failed);

/* queue.c */
void queue_push(struct queue *queue, queue_next *next, int index);
int queue_pop(struct queue *queue, queue_next *next); /* or NOBODY */
bool queue_cut(struct queue *queue, queue_next *next, int index); /* whether it was there */

/* ahead.c */
int64_t ahead_next(void); /* when to prepare it, or INT64_MAX */
void ahead_open(void);
void ahead_make(void);
/* After a clone has it, the node drops it, except namespaces that this clone does not enter. */
int ahead_control(int ends[2]);
void ahead_drop(bool entered);

/* part.c */
int part_add(const struct part_order *order, int network);
int part_withdraw(uint32_t index);
int part_take(enum part_kind kind, struct function *function);
void part_give_back(int index, int function);
void part_put_back(int index);
void part_leave(int index);
queue_next part_next;
void part_give_up(struct queue *queue);
void part_owe(int index);
void part_acknowledge(int index);
void part_want(enum part_kind kind, uint32_t reach);

/* function.c */
int function_set_resolvers(const char *text, size_t size);
int function_set(const struct definition *definition, int tree, int words);
int function_forget(uint32_t number);

/* rest.c */
void rest_open(void);
bool rest_network(int index, int function, uint32_t version); /* false: it does not rest */
void rest_judge(void);
int64_t rest_next(void); /* when to judge the next, or INT64_MAX */
void rest_leave(int function);

/* session.c */
int session_start(const struct ask *ask, struct rights *rights, int client, enum step *step);

/* output.c */
void output_set(int log);
int output_open(uint64_t id, struct rights *rights);

/* hosts.c */
int hosts_open(void);
int hosts_write(int index, uint32_t address);
int hosts_clone(int index);
void hosts_remove(int index);

/* instance_start.c */
/* 0 if it was started, -EAGAIN if it has to wait for parts, or the error and step of a refusal. */
int instance_try(const struct ask *ask, struct rights *rights, int client, enum step *step);

/* instance_clone.c */
int instance_clone_waiting(int index); /* the process of a waiting sandbox, in its cgroup */
int instance_enter_waiting(int index, struct sandbox_spec *spec, int root);
int instance_clone_into(int index, struct sandbox_spec *spec,
			int root); /* with a sandbox of its own */
void instance_cloned(int index);
/* A child in new namespaces (CLONE_…), born in that cgroup if it is of version 2. */
pid_t instance_clone(uint64_t spaces, uint32_t cgroup);

/* instance.c */
void instances_open(int limit);
queue_next instance_next;
int instance_signal(uint64_t id, int number, uint16_t flags);
int instance_reserve(void);
void instance_release(int index);
void instance_link(int index, int client);
void instance_be_child(void);
void instance_kill(int index);
void instance_settle(int index);
struct answer instance_answer(int index, enum answer_verb verb);
void instance_hash(int index);
int instance_hashed(pid_t pid); /* or NOBODY */
int instance_unhash(pid_t pid);
void instance_owe(int index, uint8_t what);

/* instance_state.c */
void instance_runs(int index);
void instance_finish(int index, int status, int64_t user, int64_t system);

/* instance_read.c */
bool instance_read(int index);
void instances_reap(void);

/* pending.c */
int pending_start(const struct ask *ask, struct rights *rights, int client, enum step *step);
void pending_serve(void);
void pending_refuse(enum part_kind kind, uint32_t reach);
int64_t pending_next(void); /* when the first has waited too long, or INT64_MAX */

/* waiting.c */
void waiting_make(void); /* the next, if it is time */
int waiting_keep(uint32_t high, uint32_t low, uint32_t interval);
int64_t waiting_next(void); /* when to make another sandbox, or INT64_MAX */
void waiting_fill(bool fills);
int waiting_take(void);

/* reuse.c */
bool reuse_wanted(const struct function *function);
int reuse_enter(int index, const struct sandbox_spec *spec);
void reuse_news(int index, const struct news *news, struct rights *rights);
void reuse_ended(int index);
void reuse_drop(struct function *function);
bool reuse_make_room(void);
void reuse_expire(void);
int64_t reuse_next(void); /* when a renewal has taken too long, or INT64_MAX */

/* client.c */
void clients_accept(void);
void clients_release(void);
void clients_send_again(void);
void client_tell(int index);
void client_end(int index);
void client_leave(int index);
int client_answer(int index, const struct answer *answer);
int client_refuse(int client, const struct ask *ask, int error, enum step step);

/* request.c */
void client_ready(int index, uint32_t events);

/* manager.c */
void managers_accept(void);
void manager_ready(uint32_t events);
void manager_send_again(void); /* and to clients, after a lack of memory */
void manager_tell(bool all); /* all: also events that can wait */
int64_t manager_next(void); /* when it must be told, or INT64_MAX */

/* deadline.c */
int64_t deadline_timeout(void); /* ns until the earliest of all deadlines, or -1 */

#endif
