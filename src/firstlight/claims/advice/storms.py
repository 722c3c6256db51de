"""The known storms: each is one entry."""

from firstlight.claims.advice import Storm

_IN_CGROUP = r"cgroup_procs_write\w*|__cgroup_procs_write|cgroup_attach\w*|cgroup_procs_write_start"
_SLEEP = r"sleep(: timeout)?"

STORMS = (
    Storm(
        "veth move",
        "A link is moved into the network namespace, and waits there for RCU.",
        "Create the container's end of the veth in its namespace: IFLA_NET_NS_FD of the peer, at "
        "creation. CNI's bridge does since v1.0.0, Calico since v3.27.",
        phases=r"veth\.move",
        lock="rtnl_mutex",
        held=".*dev_change_net_namespace.*",
    ),
    Storm(
        "cgroup move",
        "A process is moved into its control group by cgroup.procs, and waits for RCU.",
        "Clone it into the group (CLONE_INTO_CGROUP), or mount cgroup2 with favordynmods.",
        causes=rf"RCU: rcu_sync_enter \((?:{_IN_CGROUP})\)|lock: cgroup_threadgroup_rwsem .*",
        lock="cgroup_mutex",
        held=rf"RCU: rcu_sync_enter \((?:{_IN_CGROUP})\)",
    ),
    Storm(
        "many mounts",
        "A new mount namespace copies all mounts of its parent's; runtimes read and change them.",
        "Start containers from a mount namespace without the others' mounts; hold network "
        "namespaces by descriptor, not by name.",
        phases=r"ns\.mount",
        causes=r"on CPU|lock: (namespace_sem|pcpu_alloc_mutex) .*",
        shade="kernel",
        least=1_000_000,
        rest=200_000,
        along="mount|cgroup",
        along_rest=6_000_000,  # runc's own mounts and control groups
    ),
    Storm(
        "id-mapped layers",
        "Each layer of an image is mounted once more, to map its ids.",
        "Map the ids of the finished overlay, once, or unpack the image with the ids that it is "
        "run with.",
        phases="mount",
        shade="kernel",
        count="call mount_setattr",
        fewest=4,
    ),
    Storm(
        "seccomp compiled anew",
        "The runtime compiles the container's seccomp profile at each start.",
        "Give the compiled filter (crun's annotation run.oci.seccomp_bpf_data), or a profile that "
        "lists what is forbidden.",
        phases="security|config",
        causes="on CPU",
        shade="around",
        count="call seccomp",
        least=2_000_000,
        rest=1_000_000,
    ),
    Storm(
        "fork of a fat daemon",
        "A process with much memory forks: its page tables are copied, and freed again by exec.",
        "Start programs by vfork or posix_spawn, or from a small helper process.",
        phases="fork",
        causes="on CPU",
        shade="kernel",
        least=1_500_000,
        rest=300_000,
        along="exec",  # which frees what was copied
        along_rest=300_000,
    ),
    Storm(
        "duplicate-address detection",
        "A start waits until IPv6 has made sure that an address is nobody else's.",
        "Add the address with IFA_F_NODAD, set accept_dad=0, or turn IPv6 off in the namespace.",
        phases=r"ipam|link\.query|sleep|datastore|link\.sysctl",
        causes=rf"{_SLEEP}|another (process: poll|thread: futex)|kernel: netlink answer.*",
        count=r"netlink route RTM_(NEW|GET)ADDR.*",
        least=400_000_000,
        fixed=True,
    ),
    Storm(
        "rate limit",
        "A process on the start's way sleeps: it limits its rate, or looks again after a pause.",
        "Raise the limit (the kubelet's kubeAPIQPS and registryPullQPS, the CNI agent's "
        "endpoint-create), or wait for an event.",
        phases="sleep",
        causes=_SLEEP,
        least=5_000_000,
        fixed=True,
        instead="duplicate-address detection",
    ),
    Storm(
        "image unpack",
        "A start unpacks layers of its image.",
        "Pull and unpack before the first start; use fewer and smaller layers, or an image that is "
        "mounted as it is (erofs, squashfs).",
        phases=r"image(\.unpack)?",
        least=2_000_000,
    ),
    Storm(
        "entropy",
        "A start waits for the kernel's random numbers.",
        "Give the machine a source: a virtio-rng device, the CPU's instruction trusted "
        "(random.trust_cpu), or a seed kept from the last boot.",
        causes=r"unknown wait \((?:wait_for_random_bytes|\w*random\w*|hwrng_\w+|rng_dev_read)\)",
    ),
    Storm(
        "xtables lock",
        "iptables waits for the lock that all its invocations share.",
        "Put all rules into one nftables table with sets, or call iptables-restore once.",
        causes=r"another process: file lock",
        count=r"exec (xtables|ip6?tables)\S*",
    ),
    Storm(
        "fsync of state",
        "A start waits until a file of its own is on the disk.",
        "Do not sync state that a reboot makes void: put it on a tmpfs. For a datastore: a faster "
        "disk, or batches.",
        causes=r"I/O \((?:\w*fdatawait\w*|\w*sync\w*|jbd2_\w+|\w*writeback\w*|blkdev_issue_flush|"
               r"submit_bio_wait)\)|kernel worker \(\w*sync\w*\)",
        count=r"call (fsync|fdatasync|sync_file_range|syncfs)",
    ),
    Storm(
        "cold page cache",
        "A start reads from the disk what is not in the page cache.",
        "Read images ahead of the first start (readahead, vmtouch), or keep a warm copy: erofs "
        "with a shared cache, a snapshotter that prefetches.",
        causes=r"I/O \((?:filemap_\w+|page_cache_\w+|__?do_page_cache\w*|read_pages|"
               r"generic_file_read\w*|squashfs_\w+|erofs_\w+|btrfs_read\w*|ext4_\w*read\w*)\)",
    ),
)  # fmt: skip
