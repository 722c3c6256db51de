/* Shared by the eBPF programs and their loader. Every event is one of these records, in host order. */
#ifndef FIRSTLIGHT_TRACE_H
#define FIRSTLIGHT_TRACE_H

enum kind { CALL = 1, FORK, EXEC, EXIT, OFF, LOCK, MARK, STACK, BEGIN, GONE };
enum { UNSEEN = -1000 };
enum { TEXT_MAX = 512, STACK_DEPTH = 32, STACKS = 65536, TASKS = 65536, NUMBERS = 512 };
enum { SOCKETCALL = 102, SOCKETCALLS_MAX = 32 }; /* of 32-bit x86 */
enum { NAME = 16, NAMES = 256, FILE_MAX = 256, WORDS_MAX = 2048, ANCESTORS = 8 };

/* For a watched name: SIGN: its executions are signs of a start; SIGN_CHILDREN: also those by its
 * children; CHILDREN_ALONE: only those by its children. */
enum sign { SIGN = 1, SIGN_CHILDREN, CHILDREN_ALONE };

/* CALL: number, args, result; text as calls.h says; magic and family describe a descriptor, and
 *       peer is the number of the pipe that it is, if it is one.
 * FORK: by tid; peer is the child's tid, args[0] its thread group.
 * OFF: off the CPU from start to end; woken at args[0] by peer, or by a timer if number is 1; result is
 *      the state it slept in, 0 if it was ready to run all the time.
 * MARK: a per-CPU allocation by the kernel function at args[0], inside a call that makes namespaces:
 *      one call can make several, and each kind of namespace allocates in a function of its own.
 * LOCK: contended from start to end; args[0] the lock, args[1] its flags, peer its owner.
 * EXEC: text is the file's name; args[0] is the process's number in its own PID namespace, args[1]
 *      how far that lies below ours.
 * BEGIN: the execution of a watched program; where tid is root, by a process that was not traced
 *      before. text is the file's name in FILE_MAX bytes, the arguments' first args[0] bytes in
 *      WORDS_MAX bytes, and the environment's last args[1] bytes in as many; args[2] and [3] are
 *      the name of the nearest ancestor whose children are watched, "" if none of ANCESTORS is.
 * EXIT: peer is the thread that goes on under the process's number, after an execve by this one.
 * GONE: its last switch off the CPU, after EXIT; none in watch, where it is not traced until then.
 * STACK: text is the addresses of the wait or lock of this tid that starts then; only where the
 *      kernel's table of stacks had no room, which that event's negative stack says.
 */
struct event {
	unsigned long long start, end;
	long long result;
	unsigned long long args[4];
	unsigned int root, pid, tid, peer;
	unsigned int magic; /* file system of the descriptor; SOCKFS_MAGIC for a socket */
	int stack; /* -1: none; less: in a STACK event; UNSEEN: it began before tracing;
			     * STACKS and more: that of the wait that a call is for, enum take */
	unsigned short kind, number, family, protocol;
	unsigned int text; /* bytes of text that follow */
	unsigned int open; /* 1: still going on when tracing stopped */
};

_Static_assert(sizeof(struct event) == 96, "EVENT in trace/bpf.py");

/* The object's constants, which the loader sets. */
struct settings {
	unsigned char take[NUMBERS]; /* of each system call: enum take */
	unsigned int generator; /* thread group whose children are the instances */
	unsigned int watch; /* 1: programs of the map "names" are the instances */
	long long ahead; /* ns that our time namespace's CLOCK_MONOTONIC is ahead of the kernel's */
	/* Of a 32-bit program's call, and of its socketcall's first argument: 1 + the number that the call
	 * has for others, 0 if it is not reported. */
	unsigned short of32[NUMBERS], of_socketcall[SOCKETCALLS_MAX];
};

/* How often the programs were entered, by any thread: for each CPU on a cache line of its own. */
enum { METERS = 256 };
struct meter {
	unsigned long long met, rest[7];
};

/* Why an event was lost: the ring was full or its lock was not available in time; no room for a
 * thread, or the table's lock was not available in time; a call's return was missed. */
enum loss { LOST_RING, LOST_THREAD, LOST_RETURN, LOSSES };

/* The numbers of traced threads; 0: free, TAKEN: about to be used. A thread's bucket is its
 * number modulo BUCKETS, and the state of the one at buckets[b].tids[w] is in tasks[b * WAYS +
 * w]. The fifth of a bucket is lost. */
enum { WAYS = 4, BUCKETS = TASKS / WAYS };
#define TAKEN 0xffffffffU
struct bucket {
	unsigned int tids[WAYS];
};

/* The state of one traced thread. */
struct task {
	unsigned int root, pid;
	unsigned long long call, args[4];
	unsigned long long off, woken;
	unsigned long long lock, lock_address;
	unsigned int waker, owner, lock_flags, off_state;
	int off_stack, lock_stack;
	int number; /* -1: not in a call that is reported */
	unsigned int wait; /* the call's kind, if it is for waiting */
	/* Whether the copy took this entry: it may run before the program or after it. */
	unsigned int copied;
	unsigned int by_timer; /* it was woken by a timer, and not by the waker */
	unsigned int narrow; /* the call's pointers have 32 bits */
	/* What has been reported, so that a program and its copy do not both report it: the end, the last
	 * execution, by the kernel's count, and the last per-CPU allocation of the call. */
	unsigned int ended, execution;
	unsigned long long memory;
};
#endif
