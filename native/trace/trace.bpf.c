/* Follows the process tree of each child of the load generator, on tracepoints only (CO-RE).
 *
 * The kernel's types are declared here with just the members that are read; libbpf relocates them.
 * The programs are one file because they share maps and inlined helpers, and load as one object.
 */
#define __VMLINUX_H__ /* bpf_tracing.h: struct pt_regs is the kernel's */
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed int __s32;
typedef signed long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
/* clang-format off */
enum bpf_map_type { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_ARRAY = 6,
		    BPF_MAP_TYPE_STACK_TRACE = 7, BPF_MAP_TYPE_RINGBUF = 27 };
enum { BPF_ANY, BPF_NOEXIST, BPF_EXIST };
enum { BPF_F_MMAPABLE = 1 << 10 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2, BPF_F_FAST_STACK_CMP = 1 << 9 };

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "trace/calls.h"
#include "trace/trace.h"

#define KERNEL __attribute__((preserve_access_index))

struct qstr { const unsigned char *name; } KERNEL;
struct dentry { struct qstr d_name; } KERNEL;
struct path { struct dentry *dentry; } KERNEL;
struct super_block { unsigned long s_magic; } KERNEL;
struct inode {
	unsigned long i_ino;
	struct super_block *i_sb;
	void *i_private;
} KERNEL;
struct file { struct path f_path; struct inode *f_inode; void *private_data; } KERNEL;
struct fdtable { unsigned int max_fds; struct file **fd; } KERNEL;
struct files_struct { struct fdtable *fdt; } KERNEL;
struct sock_common { unsigned short skc_family; } KERNEL;
struct sock { struct sock_common __sk_common; __u16 sk_protocol; } KERNEL;
struct socket { struct sock *sk; } KERNEL;
struct proc_ns_operations { const char *name; } KERNEL;
struct ns_common { const struct proc_ns_operations *ops; unsigned int inum; } KERNEL;
struct mm_struct { unsigned long arg_start, arg_end, env_start, env_end; } KERNEL;
struct pid_namespace { struct ns_common ns; } KERNEL;
struct upid { int nr; struct pid_namespace *ns; } KERNEL;
struct pid { unsigned int level; struct upid numbers[1]; } KERNEL;
struct thread_info { unsigned long flags; __u32 status; } KERNEL;
struct task_struct {
	struct thread_info thread_info;
	int pid, tgid;
	__u32 flags;
	__u64 self_exec_id;
	char comm[NAME];
	struct pid *thread_pid;
	struct task_struct *group_leader, *real_parent;
	struct mm_struct *mm;
	struct files_struct *files;
} KERNEL;
struct linux_binprm { const char *filename; } KERNEL;
typedef struct { __s64 counter; } atomic64_t;
typedef atomic64_t atomic_long_t;
struct mutex { atomic_long_t owner; } KERNEL;
struct rw_semaphore { atomic_long_t owner; } KERNEL;
struct bpf_ringbuf_map { void *rb; } KERNEL;
#if defined(__TARGET_ARCH_x86)
struct pt_regs { unsigned long bx, cx, di, si, dx, r10; } KERNEL;
#define ARGUMENT(regs, n) (n == 0 ? regs->di : n == 1 ? regs->si : n == 2 ? regs->dx : regs->r10)
#define ARGUMENT32(regs, n) (n == 0 ? regs->bx : n == 1 ? regs->cx : n == 2 ? regs->dx : regs->si)
#define NARROW(task) ((task)->thread_info.status & 2) /* TS_COMPAT */
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs { __u64 regs[31]; } KERNEL;
struct pt_regs { unsigned long orig_x0; __u64 regs[31]; } KERNEL;
#define ARGUMENT(regs, n) (n == 0 ? regs->orig_x0 : regs->regs[n])
#define ARGUMENT32(regs, n) ARGUMENT(regs, n)
#define NARROW(task) ((task)->thread_info.flags & 1 << 22) /* TIF_32BIT */
#endif

enum { AF_NETLINK = 16 };
enum { NSFS_MAGIC = 0x6e736673, SOCKFS_MAGIC = 0x534f434b, PIPEFS_MAGIC = 0x50495045 };
enum { SPIN = 1, READ = 2, RT = 8, PERCPU = 16, MUTEX = 32 }; /* include/trace/events/lock.h */
enum { INTERRUPTIBLE = 1, DEAD = 128, PF_USER_WORKER = 0x4000 }; /* include/linux/sched.h */
enum { SHORTEST_OFF_NS = 1000, SHORTEST_LOCK_NS = 1000, PAGE = 4096, PATH = 256 };

