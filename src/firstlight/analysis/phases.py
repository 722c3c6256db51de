"""The phases: one ordered table of rules, and ``classify``.

A rule is matched against ``CALL DETAIL`` of a call's span; the first match names the phase. A call
without a match is neutral: its time belongs to its surroundings. Queries are neutral as well (of
capabilities, mounts, the own control group), because they serve other work. A guest's spans have
their own rules, which match the guest's names.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

UNATTRIBUTED = "unattributed"
SLEEP, COMPUTE = "sleep", "compute"
LONGEST_PAUSE = 1_000_000
"""A sleep between calls that is longer, in ns, is a phase of its own: it prepares no call."""
LONGEST_PREPARATION = 10_000_000
"""CPU time between calls that is longer, in ns, is a phase of its own. To prepare a call takes
less: to compile a seccomp profile, the longest that is known, takes 1 to 5 ms."""
ANSWER = "answer"
"""Not a phase: a call that receives the answer to the latest netlink request, and has its phase."""
MASK = "mask"
"""Not a phase: a change of the signal mask, part of ``signals`` if next to it, else neutral."""


@dataclass(frozen=True)
class Phase:
    """A phase: its name, its meaning in a clause, and its rules.

    ``helpers`` are programs executed for this phase alone: all their time belongs to it, except
    requests to a daemon. ``guest`` matches spans of a guest's log, ``component`` those that a
    cluster's components report (model.ComponentSpan).
    """

    name: str
    meaning: str
    rules: tuple[str, ...] = ()
    helpers: str = ""
    guest: str = ""
    component: str = ""


# Only language run-times and the dynamic linker do this. It identifies their start even without an
# execve: runc's last process is a clone of C code that continues into Go's start.
_RUNTIME = (
    r"(openat|open|access|newfstatat|stat|readlink) /(etc/ld\.so|(usr/)?lib\S*\.so)",
    r"(read|pread64) \w+:\S+\.so\b",
    r"\w+ (/sys/kernel/mm/transparent_hugepage/|sysfs:hpage_pmd_size)",
    r"\w+ \S*(\.pyc?|__pycache__|site-packages|pyvenv\.cfg|/python3)\b",
)
# Go's run-time reads its own limit when it starts, by its control group from /proc.
_LIMIT_READ = r"(openat|close|p?read(64)?) \S*\bcpu\.(cfs_quota_us|cfs_period_us|max)$"
_STREAM = r"(pipe:|socket:unix|anon:|pidfs:)"
# Modules that Linux loads to mount a root.
_FILE_SYSTEM = (r"(squashfs|erofs|btrfs|ext4|jbd2|mbcache|xor|raid6_pq|libcrc32c|zstd_\w+|lz4_\w+|"
                r"blake2b_\w+)")  # fmt: skip

PHASES = (
    Phase("process.start", "from the start of a program to its first own call: execve, dynamic "
          "linking, the set-up of its language's run-time",
          ("execve", "execveat", *_RUNTIME)),
    Phase("signals", "signal handlers are installed, after a program's own first call",
          (r"rt_sigaction\b",)),
    Phase("fork", "a process is cloned without new namespaces",
          (r"(clone|clone3|fork|vfork) ?(into-cgroup)?$",)),
    Phase("hypervisor.init", "a hypervisor sets up itself and its VM, to the guest's first "
          "instruction", ()),
    Phase("firmware", "from a guest's first instruction to its kernel's first stamp: the BIOS and "
          "what the kernel does before it has a clock", (), guest="firmware"),
    Phase("kernel.load", "a guest's boot loader reads the kernel from disk in real mode", (),
          guest=r"disk read.*"),
    Phase("kernel.uncompress", "a guest's kernel decompresses itself", (),
          guest="uncompress.*|firmware and uncompress"),
    Phase("kernel.init", "a guest's kernel sets up processors, memory and its own parts", (),
          guest=r"TLS init.*|\.init functions|SMP launched|VFS init.*|pvpanic done|kernel( .*)?|"
                r"entry|memory"),
    Phase("net.init", "a guest's network stack is set up, and its address", (),
          guest=r"Network init.*|Total time|network|"
                r"initcall (inet|ipv6|ip6?_auto|net_dev|sock)\w*_init"),
    Phase("pci", "a guest looks for its devices", (),
          guest=r"pci( enumerated)?|virtio|initcall (pci|acpi_pci|pcibios)\w*"),
    Phase("driver.console", "a guest's console driver, and what it writes on it", (),
          guest=r"console|serial|vga|initcall (serial8250|vga|vgacon|vt|tty|con|fb|pty|drm|"
                r"bochs|efifb|simplefb|hvc)\w*"),
    Phase("driver.block", "a guest's block driver", (),
          guest=r"block|(initcall|module) virtio_blk\w*"),
    Phase("driver.net", "a guest's network interface driver", (),
          guest=r"net|(initcall|module) (virtio_net|net_failover|failover)\w*"),
    Phase("driver.rng", "a guest's random number driver", (),
          guest=r"rng|(initcall|module) (virtio_rng|hwrng)\w*"),
    Phase("driver.other", "a guest's other drivers", (),
          guest=rf"drivers (probe|loaded)|module (?!{_FILE_SYSTEM}$).*|initcall (virtio|ata|ahci|"
                r"scsi|nvme|usb|xhci|ehci|uhci|i8042|serio|input|psmouse|atkbd|rtc|cmos|hid|"
                r"acpi_init|xenbus|hpet|agp|loop|thermal|powernow|intel|amd)\w*"),
    Phase("ns.net", "a network namespace is made", (r"(unshare|clone3?) \S*\bnet\b",)),
    Phase("ns.mount", "a mount namespace is made: every mount is copied",
          (r"(unshare|clone3?) \S*\bmount\b",)),
    Phase("ns.other", "pid, ipc, uts, user, cgroup and time namespaces are made or entered",
          (r"(unshare|clone3?) \S*\b(pid|ipc|uts|user|cgroup|time)\b",
           r"setns (pid|ipc|uts|user|cgroup|time|mount|mnt)",
           r"write proc:(uid_map|gid_map|setgroups)")),
    Phase("netns.switch", "a thread enters another network namespace",
          (r"setns\b.*\bnet\b", r"(openat|open) (/var)?/run/netns/", r"\w+ nsfs:net",
           r"(openat|open|statfs) /proc/\S+/ns/net")),
    Phase("netns.name", "a network namespace gets its name: a file and a mount below /run/netns",
          (r"(mount|umount2|mkdir|mkdirat|unlink|unlinkat) (/var)?/run/netns",)),
    Phase("cgroup", "control groups are made, limited, entered and read",
          (rf"(?!statfs|{_LIMIT_READ})\w+ /sys/fs/cgroup", rf"(?!{_LIMIT_READ})\w+ cgroup2?:",
           r"openat2 \S*(cgroup\.|cpu|memory|pids|devices|blkio|io\.|freezer|hugetlb|systemd)",
           r"bpf (PROG_LOAD cgroup|PROG_ATTACH|PROG_QUERY)$")),
    Phase("security", "privileges are dropped: capabilities, no_new_privs, seccomp, keyrings, "
          "labels, masked paths",
          (r"seccomp( STRICT| FILTER)?$",
           r"(capset|keyctl|setgroups|setuid|setgid|setresuid|setresgid|landlock\w*)\b",
           r"prctl (NO_NEW_PRIVS|SECCOMP|CAPBSET_DROP|CAP_AMBIENT|KEEPCAPS|DUMPABLE)",
           r"\w+ \S*/attr/(current|exec|apparmor|keycreate)", r"\w+ proc:(current|exec|keycreate)$",
           r"(?!statfs)\w+ (/sys/kernel/security|/sys/fs/selinux|/sys/module/apparmor|securityfs:|"
           r"selinuxfs:)",
           r"(mount|move_mount|openat2?|newfstatat) (\S*/)?(proc/(acpi|asound|kcore|keys|"
           r"latency_stats|timer_list|timer_stats|sched_debug|scsi|bus|fs|irq|sys|sysrq-trigger)|"
           r"sys/firmware)( |$)")),
    Phase("mount", "the root file system is mounted, filled and entered",
          (r"(mount|umount2|pivot_root|move_mount|open_tree|fsopen|fsconfig|fsmount|mount_setattr|"
           r"fspick|chroot)\b",
           r"(mknodat|mknod|symlinkat|symlink) (?!\S*fifo)",
           r"\w+ /dev/loop", r"ioctl devtmpfs:loop",
           r"\w+ \S*/rootfs(/|$)", r"\w+ \S*/root/(dev|proc|sys|etc)(/|$)",
           r"(mkdirat|mkdir|newfstatat|openat|fchmodat|fchownat|chown) (dev|proc|sys)(/|$)",
           r"\w+ devpts:", r"readlinkat /proc/self/fd/", r"(sethostname|setdomainname)"),
          guest=rf"mount( .*)?|\S+ mounted|module {_FILE_SYSTEM}"),
    Phase("veth", "a veth pair is made and given its MTU and address",
          (r"\w+ socket:netlink\.route RTM_(NEW|SET)LINK .*kind=(veth|vxlan|macvlan|dummy)",
           r"\w+ socket:netlink\.route RTM_(NEW|SET)LINK .*\b(mac|mtu)\b",
           r"\w+ socket:netlink\.route RTM_DELLINK")),
    Phase("bridge", "a bridge is made, and a link becomes its port",
          (r"\w+ socket:netlink\.route RTM_(NEW|SET|GET)LINK "
           r".*(kind=bridge|master|bridge|protinfo)",
           r"\w+ \S*/sys/class/net/\S+/(bridge|brport)")),
    Phase("veth.move", "a link moves to another network namespace",
          (r"\w+ socket:netlink\.route RTM_(NEW|SET)LINK (?!.*create).*\bnetns\b",)),
    Phase("rename", "a link gets another name",
          (r"\w+ socket:netlink\.route RTM_(NEW|SET)LINK (?!.*create).*\bname\b(?!.*\bup\b)",)),
    Phase("link.up", "a link is brought up",
          (r"\w+ socket:netlink\.route RTM_(NEW|SET)LINK .*\bup\b",)),
    Phase("ipam", "an address is chosen and set",
          (r"\w+ socket:netlink\.route RTM_(NEW|DEL)ADDR", r"\w+ \S*/var/lib/cni/networks",
           r"\w+ \S*/host-local\b"),
          helpers=r"host-local|static|dhcp|whereabouts|\S+-ipam"),
    Phase("route", "routes, rules, neighbours and forwarding",
          (r"\w+ socket:netlink\.route RTM_(NEW|DEL)(ROUTE|RULE|NEIGH)",
           r"\w+ \S*(/proc/sys/net/ipv[46]/\S*forwarding|ip_forward)",
           r"\w+ proc:(ip_forward|forwarding|proxy_arp|rp_filter)")),
    Phase("garp", "a gratuitous ARP announces the address",
          (r"\w+ socket:packet", r"\w+ \S*arp_notify", r"\w+ proc:(arp_notify|ndisc_notify)")),
    Phase("link.sysctl", "settings of a link or of its namespace below /proc/sys/net",
          (r"\w+ /proc/sys/net/", r"\w+ proc:(disable_ipv6|accept_dad|accept_ra|dad_transmits)")),
    Phase("firewall", "packet filter and address translation",
          (r"\w+ socket:netlink\.netfilter", r"\w+ \S*xtables\.lock", r"\w+ \S*/(iptables|nft)\b"),
          helpers=r"(ip6?tables|xtables|ebtables|arptables|ipset|nft)(-\w+)*"),
    Phase("ebpf", "eBPF programs are compiled, loaded and attached",
          (r"bpf\b", r"\w+ bpf:", r"\w+ socket:netlink\.route RTM_(NEW|DEL)(QDISC|TFILTER)"),
          helpers=r"(clang|llc|bpftool|endpointload)(-\d+)?|tc"),
    Phase("link.query", "links and addresses are looked up, and kernel features are probed",
          (r"\w+ socket:netlink\.route RTM_GET", r"send\w+ socket:netlink\.route RTM_NEWLINK$",
           r"\w+ /sys/class/net", r"ioctl socket:inet")),
    Phase("datastore", "requests to a daemon or a database",
          (r"\w+ socket:unix /", r"connect socket:(inet|inet6|unix) \S",
           r"\w+ socket:(inet|inet6)\b"),
          component=r"(create|bind|status) .*etcd.*"),
    Phase("config", "the bundle and the runtime's own state are read, checked and written",
          (r"\w+ \S*(config|state|runtime)\.json", r"\w+ \S*/(state|bundles?|oci)/(?!\S*fifo)",
           r"\w+ (/proc/cpuinfo|proc:cpuinfo)",
           r"\w+ \S*/(newuidmap|newgidmap)", r"\w+ /proc/\d+/stat\b", r"\w+ proc:stat$",
           r"\w+ /etc/(passwd|group|nsswitch\.conf|iproute2/\S*|localtime|resolv\.conf)",
           r"\w+ /(usr/share|etc)/(containers|iproute2)/")),
    Phase("handshake", "the runtime's processes exchange messages and wait for each other",
          (rf"(read|write|readv|writev|sendto|sendmsg|recvfrom|recvmsg|copy_file_range|splice) "
           rf"{_STREAM}", r"socketpair", r"(wait4|waitid|kill|pidfd_\w+)\b",
           r"(?!fcntl)\w+ \S*fifo\b", r"prctl (CHILD_SUBREAPER|PDEATHSIG)")),
    Phase("request", "a pod's request is on its way to the API server, or the answer back: the "
          "client's own time", (), component="request"),
    Phase("schedule", "the scheduler sees a pod and chooses its node", (), component="schedule"),
    Phase("kubelet.watch", "the kubelet sees that a pod is bound to its node", (),
          component="watch"),
    Phase("kubelet.sync", "the kubelet prepares a pod's next step", (),
          component=r"sync .*|.* runtime\.v1\.RuntimeService/\w*Status"),
    Phase("kubelet.relist", "a container runs, and the kubelet has not looked yet", (),
          component="relist"),
    Phase("image.fetch", "a layer of an image is fetched from its registry", (),
          component="image fetchLayer .*"),
    Phase("image.unpack", "a layer of an image is unpacked into a snapshot", (),
          helpers=r"tar|bsdtar|gzip|gunzip|pigz|unpigz|igzip|zstd|unsquashfs|umoci|skopeo",
          component="image unpackLayer .*"),
    Phase("image", "an image is looked up, pulled and unpacked", (), component="image .*"),
    Phase("sandbox.netns", "containerd makes, mounts and records a pod's network namespace", (),
          component="sandbox netns"),
    Phase("cni", "CNI plugins set a pod's network up", (), component=r"sandbox cni\..*"),
    Phase("shim", "containerd starts a pod's shim and connects to it", (),
          component=r"(sandbox|start) (container\.NewTask|.*Task/Connect|.*Task/State)"),
    Phase("sandbox.runtime", "the OCI runtime creates and starts a pod's pause container", (),
          component=r"sandbox .*[Tt]ask[./](Create|Start)"),
    Phase("sandbox.other", "the rest of RunPodSandbox: lease, snapshot, spec",
          (), component="sandbox .*"),
    Phase("container.create", "CreateContainer: snapshot and spec", (), component="container .*"),
    Phase("container.runtime", "the OCI runtime creates and starts a pod's container", (),
          component=r"start .*[Tt]ask[./](Create|Start)"),
    Phase("container.other", "the rest of StartContainer", (), component="start .*"),
    Phase("status", "the kubelet tells the API server that a pod is Ready", (),
          component="status HTTP .*"),
    Phase("api", "the API server handles a request: admission, validation, encoding", (),
          component=r"(create|bind|status) (?!.*etcd).*"),
    Phase("packet", "the first packet: to the gateway and back", (), guest="packet",
          component="packet"),
    Phase("guest.other", "a guest runs, but its log does not explain the time", ()),
    Phase("exec", "the payload is executed, to the end point", (), guest="exec", component="exec"),
    Phase(SLEEP, "a program sleeps between its calls, for more than 1 ms", ()),
    Phase(COMPUTE, "a program computes between its calls, for more than 10 ms of CPU time", ()),
    Phase("process.exit", "a helper process ends, to its parent's wake-up", (r"exit_group",)),
    Phase(UNATTRIBUTED, "time that no rule explains", ()),
)  # fmt: skip

ORDER = tuple(phase.name for phase in PHASES)
_ANSWER = re.compile(r"recv\w+ socket:netlink")
_RULED = tuple((rule, phase.name) for phase in PHASES for rule in phase.rules)
# One pattern of all rules, each in a group of its own: the first that matches is the one.
_RULES = re.compile("|".join(f"(?P<rule{place}>{rule})" for place, (rule, _) in enumerate(_RULED)))
_GUEST = tuple((re.compile(phase.guest), phase.name) for phase in PHASES if phase.guest)
_COMPONENTS = tuple(
    (re.compile(phase.component), phase.name) for phase in PHASES if phase.component
)
_HELPERS = tuple((re.compile(phase.helpers), phase.name) for phase in PHASES if phase.helpers)


@lru_cache(maxsize=65536)
def classify(call: str, detail: str) -> str | None:
    """The phase of a system call, by its name and its span's detail; None if neutral."""
    words = f"{call} {detail}".rstrip()
    if _ANSWER.match(words):
        return ANSWER
    if call == "rt_sigprocmask":
        return MASK
    rule = _RULES.match(words)
    return _RULED[int(str(rule.lastgroup).removeprefix("rule"))][1] if rule else None


