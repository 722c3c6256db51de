"""Causes, by stacks that were seen on a real kernel (6.18)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.analysis.causes import PEER, SLEEP, TIMEOUT, UNKNOWN, of_lock, of_wait

NETLINK = "netlink_rcv_skb;netlink_unicast;netlink_sendmsg;__sys_sendto;__x64_sys_sendto"
NEW_NET = (
    "ops_init;setup_net;copy_net_ns;create_new_namespaces;unshare_nsproxy_namespaces;"
    "ksys_unshare;__x64_sys_unshare"
)
MOVE = f"__dev_change_net_namespace;do_setlink;rtnl_newlink;{NETLINK}"
PREEMPTED = "schedule_preempt_disabled"
WRITE = f"{PREEMPTED};rwsem_down_write_slowpath;down_write"
READ = f"{PREEMPTED};rwsem_down_read_slowpath;down_read"
WAIT = "schedule_timeout;wait_for_completion"
CGROUP_WRITE = "cgroup_procs_write_start;__cgroup1_procs_write;kernfs_fop_write_iter;vfs_write"

WAITS = {
    # What the paper could only infer: the grace period of a move, and the queue behind it.
    f"{WAIT};rcu_barrier;{MOVE}": "RCU: rcu_barrier (__dev_change_net_namespace)",
    f"{PREEMPTED};__mutex_lock;rcu_barrier;{MOVE}": (
        "RCU: rcu_barrier (__dev_change_net_namespace)"
    ),
    f"synchronize_rcu_expedited;{MOVE}": (
        "RCU: synchronize_rcu_expedited (__dev_change_net_namespace)"
    ),
    f"{PREEMPTED};__mutex_lock;rtnl_newlink;{NETLINK}": "lock: rtnl_mutex (rtnl_newlink)",
    f"{PREEMPTED};__mutex_lock;rtnetlink_rcv_msg;{NETLINK}": "lock: rtnl_mutex (rtnetlink_rcv_msg)",
    f"{PREEMPTED};__mutex_lock;inet_rtm_newaddr;{NETLINK}": "lock: rtnl_mutex (inet_rtm_newaddr)",
    f"{PREEMPTED};__mutex_lock;register_nexthop_notifier;{NEW_NET}": (
        "lock: rtnl_mutex (register_nexthop_notifier)"
    ),
    f"{PREEMPTED};rwsem_down_read_slowpath;down_read_killable;{NEW_NET.split(';', 2)[2]}": (
        "lock: pernet_ops_rwsem (copy_net_ns)"
    ),
    f"netlink_table_grab;__netlink_kernel_create;rtnetlink_net_init;{NEW_NET}": (
        "lock: nl_table_lock (netlink_table_grab)"
    ),
    # Mounts.
    "synchronize_rcu_expedited;namespace_unlock;path_umount;__x64_sys_umount": (
        "RCU: synchronize_rcu_expedited (namespace_unlock)"
    ),
    f"{PREEMPTED};__mutex_lock;exp_funnel_lock;synchronize_rcu_expedited;namespace_unlock;"
    "path_umount": "RCU: synchronize_rcu_expedited (namespace_unlock)",
    f"{WRITE};do_lock_mount;path_mount;__x64_sys_mount": "lock: namespace_sem (do_lock_mount)",
    f"{WRITE};copy_mnt_ns;create_new_namespaces;copy_namespaces;copy_process": (
        "lock: namespace_sem (copy_mnt_ns)"
    ),
    f"{READ};m_start;seq_read_iter;vfs_read;ksys_read": "lock: namespace_sem (m_start)",
    # Control groups: two locks, told apart by their kind.
    f"{PREEMPTED};__mutex_lock;cgroup_kn_lock_live;cgroup_mkdir;kernfs_iop_mkdir;vfs_mkdir": (
        "lock: cgroup_mutex (cgroup_kn_lock_live)"
    ),
    "percpu_rwsem_wait;__percpu_down_read;cgroup_can_fork;copy_process;kernel_clone": (
        "lock: cgroup_threadgroup_rwsem (cgroup_can_fork)"
    ),
    f"percpu_down_write;{CGROUP_WRITE}": (
        "lock: cgroup_threadgroup_rwsem (cgroup_procs_write_start)"
    ),
    f"{WAIT};synchronize_rcu_normal;rcu_sync_enter;percpu_down_write;{CGROUP_WRITE}": (
        "RCU: rcu_sync_enter (cgroup_procs_write_start)"
    ),
    # Files and memory.
    f"{WRITE};filename_create;do_mkdirat;__x64_sys_mkdirat": "lock: inode rwsem (filename_create)",
    f"{READ};walk_component;link_path_walk;path_openat": "lock: inode rwsem (walk_component)",
    f"{PREEMPTED};rwsem_down_write_slowpath;down_write_killable;vm_mmap_pgoff": (
        "lock: mmap_lock (vm_mmap_pgoff)"
    ),
    "io_schedule;folio_wait_bit_common;filemap_fault;__do_fault;do_fault": "I/O (filemap_fault)",
    "io_schedule;__folio_lock;shmem_get_folio_gfp;shmem_fault": "I/O (shmem_get_folio_gfp)",
    # Others, whom the critical path follows.
    "anon_pipe_read;vfs_read;ksys_read": f"{PEER}process: pipe",
    "do_wait;kernel_wait4": f"{PEER}process: wait",
    "futex_do_wait;__futex_wait;futex_wait;do_futex;__x64_sys_futex": f"{PEER}thread: futex",
    "schedule_hrtimeout_range_clock;do_epoll_wait;__x64_sys_epoll_wait": f"{PEER}process: poll",
    "begin_new_exec;load_elf_binary;bprm_execve": f"{PEER}thread: exec",
    "schedule_timeout;__skb_wait_for_more_packets;__unix_dgram_recvmsg;sock_recvmsg": (
        f"{PEER}process: unix socket"
    ),
    "schedule_timeout;__wait_for_common;wait_for_completion_state;kernel_clone;__do_sys_clone": (
        f"{PEER}process: vfork"
    ),
    "locks_lock_inode_wait;__do_sys_flock;__x64_sys_flock": f"{PEER}process: file lock",
    "do_nanosleep;hrtimer_nanosleep;common_nsleep;__x64_sys_clock_nanosleep": SLEEP,
    # Honestly unknown.
    "something_new;its_caller": f"{UNKNOWN} (something_new)",
    "": f"{UNKNOWN} (no stack)",
}


@pytest.mark.parametrize(("stack", "cause"), WAITS.items(), ids=lambda text: text[:40])
def test_a_wait_is_named_by_its_stack(stack: str, cause: str) -> None:
    assert of_wait(stack) == cause


def test_a_timer_ends_a_sleep_and_no_other_wait() -> None:
    assert of_wait("futex_wait;do_futex", timed=True) == TIMEOUT
    assert of_wait("do_wait;kernel_wait4", timed=True) == f"{PEER}process: wait"
    assert of_wait("do_nanosleep;hrtimer_nanosleep", timed=True) == SLEEP


@pytest.mark.parametrize(
    ("stack", "kind", "cause"),
    [
        ("__mutex_lock;rtnl_newlink;netlink_rcv_skb", "mutex", "lock: rtnl_mutex (rtnl_newlink)"),
        ("__mutex_lock;rcu_barrier;__dev_change_net_namespace", "mutex",
         "RCU: rcu_barrier (__dev_change_net_namespace)"),
        ("__mutex_lock;exp_funnel_lock;synchronize_rcu_expedited;namespace_unlock", "mutex",
         "RCU: synchronize_rcu_expedited (namespace_unlock)"),
        ("__percpu_down_read;cgroup_can_fork;copy_process", "percpu-rwsem",
         "lock: cgroup_threadgroup_rwsem (cgroup_can_fork)"),
        ("__mutex_lock;cgroup_can_fork;copy_process", "mutex",
         "lock: cgroup_mutex (cgroup_can_fork)"),
        ("__pv_queued_spin_lock_slowpath;_raw_spin_lock;mntput_no_expire;namespace_unlock",
         "spinlock", "lock: spinlock (mntput_no_expire)"),
        ("rwsem_down_read_slowpath;down_read;madvise_do_behavior", "rwsem-read",
         "lock: mmap_lock (madvise_do_behavior)"),
        ("__mutex_lock;pcpu_alloc_noprof;__percpu_counter_init_many;mm_init", "mutex",
         "lock: pcpu_alloc_mutex (pcpu_alloc_noprof)"),
    ],
)  # fmt: skip
def test_a_contended_lock_is_named_by_its_stack_and_kind(stack: str, kind: str, cause: str) -> None:
    assert of_lock(stack, kind, "0xffff888100000000") == cause


def test_a_lock_whose_name_the_kernel_lists_has_that_name() -> None:
    assert of_lock("__mutex_lock;f", "mutex", "some_mutex") == "lock: some_mutex (f)"


@pytest.mark.parametrize(
    ("stack", "kind", "cause"),
    [
        ("__mutex_lock;shrinker_alloc;alloc_super;sget_fc;vfs_get_tree", "mutex",
         "lock: shrinker_mutex (shrinker_alloc)"),
        ("__mutex_lock;kobj_lookup;chrdev_open;do_dentry_open;vfs_open;path_openat", "mutex",
         "lock: mutex (kobj_lookup)"),
        ("rwsem_down_read_slowpath;down_read;a;b;c;vfs_read", "rwsem-read", "lock: rwsem-read (a)"),
    ],
)  # fmt: skip
def test_lock_name_ignores_distant_callers(stack: str, kind: str, cause: str) -> None:
    assert of_lock(stack, kind, "") == cause


FRAMES = st.lists(
    st.sampled_from(sorted({frame for stack in WAITS for frame in stack.split(";")}))
    | st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
    max_size=8,
).map(";".join)


@given(FRAMES)
def test_every_wait_has_a_cause(stack: str) -> None:
    cause = of_wait(stack)
    kinds = ("RCU: ", "lock: ", "I/O (", "kernel", PEER, SLEEP, UNKNOWN)
    assert cause.startswith(kinds)
    assert "()" not in cause


@given(FRAMES, st.sampled_from(["mutex", "rwsem-read", "rwsem-write", "percpu-rwsem", "spinlock",
                                "rwlock", "rt-mutex"]))  # fmt: skip
def test_every_lock_has_a_cause(stack: str, kind: str) -> None:
    assert of_lock(stack, kind, "").startswith(("lock: ", "RCU: "))
