"""The taxonomy, by the words of calls that real starts made."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.analysis import phases
from firstlight.analysis.phases import (
    ANSWER,
    COMPUTE,
    MASK,
    ORDER,
    SLEEP,
    UNATTRIBUTED,
    classify,
    of_component,
    of_guest,
    of_helper,
)

DOCUMENT = Path(__file__).parents[3] / "docs" / "phases.md"
ROUTE = "socket:netlink.route"

# Each row of the event table in the project's facts, and what runc, crun, ip and plugins do.
CALLS = {
    "process.start": ["execve", "execveat", "openat /etc/ld.so.cache",
                      "openat /lib/x86_64-linux-gnu/libc.so.6", "read ext4:libseccomp.so.2.5.4"],
    "signals": ["rt_sigaction"],
    "fork": ["clone", "clone3", "vfork", "clone3 into-cgroup"],
    "ns.net": ["unshare net", "clone net", "clone3 net,mount", "unshare mount,uts,ipc,pid,net"],
    "ns.mount": ["unshare mount", "clone3 mount,pid"],
    "ns.other": ["unshare pid", "clone3 uts,ipc", "unshare cgroup", "setns mnt", "setns user",
                 "write proc:uid_map"],
    "netns.switch": ["setns net", "openat /run/netns/p17", "openat /var/run/netns/p17",
                     "openat /proc/7/ns/net", "openat /proc/self/task/7/ns/net", "fstat nsfs:net"],
    "netns.name": ["mount /run/netns/p17", "umount2 /var/run/netns/p17", "mkdir /run/netns",
                   "mkdirat /var/run/netns", "unlinkat /run/netns/x"],
    "cgroup": ["mkdirat /sys/fs/cgroup/pids/x", "openat /sys/fs/cgroup/memory/x/cgroup.procs",
               "write cgroup:cgroup.procs", "openat2 cpu.cfs_quota_us", "getdents64 cgroup2:x",
               "write cgroup2:cgroup.procs", "bpf PROG_ATTACH", "bpf PROG_QUERY"],
    "security": ["capset", "prctl NO_NEW_PRIVS", "prctl CAPBSET_DROP", "prctl CAP_AMBIENT",
                 "seccomp FILTER", "keyctl", "setresuid", "setgroups", "write proc:exec",
                 "openat /proc/self/attr/exec", "openat /proc/self/attr/apparmor/exec",
                 "openat /sys/fs/selinux/status", "mount proc/acpi tmpfs",
                 "mount /run/x/root/proc/sys", "openat2 proc/keys", "mount sys/firmware"],
    "mount": ["mount /run/x tmpfs", "mount proc proc", "mount /x/root/proc proc", "umount2 .",
              "pivot_root .", "move_mount", "open_tree /x",
              "chroot .", "fsopen erofs", "mknodat dev/null", "symlinkat /proc/self/fd",
              "openat /dev/loop-control", "sethostname", "mkdirat proc"],
    "veth": [f"sendmsg {ROUTE} RTM_NEWLINK create name kind=veth",
             f"sendto {ROUTE} RTM_NEWLINK create kind=veth peer-netns",
             f"sendmsg {ROUTE} RTM_NEWLINK mtu", f"sendto {ROUTE} RTM_SETLINK mac",
             f"sendmsg {ROUTE} RTM_DELLINK"],
    "veth.move": [f"sendmsg {ROUTE} RTM_NEWLINK netns", f"sendto {ROUTE} RTM_SETLINK netns",
                  f"sendmsg {ROUTE} RTM_NEWLINK name netns"],
    "rename": [f"sendto {ROUTE} RTM_SETLINK name", f"sendmsg {ROUTE} RTM_NEWLINK name"],
    "bridge": [f"sendto {ROUTE} RTM_NEWLINK create name kind=bridge",
               f"sendto {ROUTE} RTM_SETLINK master", f"sendto {ROUTE} RTM_SETLINK bridge protinfo",
               "openat /sys/class/net/cni0/bridge/vlan_filtering"],
    "link.up": [f"sendmsg {ROUTE} RTM_NEWLINK up", f"sendto {ROUTE} RTM_SETLINK up"],
    "ipam": [f"sendto {ROUTE} RTM_NEWADDR", "openat /var/lib/cni/networks/x/lock",
             "unlinkat /var/lib/cni/networks/x/10.0.0.2"],
    "route": [f"sendto {ROUTE} RTM_NEWROUTE", f"sendmsg {ROUTE} RTM_NEWRULE",
              f"sendmsg {ROUTE} RTM_NEWNEIGH", "openat /proc/sys/net/ipv4/ip_forward",
              "write proc:ip_forward"],
    "garp": ["socket socket:packet", "sendto socket:packet", "write proc:arp_notify",
             "openat /proc/sys/net/ipv4/conf/eth0/arp_notify"],
    "link.sysctl": ["openat /proc/sys/net/ipv6/conf/eth0/disable_ipv6", "write proc:accept_dad"],
    "firewall": ["socket socket:netlink.netfilter", "openat /run/xtables.lock",
                 "sendmsg socket:netlink.netfilter NFNL subsystem=10 message=16"],
    "ebpf": ["bpf PROG_LOAD", "bpf MAP_CREATE", "openat bpf:x", f"sendto {ROUTE} RTM_NEWQDISC",
             f"sendto {ROUTE} RTM_NEWTFILTER"],
    "link.query": [f"sendto {ROUTE} RTM_GETLINK", f"sendto {ROUTE} RTM_GETADDR",
                   "ioctl socket:inet"],
    "datastore": ["connect socket:inet 127.0.0.1:2379", "write socket:inet",
                  "connect socket:unix /run/cilium/cilium.sock", "read socket:inet6"],
    "config": ["openat config.json", "openat /run/runc/x/state.json", "openat /etc/passwd",
               "read tmpfs:config.json"],
    "handshake": ["read pipe:", "write pipe:", "recvmsg socket:unix", "wait4", "waitid",
                  "openat /run/runc/x/exec.fifo", "prctl CHILD_SUBREAPER"],
    "process.exit": ["exit_group"],
}  # fmt: skip

# What OSv, Linux and the probe call the parts of their own boot.
GUESTS = {
    "firmware": ["firmware"],
    "kernel.load": ["disk read (real mode)"],
    "kernel.uncompress": ["uncompress lzloader.elf", "uncompress", "firmware and uncompress"],
    "kernel.init": ["TLS initialization", ".init functions", "SMP launched", "VFS initialized",
                    "pvpanic done", "kernel", "entry", "initcall crypto_algapi_init"],
    "net.init": ["Network initialized", "Total time", "initcall inet_init", "network"],
    "pci": ["pci enumerated", "pci", "initcall pci_subsys_init", "initcall acpi_pci_init"],
    "driver.console": ["console", "initcall serial8250_init", "vga"],
    "driver.block": ["block", "initcall virtio_blk_init", "module virtio_blk"],
    "driver.net": ["net", "initcall virtio_net_driver_init", "module virtio_net"],
    "driver.rng": ["rng", "module virtio_rng"],
    "driver.other": ["drivers probe", "drivers loaded", "initcall acpi_init", "module virtio_ring"],
    "mount": ["mount", "module btrfs", "module raid6_pq", "ROFS mounted", "ZFS mounted",
              "Virtio-fs mounted", "mount ext4"],
    "packet": ["packet"],
    "exec": ["exec"],
    "guest.other": ["what no rule knows"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "phase"), [(name, phase) for phase, names in GUESTS.items() for name in names]
)
def test_a_span_of_a_guest_is_of_its_phase(name: str, phase: str) -> None:
    assert of_guest(name) == phase


@pytest.mark.parametrize(
    ("words", "phase"), [(words, phase) for phase, names in CALLS.items() for words in names]
)
def test_a_call_is_of_its_phase(words: str, phase: str) -> None:
    call, _, detail = words.partition(" ")
    assert classify(call, detail) == phase


COMPONENTS = {
    "request": ["request"],
    "schedule": ["schedule"],
    "kubelet.watch": ["watch"],
    "kubelet.sync": ["sync syncPod", "sandbox runtime.v1.RuntimeService/PodSandboxStatus"],
    "kubelet.relist": ["relist"],
    "image.fetch": ["image fetchLayer 0123456789ab pkg.unpack.unpacker.fetchLayer"],
    "image.unpack": ["image unpackLayer 0123456789ab pkg.unpack.unpacker.unpackLayer"],
    "image": ["image runtime.v1.ImageService/ImageStatus", "image PullImage"],
    "sandbox.netns": ["sandbox netns"],
    "cni": ["sandbox cni.setup_pod_network", "sandbox cni.asynchAttach eth0"],
    "shim": ["sandbox container.NewTask", "start containerd.task.v3.Task/Connect"],
    "sandbox.runtime": ["sandbox containerd.task.v3.Task/Create", "sandbox client.task.Start"],
    "sandbox.other": ["sandbox cri.sandbox.run", "sandbox client.NewContainer"],
    "container.create": ["container runtime.v1.RuntimeService/CreateContainer"],
    "container.runtime": ["start containerd.task.v3.Task/Create", "start client.task.Start"],
    "container.other": ["start runtime.v1.RuntimeService/StartContainer"],
    "status": ["status HTTP PATCH"],
    "packet": ["packet"],
    "datastore": ["create Create etcd3", "bind etcdserverpb.KV/Txn"],
    "api": ["create POST /api/v1/namespaces/{:namespace}/pods", "status Patch"],
}


@pytest.mark.parametrize(
    ("name", "phase"), [(name, phase) for phase, names in COMPONENTS.items() for name in names]
)
def test_what_a_component_tells_is_of_its_phase(name: str, phase: str) -> None:
    assert of_component(name) == phase


def test_every_phase_has_an_example_above() -> None:
    by_breakdown = {"exec", "hypervisor.init", SLEEP, COMPUTE, UNATTRIBUTED}
    examples = CALLS.keys() | GUESTS.keys() | COMPONENTS.keys()
    assert set(ORDER) - examples == by_breakdown - GUESTS.keys()


@pytest.mark.parametrize(
    "words",
    ["openat /home/user/file", "fstat ext4:file", "close", "getcwd", "umask", "clone thread",
     "newfstatat", "statfs /sys/fs/cgroup", "prctl NAME", "capget", "fcntl pipe:", "pipe2"],
)  # fmt: skip
def test_what_says_nothing_of_its_purpose_is_neutral(words: str) -> None:
    call, _, detail = words.partition(" ")
    assert classify(call, detail) is None


def test_an_answer_is_its_requests_and_a_mask_its_handlers() -> None:
    assert classify("recvmsg", f"{ROUTE}") == ANSWER
    assert classify("recvfrom", f"{ROUTE}") == ANSWER
    assert classify("rt_sigprocmask", "") == MASK


@pytest.mark.parametrize(
    ("program", "phase"),
    [
        ("/opt/cni/bin/host-local", "ipam"), ("/opt/cni/bin/calico-ipam", "ipam"),
        ("/usr/sbin/iptables-legacy-restore", "firewall"), ("/usr/sbin/nft", "firewall"),
        ("/usr/sbin/ip6tables", "firewall"), ("/usr/bin/clang-14", "ebpf"), ("/sbin/tc", "ebpf"),
        ("/opt/cni/bin/bridge", None), ("/usr/sbin/runc", None), ("/bin/nftables-like", None),
    ],
)  # fmt: skip
def test_a_helper_serves_one_phase(program: str, phase: str | None) -> None:
    assert of_helper(program) == phase


@given(st.text(max_size=20), st.text(max_size=60))
def test_any_words_have_a_phase_or_none(call: str, detail: str) -> None:
    assert classify(call, detail) in {*ORDER, ANSWER, MASK, None}


def test_names_are_distinct_and_the_last_is_the_rest() -> None:
    assert len(set(ORDER)) == len(ORDER)
    assert ORDER[-1] == UNATTRIBUTED
    assert all(phase.meaning for phase in phases.PHASES)


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text().endswith(f"\n\n{phases.markdown()}"), (
        "docs/phases.md is old: PYTHONPATH=src .venv/bin/python mk/phases.py"
    )