@lru_cache(maxsize=4096)
def of_helper(program: str) -> str | None:
    """The phase of a helper program, by its path; None if it is not a helper."""
    name = program.rpartition("/")[2]
    return next((phase for names, phase in _HELPERS if names.fullmatch(name)), None)


def of_guest(name: str) -> str:
    """The phase of a span of a guest's log, by its name.

    Initcalls of Linux without a rule are the kernel's set-up.
    """
    otherwise = "kernel.init" if name.startswith("initcall ") else "guest.other"
    return next((phase for rule, phase in _GUEST if rule.fullmatch(name)), otherwise)


@lru_cache(maxsize=4096)
def of_component(name: str) -> str:
    """The phase of a component's span, by its name (model.ComponentSpan)."""
    return next((phase for rule, phase in _COMPONENTS if rule.fullmatch(name)), UNATTRIBUTED)


def markdown(phases: Iterable[Phase] = PHASES) -> str:
    """The table of docs/phases.md."""
    rows = "".join(
        f"| `{phase.name}` | {phase.meaning} | "
        + "<br>".join(
            f"`{rule.replace('|', chr(92) + '|')}`"
            for rule in (
                *phase.rules,
                *([f"execve {phase.helpers}"] if phase.helpers else []),
                *([f"guest: {phase.guest}"] if phase.guest else []),
                *([f"component: {phase.component}"] if phase.component else []),
            )
        )
        + " |\n"
        for phase in phases
    )
    return f"| phase | what it is | rules, matched in this order |\n|---|---|---|\n{rows}"
