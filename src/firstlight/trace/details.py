"""Describes the object of a system call: the ``detail`` of its span.

A descriptor reads ``FILESYSTEM:NAME`` or ``socket:FAMILY``; flags and options have their names.
"""

import socket
import struct
import sys
from collections.abc import Sequence

from firstlight.trace import netlink

_SOCKFS = 0x534F434B
# linux/magic.h
_FILE_SYSTEMS = {
    0x9FA0: "proc", 0x62656572: "sysfs", 0x27E0EB: "cgroup", 0x63677270: "cgroup2",
    0x6E736673: "nsfs", 0x50495045: "pipe", _SOCKFS: "socket", 0x9041934: "anon",
    0x01021994: "tmpfs", 0xEF53: "ext4", 0x794C7630: "overlay", 0x1CD1: "devpts",
    0x19800202: "mqueue", 0xCAFE4A11: "bpf", 0x73636673: "securityfs", 0xF97CFF8C: "selinuxfs",
    0x74726163: "tracefs", 0x73717368: "squashfs", 0xE0F5E1E2: "erofs", 0x58465342: "xfs",
    0x9123683E: "btrfs", 0x50494446: "pidfs",
}  # fmt: skip
# linux/sched.h
_CLONE_FLAGS = {
    0x40000000: "net", 0x00020000: "mount", 0x20000000: "pid", 0x08000000: "ipc",
    0x04000000: "uts", 0x10000000: "user", 0x02000000: "cgroup", 0x00000080: "time",
}  # fmt: skip
_CLONE_THREAD, _CLONE_INTO_CGROUP = 0x00010000, 0x200000000
# linux/prctl.h
_PRCTL = {
    1: "PDEATHSIG", 4: "DUMPABLE", 8: "KEEPCAPS", 15: "NAME", 22: "SECCOMP", 23: "CAPBSET_READ",
    24: "CAPBSET_DROP", 35: "MM", 36: "CHILD_SUBREAPER", 38: "NO_NEW_PRIVS", 47: "CAP_AMBIENT",
    0x53564D41: "VMA",
}  # fmt: skip
_SECCOMP = {0: "STRICT", 1: "FILTER", 2: "ACTION_AVAIL", 3: "NOTIF_SIZES"}
_BPF = {0: "MAP_CREATE", 5: "PROG_LOAD", 6: "OBJ_PIN", 7: "OBJ_GET", 8: "PROG_ATTACH",
        9: "PROG_DETACH", 16: "PROG_QUERY", 18: "BTF_LOAD", 28: "LINK_CREATE"}  # fmt: skip
# linux/kvm.h: _IO(KVMIO, …)
_KVM = {0xAE01: "CREATE_VM", 0xAE41: "CREATE_VCPU", 0xAE80: "RUN"}
_CGROUP_DEVICE = 15  # linux/bpf.h: BPF_PROG_TYPE_CGROUP_DEVICE
_AF_NETLINK = 16


def detail(  # noqa: C901 - one flat table
    name: str, magic: int, family: int, protocol: int, args: Sequence[int], text: bytes
) -> str:
    """The description of one call, from its fields in ``struct event``."""
    match name:
        case "unshare":
            return namespaces(args[0])
        case "clone" | "clone3":
            return "thread" if args[0] & _CLONE_THREAD else namespaces(args[0])
        case "setns":
            return namespaces(args[1]) or _words(text)
        case "prctl":
            return _PRCTL.get(args[0] & 0xFFFFFFFF, str(args[0]))
        case "seccomp":
            return _SECCOMP.get(args[0], f"operation={args[0]}")
        case "bpf":
            return _bpf(args[0], text)
        case "socket":
            return _family(args[0] & 0xFF, args[2] & 0xFF)
        case "connect" | "bind":
            return f"{_family(family, protocol)} {_address(text)}".rstrip()
        case "mount":
            return " ".join(part.decode(errors="replace") for part in text.split(b"\0") if part)
        case "sendto" | "sendmsg" if family == _AF_NETLINK:
            return f"{_family(family, protocol)} {netlink.describe(protocol, text)}".rstrip()
    if magic == _SOCKFS:
        return _family(family, protocol)
    if magic:
        request = _KVM.get(args[1], "") if name == "ioctl" and text.startswith(b"kvm") else ""
        return f"{_FILE_SYSTEMS.get(magic, hex(magic))}:{_words(text)} {request}".rstrip()
    return _words(text)


def _bpf(command: int, text: bytes) -> str:
    name = _BPF.get(command, f"command={command}")
    kind = int.from_bytes(text[:4], sys.byteorder)
    return f"{name} cgroup" if name == "PROG_LOAD" and kind == _CGROUP_DEVICE else name


def namespaces(flags: int) -> str:
    """The namespaces that clone flags ask for, such as ``net,mount``; also ``into-cgroup``."""
    names = [name for bit, name in _CLONE_FLAGS.items() if flags & bit]
    return ",".join(names + ["into-cgroup"] * bool(flags & _CLONE_INTO_CGROUP))


def _words(text: bytes) -> str:
    return text.split(b"\0", 1)[0].decode(errors="replace")


def _family(family: int, protocol: int) -> str:
    if family == _AF_NETLINK:
        return f"socket:netlink.{netlink.PROTOCOLS.get(protocol, protocol)}"
    try:
        return f"socket:{socket.AddressFamily(family).name.removeprefix('AF_').lower()}"
    except ValueError:
        return f"socket:{family}"


def _address(raw: bytes) -> str:
    if len(raw) < struct.calcsize("=H"):
        return ""
    family = struct.unpack_from("=H", raw)[0]
    if family == socket.AF_INET and len(raw) >= 8:
        return f"{socket.inet_ntoa(raw[4:8])}:{int.from_bytes(raw[2:4], 'big')}"
    if family == socket.AF_INET6 and len(raw) >= 24:
        return f"[{socket.inet_ntop(family, raw[8:24])}]:{int.from_bytes(raw[2:4], 'big')}"
    if family == socket.AF_UNIX:
        return raw[2:].lstrip(b"\0").split(b"\0", 1)[0].decode(errors="replace")
    return ""