/* clang-format on */

const volatile struct settings settings;

__u64 lost[LOSSES];

static __always_inline void lose(enum loss how)
{
	__sync_fetch_and_add(&lost[how], 1);
}

/* Our own PID namespace: its depth below the first, and its number. on_ask sets it. */
struct {
	__u32 level, number;
} home SEC(".data.home");

/* What the budget of watch pays for. The two programs at each timer of the machine are not
 * counted. */
struct meter meters[METERS] SEC(".data.meters");

/* By the clock of our time namespace, like the load generator's stamps. */
static __always_inline __u64 clock_now(void)
{
	return bpf_ktime_get_ns() + settings.ahead;
}

static __always_inline void count(void)
{
	if (settings.watch)
		meters[bpf_get_smp_processor_id() & (METERS - 1)].met++;
}

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 26);
} events SEC(".maps");
/* The traced threads. A lookup in arrays calls no helper, unlike one in a hash. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TASKS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct task);
} tasks SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BUCKETS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");
/* What watch waits for: names of programs as the kernel keeps them, cut to 15 bytes, and enum
 * sign. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NAMES);
	__type(key, char[NAME]);
	__type(value, __u32);
} names SEC(".maps");
/* In a PID namespace: from the number by which the kernel's own hooks know a traced thread to
 * ours. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TASKS);
	__type(key, __u32);
	__type(value, __u32);
} numbers SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, STACKS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, STACK_DEPTH * sizeof(__u64));
} stacks SEC(".maps");

/* Where a sys_exit program assembles its event: each has its own, and none is re-entered. */
struct wide {
	struct event event;
	char text[2 * TEXT_MAX]; /* the bound that the verifier can see */
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct wide);
} scratch SEC(".maps");
/* Whether a CPU is handling an expired timer: what it wakes then has slept, or waited too long. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} timers SEC(".maps");

static __always_inline void emit(struct event *event, __u32 size)
{
	if (bpf_ringbuf_output(&events, event, size, BPF_RB_NO_WAKEUP))
		lose(LOST_RING);
}

/* A process's number in the PID namespace that is so far below the first. */
static __always_inline struct upid *number_at(struct pid *pid, __u32 level)
{
	struct upid *first = (void *)__builtin_preserve_access_index(&pid->numbers[0]);
	return (void *)first + level * bpf_core_type_size(struct upid);
}

/* A task's number in our own PID namespace, if that is not the first; 0 if it has none there. */
static __always_inline __u32 number_below(struct task_struct *p)
{
	struct pid *pid = BPF_CORE_READ(p, thread_pid);
	if (!pid || BPF_CORE_READ(pid, level) < home.level)
		return 0;
	struct upid *at = number_at(pid, home.level);
	return BPF_CORE_READ(at, ns, ns.inum) == home.number ? BPF_CORE_READ(at, nr) : 0;
}

/* The number that we know a task by; "p" is one of the kernel's own pointers. */
#define NUMBER(p) (home.level ? number_below(p) : (__u32)(p)->pid)
#define GROUP(p) (home.level ? number_below(BPF_CORE_READ(p, group_leader)) : (__u32)(p)->tgid)

static __always_inline __u32 own_number(void)
{
	return NUMBER(bpf_get_current_task_btf());
}

/* Run once, by the loader. */
SEC("syscall")
int on_ask(void *context)
{
	(void)context;
	struct task_struct *p = (void *)bpf_get_current_task();
	struct pid *pid = BPF_CORE_READ(p, thread_pid);
	__u32 level = BPF_CORE_READ(pid, level);
	struct upid *at = number_at(pid, level);
	home.number = BPF_CORE_READ(at, ns, ns.inum);
	home.level = level;
	return 0;
}

static __always_inline struct bucket *bucket_of(__u32 tid)
{
	__u32 number = tid % BUCKETS;
	return bpf_map_lookup_elem(&buckets, &number);
}

static __always_inline struct task *task_at(__u32 tid, __u32 way)
{
	__u32 place = tid % BUCKETS * WAYS + way;
	return bpf_map_lookup_elem(&tasks, &place);
}

