"""Translates kernel stacks to causes, by one ordered table.

A stack is the kernel's functions, innermost first, joined by ``;``. A cause names the wait and, in
parentheses, the function that asked for it.
"""

import re
from functools import lru_cache

from firstlight.store import UNSEEN

ON_CPU = "on CPU"
QUEUED = "waiting for a CPU"
NOT_TRACED = "not traced"
"""The cause of time that only a component's span covers: the kernel was not traced."""
SLEEP = "sleep"
TIMEOUT = f"{SLEEP}: timeout"
"""The cause of a wait for events, a futex or a signal that a timer ended: none came."""
UNKNOWN = "unknown wait"
PEER = "another "
"""Prefix of causes that are waits for another process or thread; the critical path follows them."""
VFORK = f"{PEER}process: vfork"

# Functions that take a lock for their callers; the first function outside them asked for it.
_LOCKING = re.compile(
    r"_*(mutex_lock|mutex_lock_killable|mutex_lock_interruptible|ww_mutex)|_*down_(read|write)|"
    r"rwsem_|_*percpu_down|percpu_rwsem|_raw_spin|_raw_read|_raw_write|native_queued|__pv_queued|"
    r"queued_|schedule|__schedule|_*rt_mutex|__percpu|do_raw|lock_sock|__lock_sock|lockref_"
)
_WAITING = re.compile(
    r"schedule|_*wait_for_comm?on|wait_for_completion|_*wait_rcu_gp|synchronize_rcu|rcu_sync|"
    r"rcu_barrier|synchronize_net|exp_funnel|_*synchronize_srcu|io_schedule|bit_wait|_*wait_on_bit|out_of_line|"
    r"folio_wait|__folio_lock|__flush_work|__wait_"
)
_MACHINERY = re.compile(f"{_LOCKING.pattern}|{_WAITING.pattern}")
# The lock that a function takes, for kernels that do not list the lock's name.
_LOCKS = {
    kind: tuple((re.compile(functions), name) for functions, name in table)
    for kind, table in {
        "mutex": (
            (r"(rtnl_|rtnetlink_|do_setlink|register_nexthop|unregister_nexthop|register_netdev|"
             r"default_device|inetdev|inet_rtm|inet6_rtm|dev_change|cleanup_net|"
             r"netdev_run_todo|ip6_route|addrconf|fib_|devinet)", "rtnl_mutex"),
            (r"(cgroup_|cpuset_|proc_cgroup|rebind_subsys|css_)", "cgroup_mutex"),
            (r"(pipe_|anon_pipe|fifo_)", "pipe lock"),
            (r"(pcpu_|percpu_)", "pcpu_alloc_mutex"),
            (r"shrinker_", "shrinker_mutex"),
            (r"(bpf_|security_|apparmor|audit)", "security lock"),
        ),
        "rwsem": (
            (r"(copy_net_ns|register_pernet|unregister_pernet|net_ns_)", "pernet_ops_rwsem"),
            (r"(namespace_|do_lock_mount|lock_mount|attach_recursive|path_umount|do_umount|"
             r"copy_mnt_ns|do_mount|do_move_mount|mnt_|path_mount|m_start|mounts_|do_add_mount|"
             r"do_loopback|__do_loopback|finish_automount|open_detached|do_new_mount)",
             "namespace_sem"),
            (r"(kernfs_)", "kernfs_rwsem"),
            (r"(unlink_file_vma|vma_prepare|vma_link|i_mmap_)", "i_mmap_rwsem"),
            (r"(do_task_stat|mm_access|proc_pid_)", "exec_update_lock"),
            (r"(do_vmi|vm_mmap|mmap_|do_user_addr|exc_page|__mm_populate|mprotect|brk|vm_munmap|"
             r"do_mprotect|lock_mm|lock_vma|dup_mmap|exit_mmap|ksys_mmap|madvise_|do_madvise)",
             "mmap_lock"),
            (r"shrinker_", "shrinker_rwsem"),
            (r"(lookup_|open_last|path_|filename_|do_mkdir|do_unlink|vfs_|walk_|iterate_dir|"
             r"chown|notify_change)", "inode rwsem"),
        ),
        "percpu-rwsem": (
            (r"(cgroup_|__cgroup|copy_process|begin_new_exec|exit_signals)",
             "cgroup_threadgroup_rwsem"),
        ),
        "socket lock": (),
        "lock": ((r"netlink_table_", "nl_table_lock"),),
    }.items()
}  # fmt: skip
# The innermost of these determines the kind of lock that a blocked thread waits for.
_KIND = re.compile(r"percpu_(?:down|rwsem)|rwsem_|\bdown_(?:read|write)|mutex|lock_sock")
_KINDS = {"percpu": "percpu-rwsem", "rwsem": "rwsem", "down": "rwsem", "mutex": "mutex",
          "lock": "socket lock"}  # fmt: skip