static __always_inline struct task *traced(__u32 tid)
{
	struct bucket *bucket = bucket_of(tid);
	if (!bucket || !tid)
		return 0;
#pragma unroll
	for (__u32 way = 0; way < WAYS; way++)
		if (bucket->tids[way] == tid)
			return task_at(tid, way);
	return 0;
}

/* Starts to trace a thread, or replaces its state. Returns whether there was no room. */
static __always_inline int keep(__u32 tid, const struct task *from)
{
	struct bucket *bucket = bucket_of(tid);
	struct task *task = traced(tid);
	if (task) {
		*task = *from;
		return 0;
	}
#pragma unroll
	for (__u32 way = 0; bucket && way < WAYS; way++) {
		if (bucket->tids[way] || __sync_val_compare_and_swap(&bucket->tids[way], 0, TAKEN))
			continue;
		task = task_at(tid, way);
		if (task)
			*task = *from;
		__sync_lock_test_and_set(&bucket->tids[way], tid);
		return 0;
	}
	return 1;
}

static __always_inline void drop(__u32 tid)
{
	struct bucket *bucket = bucket_of(tid);
#pragma unroll
	for (__u32 way = 0; bucket && tid && way < WAYS; way++)
		if (bucket->tids[way] == tid)
			bucket->tids[way] = 0;
}

/* An event of a thread at that time. */
static __always_inline void fill(struct event *event, __u16 kind, const struct task *task,
				 __u32 tid, __u64 at)
{
	__builtin_memset(event, 0, sizeof *event);
	event->kind = kind;
	event->root = task->root;
	event->pid = task->pid;
	event->tid = tid;
	event->start = event->end = at;
	event->stack = -1;
}

static __always_inline void instant(__u16 kind, struct task *task, __u32 tid, __u32 peer, __u64 arg)
{
	struct event event;
	fill(&event, kind, task, tid, clock_now());
	event.peer = peer;
	event.args[0] = arg;
	emit(&event, sizeof event);
}

/* A thread that is not traced yet. */
static __always_inline struct task new_task(__u32 root, __u32 group)
{
	return (struct task){
		.root = root, .pid = group, .off_stack = -1, .lock_stack = -1, .number = -1};
}

struct whole {
	struct event event;
	__u64 addresses[STACK_DEPTH];
};

/* Stacks share a table by their hash: one whose place is taken is sent whole. */
static __always_inline int take_stack(void *ctx, struct task *task, __u32 tid, __u64 start)
{
	int number = bpf_get_stackid(ctx, &stacks, BPF_F_FAST_STACK_CMP);
	if (number >= 0)
		return number;
	struct whole *whole = bpf_ringbuf_reserve(&events, sizeof *whole, 0);
	if (!whole) {
		lose(LOST_RING);
		return -1;
	}
	fill(&whole->event, STACK, task, tid, start);
	long size = bpf_get_stack(ctx, whole->addresses, sizeof whole->addresses, 0);
	whole->event.text = size > 0 ? size : 0;
	bpf_ringbuf_submit(whole, BPF_RB_NO_WAKEUP);
	return number < -1 ? number : -2;
}

static __always_inline int follow_fork(struct task_struct *parent, struct task_struct *child)
{
	__u32 parent_tid = NUMBER(parent), tid = NUMBER(child), group = GROUP(child);
	struct task *from = traced(parent_tid);
	struct task task = new_task(0, group);
	task.off = clock_now();
	if (from)
		task.root = from->root;
	else if (settings.generator && GROUP(parent) == settings.generator)
		task.root = tid;
	else
		return 0;
	if (keep(tid, &task)) {
		lose(LOST_THREAD);
		return 0;
	}
	if (home.level) {
		__u32 first = child->pid;
		bpf_map_update_elem(&numbers, &first, &tid, BPF_ANY);
	}
	struct task by = {.root = task.root, .pid = GROUP(parent)};
	instant(FORK, from ? from : &by, parent_tid, tid, group);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	return follow_fork(parent, child);
}

struct begin {
	struct event event;
	char file[FILE_MAX], arguments[WORDS_MAX], environment[WORDS_MAX];
};

/* Part of a process's own memory; returns how much was there. */
static __always_inline __u64 take_words(char *out, __u64 start, __u64 end, int last)
{
	__u64 size = end - start;
	if (start >= end)
		return 0;
	if (size > WORDS_MAX - 1) {
		size = WORDS_MAX - 1;
		start = last ? end - size : start;
	}
	return bpf_probe_read_user(out, size & (WORDS_MAX - 1), (void *)start) ? 0 : size;
}

static __always_inline __u32 level_of(struct task_struct *p)
{
	return BPF_CORE_READ(p, thread_pid, level);
}

static __always_inline struct task_struct *parent_of(struct task_struct *p)
{
	return BPF_CORE_READ(p, real_parent, group_leader);
}

/* How the children of a process of this name are watched; 0 if they are not. */
static __always_inline __u32 sign_of_name(const char *name)
{
	__u32 *sign = bpf_map_lookup_elem(&names, name);
	return sign && *sign != SIGN ? *sign : 0;
}

static __always_inline __u32 sign_of(struct task_struct *p)
{
	char name[NAME] = {};
	BPF_CORE_READ_INTO(&name, p, comm);
	return sign_of_name(name);
}

/* The name of the nearest ancestor whose children are watched, such as an engine, unless p is in a
 * container of it. It is read once, as a process may change its name meanwhile. */
static __always_inline void name_engine(struct task_struct *p, unsigned long long out[2])
{
	struct task_struct *ancestor = p;
#pragma unroll
	for (int up = 0; up < ANCESTORS; up++) {
		char name[NAME] = {};
		ancestor = parent_of(ancestor);
		BPF_CORE_READ_INTO(&name, ancestor, comm);
		if (!sign_of_name(name))
			continue;
		if (level_of(p) == level_of(ancestor))
			__builtin_memcpy(out, name, sizeof name);
		return;
	}
}

/* Whether a program has a watched name, whatever its arguments, or is a child of one whose children are
 * watched: a runtime or a plugin of another name. A container's own program is also a child of the shim,
 * but a PID namespace below. */
static __always_inline int is_sign(struct task_struct *p)
{
	char name[NAME] = {};
	bpf_get_current_comm(name, sizeof name);
	__u32 *sign = bpf_map_lookup_elem(&names, name);
	if (sign)
		return *sign != CHILDREN_ALONE;
	struct task_struct *parent = parent_of(p);
	return sign_of(parent) && level_of(p) == level_of(parent);
}

/* A watched program reports its command line. One that is not traced becomes a root, and so does
 * a daemon's child, as the daemon has others, of other starts. */
static __always_inline void begin(struct task_struct *p, __u32 tid, const char *file)
{
	if (!tid || !is_sign(p))
		return;
	struct task *known = traced(tid);
	if (known && sign_of(parent_of(p)) == CHILDREN_ALONE)
		known->root = tid;
	struct task task = new_task(known ? known->root : tid, GROUP(p));
	struct begin *out = bpf_ringbuf_reserve(&events, sizeof *out, 0);
	if (!out || (!known && keep(tid, &task))) {
		lose(out ? LOST_THREAD : LOST_RING);
		if (out)
			bpf_ringbuf_discard(out, 0);
		return;
	}
	fill(&out->event, BEGIN, &task, tid, clock_now());
	out->event.text = sizeof *out - sizeof out->event;
	name_engine(p, &out->event.args[2]);
	bpf_probe_read_kernel_str(out->file, sizeof out->file, file);
	struct mm_struct *mm = p->mm;
	out->event.args[0] = take_words(out->arguments, BPF_CORE_READ(mm, arg_start),
					BPF_CORE_READ(mm, arg_end), 0);
	out->event.args[1] = take_words(out->environment, BPF_CORE_READ(mm, env_start),
					BPF_CORE_READ(mm, env_end), 1);
	bpf_ringbuf_submit(out, BPF_RB_FORCE_WAKEUP);
}