_CALLERS = 3
"""How many frames away from the lock a function may name it; beyond, it called something else."""
_BLOCKED = tuple(
    (re.compile(pattern), cause)
    for pattern, cause in (
        (r"\brcu_barrier\b", "RCU: rcu_barrier"),
        (r"\brcu_sync_enter\b", "RCU: rcu_sync_enter"),
        (r"\bsynchronize_rcu_expedited\b", "RCU: synchronize_rcu_expedited"),
        (r"\bsynchronize_(net|rcu\w*)\b|\b_*wait_rcu_gp\b", "RCU: synchronize_rcu"),
        (r"\b_*synchronize_srcu\b", "RCU: synchronize_srcu"),
        (r"\b(_*mutex_lock\w*|rwsem_down_\w+|_*percpu_(down|rwsem)\w*|_*rt_mutex\w*|"
         r"percpu_down_write|_*lock_sock\w*|__down_\w+|netlink_table_grab)\b", "lock"),
        (r"\b(io_schedule\w*|folio_wait\w*|bit_wait_io|submit_bio_wait|blk_\w+|jbd2_\w+|"
         r"ext4_sync_file|wb_wait_for_completion|wait_on_page\w*|wait_on_buffer|"
         r"__wait_on_buffer)\b", "I/O"),
        (r"\b(hrtimer_nanosleep|do_nanosleep|msleep\w*)\b", SLEEP),
        (r"\b_*(flush_work|flush_workqueue|kthread_\w+|call_usermodehelper_exec|"
         r"devtmpfs_\w+)\b", "kernel worker"),
        (r"\bdo_wait\b|\bkernel_wait4\b|\bkernel_waitid\b", f"{PEER}process: wait"),
        (r"\b(locks_lock_inode_wait|do_lock_file_wait|fcntl_setlk)\b", f"{PEER}process: file lock"),
        (r"\bkernel_clone\b", VFORK),
        (r"\bbegin_new_exec\b", f"{PEER}thread: exec"),
        (r"\b(anon_)?pipe_(read|write)\b|\bfifo_open\b|\bwait_for_partner\b",
         f"{PEER}process: pipe"),
        (r"\bunix_stream|\bunix_dgram|\b_*skb_wait_for|\bunix_wait|\bunix_accept",
         f"{PEER}process: unix socket"),
        (r"\b(inet_csk_accept|tcp_recvmsg\w*|inet_stream_connect|sk_wait_data|"
         r"inet_wait_for_connect)\b", f"{PEER}process: TCP"),
        (r"\b(netlink_recvmsg|__skb_recv_datagram)\b", "kernel: netlink answer"),
        (r"\bfutex_", f"{PEER}thread: futex"),
        (r"\b(do_epoll_wait|ep_poll|do_sys_poll|do_poll|do_select|do_pselect)",
         f"{PEER}process: poll"),
        (r"\b(sigsuspend|do_sigtimedwait|__(x64|ia32|do|arm64)_sys_pause)\b",
         f"{PEER}process: signal"),
        (r"\bptrace_stop\b", f"{PEER}process: ptrace"),
        (r"\bseccomp_do_user_notification\b", f"{PEER}process: seccomp notification"),
        (rf"^{UNSEEN}$", f"{PEER}process: request"),
        (r"\bread_events\b", f"{PEER}process: aio"),
        (r"\bio_(uring|cqring)", f"{PEER}process: io_uring"),
    )
)  # fmt: skip


# Waiters for one grace period queue for a mutex inside RCU.
_RCU_LOCK = re.compile(
    r"mutex_lock[^;]*;(?:exp_funnel_lock;)?(synchronize_rcu_expedited|rcu_barrier)\b"
)


_TIMED = {f"{PEER}thread: futex", f"{PEER}process: poll", f"{PEER}process: signal"}
"""The waits that programs also sleep with."""


@lru_cache(maxsize=16384)
def of_wait(stack: str, *, timed: bool = False) -> str:
    """The cause of a thread's being off the CPU with this stack, until a timer if ``timed``."""
    for pattern, cause in _BLOCKED:
        if match := pattern.search(stack):
            if timed and cause in _TIMED:
                return TIMEOUT
            if cause == "lock":
                kind = _KIND.search(stack)
                return of_lock(stack, _KINDS[kind[0].split("_")[0]] if kind else "lock", "")
            if cause.startswith(PEER) or cause == SLEEP:
                return cause
            if cause.startswith("RCU"):
                return f"{cause} ({_asker(stack[match.end() :], _MACHINERY)})"
            return f"{cause} ({_asker(stack, _WAITING)})"
    return f"{UNKNOWN} ({_asker(stack, _WAITING)})"


@lru_cache(maxsize=16384)
def of_lock(stack: str, kind: str, variable: str) -> str:
    """The cause of waiting for a contended lock with this stack.

    ``kind`` is mutex, rwsem-write, spinlock, …; ``variable`` is the lock's name or address.
    """
    asker = _asker(stack, _LOCKING)
    if waits := _RCU_LOCK.search(stack):
        return f"RCU: {waits[1]} ({_asker(stack[waits.end() :], _MACHINERY)})"
    if kind in ("spinlock", "rwlock"):
        return f"lock: {kind} ({asker})"
    if variable and not variable.startswith("0x"):
        return f"lock: {variable} ({asker})"
    callers = [frame for frame in stack.split(";") if not _LOCKING.match(frame)][:_CALLERS]
    table = _LOCKS.get(kind.removesuffix("-read").removesuffix("-write"), ())
    name = next(
        (name for frame in callers for functions, name in table if functions.match(frame)), kind
    )
    return f"lock: {name} ({asker})"


def _asker(stack: str, inner: re.Pattern[str]) -> str:
    """The first function that is not part of the waiting itself."""
    frames = [frame for frame in stack.split(";") if frame]
    outside = (frame for frame in frames if not inner.match(frame))
    return next(outside, frames[0] if frames else "no stack")