static __always_inline int follow_exec(struct task_struct *p, int old_tid, const char *file)
{
	struct {
		struct event event;
		char text[128];
	} exec = {};
	__u32 tid = NUMBER(p), old = old_tid;
	if (old_tid != p->pid) { /* not the process's first thread: it takes that one's number */
		__u32 *known = home.level ? bpf_map_lookup_elem(&numbers, &old) : &old;
		old = known ? *known : 0;
		struct task *from = traced(old);
		if (from) {
			if (keep(tid, from))
				lose(LOST_THREAD);
			instant(EXIT, from, old, tid, 0);
			drop(old);
		}
	}
	struct task *task = traced(tid);
	__u32 execution = p->self_exec_id;
	if (task && task->execution == execution)
		return 0; /* the other of program and copy has taken it */
	if (settings.watch) {
		begin(p, tid, file);
		task = traced(tid);
	}
	if (!task)
		return 0;
	task->execution = execution;
	task->ended = 0; /* as the thread was whose number this one took over */
	struct pid *pid = BPF_CORE_READ(p, thread_pid);
	__u32 level = BPF_CORE_READ(pid, level);
	fill(&exec.event, EXEC, task, tid, clock_now());
	struct upid *at = number_at(pid, level);
	exec.event.args[0] = BPF_CORE_READ(at, nr);
	exec.event.args[1] = level - home.level;
	exec.event.peer = old;
	long length = bpf_probe_read_kernel_str(exec.text, sizeof exec.text, file);
	exec.event.text = length > 0 ? length : 0;
	if (bpf_ringbuf_output(&events, &exec.event, sizeof exec,
			       settings.watch ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP))
		lose(LOST_RING);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *p, int old_tid, struct linux_binprm *bprm)
{
	return follow_exec(p, old_tid, bprm->filename);
}

static __always_inline void forget(struct task_struct *p, __u32 tid)
{
	__u32 first = p->pid;
	drop(tid);
	bpf_map_delete_elem(&numbers, &first);
}

/* Its namespaces, mounts and memory are given back after this, and its parent is woken then. */
static __always_inline int follow_exit(struct task_struct *p)
{
	__u32 tid = NUMBER(p);
	struct task *task = traced(tid);
	if (!task || task->ended)
		return 0;
	task->ended = 1;
	if (task->number >= 0 && task->call) { /* exit_group does not return */
		struct event call;
		fill(&call, CALL, task, tid, clock_now());
		call.start = task->call;
		call.number = task->number;
		call.open = 1;
		emit(&call, sizeof call);
	}
	instant(EXIT, task, tid, 0, 0);
	task->number = -1;
	task->call = 0;
	if (settings.watch) /* on_switch may not be attached to it */
		forget(p, tid);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *p)
{
	return follow_exit(p);
}

static __always_inline __u32 *timer(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&timers, &zero);
}

SEC("tp_btf/hrtimer_expire_entry")
int BPF_PROG(on_timer)
{
	__u32 *expired = timer();
	if (expired)
		*expired = 1;
	return 0;
}

SEC("tp_btf/hrtimer_expire_exit")
int BPF_PROG(on_timer_end)
{
	__u32 *expired = timer();
	if (expired)
		*expired = 0;
	return 0;
}

SEC("tp_btf/sched_waking")
int BPF_PROG(on_waking, struct task_struct *p)
{
	struct task *task = traced(NUMBER(p));
	if (task && task->off && !task->woken) {
		__u32 *expired = timer();
		task->woken = clock_now();
		task->by_timer = expired && *expired;
		task->waker = task->by_timer ? 0 : own_number();
	}
	return 0;
}

/* "now": 0 if the clock was not read yet. */
static __always_inline void switched_in(__u32 tid, __u64 now)
{
	struct task *task = traced(tid);
	if (!task || !task->off)
		return;
	now = now ? now : clock_now();
	if (now - task->off >= SHORTEST_OFF_NS) {
		struct event event;
		if (task->off_stack == UNSEEN && !task->woken)
			task->off_state = 0; /* it was ready to run already when it was followed */
		fill(&event, OFF, task, tid, now);
		event.start = task->off;
		event.args[0] = task->woken;
		event.peer = task->waker;
		event.number = task->by_timer;
		event.result = task->off_state;
		event.stack = task->off_stack;
		emit(&event, sizeof event);
	}
	task->off = task->woken = 0;
	task->waker = task->by_timer = 0;
}

/* A thread that makes a call is running. Some kernels do not report each switch to a thread, so a
 * wait can still be open then. Nothing is known of what a process did before it was followed. */
static __always_inline void runs(struct task *task, __u32 tid)
{
	if (task->off && task->off_stack != UNSEEN)
		switched_in(tid, 0);
	task->off = 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, _Bool preempt, struct task_struct *prev, struct task_struct *next,
	     unsigned int prev_state)
{
	count();
	__u64 now = 0;
	struct task *task = traced(NUMBER(prev));
	if (task && prev_state & DEAD && !preempt) {
		/* A first thread has the number of that by now whose execve ended it, which goes on. */
		if (task->ended) {
			instant(GONE, task, NUMBER(prev), 0, 0);
			forget(prev, NUMBER(prev));
		}
	} else if (task) {
		if (task->off && task->woken) /* since when it has run is not known */
			switched_in(NUMBER(prev), task->woken);
		task->off = now = clock_now();
		task->woken = 0;
		task->off_state = preempt ? 0 : prev_state;
		if (!task->off_state)
			task->off_stack = -1;
		else if (task->wait && task->off_state & INTERRUPTIBLE)
			task->off_stack = STACKS + task->wait;
		else
			task->off_stack = take_stack(ctx, task, NUMBER(prev), now);
	}
	switched_in(NUMBER(next), now);
	return 0;
}

static __always_inline int allocate(unsigned long call_site, __u64 memory)
{
	__u32 tid = own_number();
	struct task *task = traced(tid);
	if (!task || task->number < 0 || task->memory == memory)
		return 0;
	__u8 kind = settings.take[task->number & (NUMBERS - 1)];
	if (kind == SPACES || kind == CLONE3) {
		task->memory = memory;
		instant(MARK, task, tid, 0, call_site);
	}
	return 0;
}

SEC("tp_btf/percpu_alloc_percpu")
int BPF_PROG(on_allocation, unsigned long call_site, _Bool reserved, _Bool is_atomic,
	     unsigned long size, unsigned long align, void *base, int offset, void *memory)
{
	return allocate(call_site, (__u64)memory);
}

static __always_inline __u32 owner_number(struct task_struct *owner)
{
	return home.level ? number_below(owner) : (__u32)BPF_CORE_READ(owner, pid);
}

/* Waiting for our own ring cannot be reported through it. */
static __always_inline int is_ours(void *lock)
{
	void *ring = ((struct bpf_ringbuf_map *)&events)->rb;
	return (void *)((__u64)lock & ~(PAGE - 1ULL)) == ring;
}

SEC("tp_btf/contention_begin")
int BPF_PROG(on_contention, void *lock, unsigned int flags)
{
	struct task *task = traced(own_number());
	if (!task || task->lock || is_ours(lock))
		return 0;
	__u64 owner = 0;
	struct mutex *mutex = lock;
	struct rw_semaphore *semaphore = lock;
	/* With PREEMPT_RT both are built on rt_mutex, and have no owner here. */
	if (flags & MUTEX) {
		if (bpf_core_field_exists(mutex->owner))
			owner = BPF_CORE_READ(mutex, owner.counter);
	} else if (!(flags & (SPIN | RT | PERCPU)) && bpf_core_field_exists(semaphore->owner)) {
		owner = BPF_CORE_READ(semaphore, owner.counter);
	}
	task->owner = owner & ~7ULL ? owner_number((void *)(owner & ~7ULL)) : 0;
	task->lock_address = (__u64)lock;
	task->lock_flags = flags;
	__u32 tid = own_number();
	__u64 now = clock_now();
	task->lock_stack = take_stack(ctx, task, tid, now);
	task->lock = now;
	return 0;
}

SEC("tp_btf/contention_end")
int BPF_PROG(on_contention_end, void *lock)
{
	__u32 tid = own_number();
	struct task *task = traced(tid);
	if (!task || !task->lock || task->lock_address != (__u64)lock)
		return 0;
	struct event event;
	fill(&event, LOCK, task, tid, clock_now());
	event.start = task->lock;
	event.peer = task->owner;
	event.args[0] = task->lock_address;
	event.args[1] = task->lock_flags;
	event.stack = task->lock_stack;
	task->lock = 0;
	if (event.end - event.start >= SHORTEST_LOCK_NS)
		emit(&event, sizeof event);
	return 0;
}

/* The number and arguments of a 32-bit program's call, as others have them; returns the number,
 * or -1 if the call is not reported. */
static __always_inline long widen(struct task *task, long number)
{
	if (number == SOCKETCALL) {
		__u32 words[4] = {};
		bpf_probe_read_user(words, sizeof words, (void *)task->args[1]);
		number = settings.of_socketcall[task->args[0] & (SOCKETCALLS_MAX - 1)];
		for (int i = 0; i < 4; i++)
			task->args[i] = words[i];
		return number - 1;
	}
	return number < 0 || number >= NUMBERS ? -1 : settings.of32[number] - 1;
}

static __always_inline int enter(struct task *task, struct pt_regs *regs, long number)
{
	struct task_struct *current = bpf_get_current_task_btf();
	task->number = -1;
	task->call = 0;
	task->lock = 0; /* a call whose end was missed must not hide later ones */
	task->memory = 0;
	task->narrow = !!NARROW(current);
	if (task->narrow) {
		task->args[0] = (__u32)ARGUMENT32(regs, 0);
		task->args[1] = (__u32)ARGUMENT32(regs, 1);
		task->args[2] = (__u32)ARGUMENT32(regs, 2);
		task->args[3] = (__u32)ARGUMENT32(regs, 3);
		number = widen(task, number);
	}
	if (number < 0 || number >= NUMBERS || settings.take[number] == IGNORE)
		return 0;
	if (settings.take[number] >= ASLEEP) {
		task->wait = settings.take[number];
		return 0;
	}
	if (!task->narrow) {
		task->args[0] = ARGUMENT(regs, 0);
		task->args[1] = ARGUMENT(regs, 1);
		task->args[2] = ARGUMENT(regs, 2);
		task->args[3] = ARGUMENT(regs, 3);
	}
	task->number = number;
	task->call = clock_now();
	return 0;
}

/* From Linux 6.13 on, programs of system calls can be preempted, from 7.0 on those of all tracepoints that
 * are reached with preemption on, and while one is, the kernel skips it for every other thread of that CPU.
 * So each has a copy there, which takes what it missed and may run before it or after it. The copy is on the
 * trace event of the same tracepoint, whose programs are never preempted, or on a tracepoint soon after it
 * that is reached with interrupts off. */
struct raw_enter {
	__u64 common;
	long number;
	__u64 args[6];
};
struct raw_exit {
	__u64 common;
	long number;
	long result;
};
struct raw_exec {
	__u64 common;
	__u32 file; /* where the name is in this record, in its lower half */
	int pid, old_pid;
};
struct raw_allocation {
	__u64 common;
	unsigned long call_site;
	_Bool reserved, is_atomic;
	unsigned long size, align;
	void *base;
	int offset;
	void *memory;
};

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_fork_again, struct task_struct *child)
{
	struct task *known = traced(NUMBER(child));
	if ((known && !known->ended) || child->flags & PF_USER_WORKER)
		return 0;
	return follow_fork(bpf_get_current_task_btf(), child);
}

SEC("tp/sched/sched_process_exec")
int on_exec_again(struct raw_exec *context)
{
	return follow_exec(bpf_get_current_task_btf(), context->old_pid,
			   (void *)context + (context->file & 0xffff));
}

SEC("tp/sched/sched_process_exit")
int on_exit_again(void *context)
{
	(void)context;
	return follow_exit(bpf_get_current_task_btf());
}

SEC("tp/percpu/percpu_alloc_percpu")
int on_allocation_again(struct raw_allocation *context)
{
	return allocate(context->call_site, (__u64)context->memory);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(on_enter, struct pt_regs *regs, long number)
{
	count();
	struct task *task = traced(own_number());
	if (!task)
		return 0;
	if (task->call && !task->copied) /* its return was missed by both */
		lose(LOST_RETURN);
	task->copied = 0;
	runs(task, own_number());
	return enter(task, regs, number);
}

SEC("tp/raw_syscalls/sys_enter")
int on_enter_again(struct raw_enter *context)
{
	struct task *task = traced(own_number());
	if (!task || task->call || task->wait)
		return 0;
	struct pt_regs *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	task->copied = 1;
	return enter(task, regs, context->number);
}

/* Describes the descriptor: its file system and name, or its socket's family and protocol. */
static __always_inline void describe(struct wide *out, __u64 fd)
{
	struct file *file = 0;
	struct fdtable *table = bpf_get_current_task_btf()->files->fdt; /* no helper is called */
	if (fd >= table->max_fds)
		return;
	bpf_probe_read_kernel(&file, sizeof file, table->fd + fd);
	struct inode *inode = file ? BPF_CORE_READ(file, f_inode) : 0;
	if (!inode)
		return;
	out->event.magic = BPF_CORE_READ(inode, i_sb, s_magic);
	const void *name = 0;
	if (out->event.magic == SOCKFS_MAGIC) {
		struct socket *socket = BPF_CORE_READ(file, private_data);
		struct sock *sock = BPF_CORE_READ(socket, sk);
		out->event.family = BPF_CORE_READ(sock, __sk_common.skc_family);
		out->event.protocol = BPF_CORE_READ(sock, sk_protocol);
		return;
	}
	if (out->event.magic == PIPEFS_MAGIC)
		out->event.peer = BPF_CORE_READ(inode, i_ino) & 0x7fffffff;
	if (out->event.magic == NSFS_MAGIC) {
		struct ns_common *namespace = BPF_CORE_READ(inode, i_private);
		name = BPF_CORE_READ(namespace, ops, name);
	} else {
		name = BPF_CORE_READ(file, f_path.dentry, d_name.name);
	}
	long length = bpf_probe_read_kernel_str(out->text, 64, name);
	out->event.text = length > 0 ? length : 0;
}

static __always_inline void take_path(struct wide *out, __u64 address)
{
	long length = bpf_probe_read_user_str(out->text, PATH, (void *)address);
	out->event.text = length > 0 ? length : 0;
}

static __always_inline void take_bytes(struct wide *out, __u64 address, __u64 size)
{
	if (size > TEXT_MAX)
		size = TEXT_MAX;
	if (bpf_probe_read_user(out->text, size, (void *)address) == 0)
		out->event.text = size;
}

static __always_inline void take_message32(struct wide *out, __u64 header)
{
	struct {
		__u32 name, name_length, vectors, count;
	} message = {};
	struct {
		__u32 base, size;
	} vector = {};
	bpf_probe_read_user(&message, sizeof message, (void *)header);
	bpf_probe_read_user(&vector, sizeof vector, (void *)(__u64)message.vectors);
	take_bytes(out, vector.base, vector.size);
}

static __always_inline void take_message(struct wide *out, __u64 header)
{
	struct {
		__u64 name;
		__u32 name_length, pad;
		__u64 vectors, count;
	} message = {};
	struct {
		__u64 base, size;
	} vector = {};
	bpf_probe_read_user(&message, sizeof message, (void *)header);
	bpf_probe_read_user(&vector, sizeof vector, (void *)message.vectors);
	take_bytes(out, vector.base, vector.size);
}

static __always_inline void take_mount(struct wide *out, __u64 target, __u64 type)
{
	long length = bpf_probe_read_user_str(out->text, PATH, (void *)target);
	if (length <= 0 || length > PATH)
		return;
	long more = bpf_probe_read_user_str(out->text + length, 64, (void *)type);
	out->event.text = length + (more > 0 ? more : 0);
}

static __always_inline int leave(__u32 tid, long result, __u32 copy)
{
	struct task *task = traced(tid);
	if (!task)
		return 0;
	task->wait = 0;
	task->copied = 0;
	runs(task, tid);
	if (task->number < 0 || !task->call)
		return 0;
	struct wide *out = bpf_map_lookup_elem(&scratch, &copy);
	if (!out)
		return 0;
	fill(&out->event, CALL, task, tid, clock_now());
	out->event.start = task->call;
	out->event.number = task->number;
	out->event.result = result;
	for (int i = 0; i < 4; i++)
		out->event.args[i] = task->args[i];
	switch (settings.take[task->number & (NUMBERS - 1)]) {
	case PATH0:
		take_path(out, task->args[0]);
		break;
	case PATH1:
		take_path(out, task->args[1]);
		break;
	case MOUNT:
		take_mount(out, task->args[1], task->args[2]);
		break;
	case CLONE3:
		bpf_probe_read_user(&out->event.args[0], sizeof(__u64), (void *)task->args[0]);
		break;
	case FD:
		describe(out, task->args[0]);
		break;
	case ADDRESS:
		describe(out, task->args[0]);
		take_bytes(out, task->args[1], task->args[2]);
		break;
	case WORD1:
		take_bytes(out, task->args[1], sizeof(__u32));
		break;
	case SEND:
	case SENDMSG:
		describe(out, task->args[0]);
		if (out->event.family != AF_NETLINK)
			break;
		if (settings.take[task->number & (NUMBERS - 1)] == SEND)
			take_bytes(out, task->args[1], task->args[2]);
		else if (task->narrow)
			take_message32(out, task->args[1]);
		else
			take_message(out, task->args[1]);
		break;
	}
	task->number = -1;
	task->call = 0;
	emit(&out->event, sizeof out->event + (out->event.text & (2 * TEXT_MAX - 1)));
	return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(on_return, struct pt_regs *regs, long result)
{
	return leave(own_number(), result, 0);
}

SEC("tp/raw_syscalls/sys_exit")
int on_return_again(struct raw_exit *context)
{
	return leave(own_number(), context->result, 1);
}

char _license[] SEC("license") = "GPL"; /* the helpers that read kernel memory ask for it */
