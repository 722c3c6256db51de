"""What a call was about, in words."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.trace.details import detail, namespaces

SOCKET, PIPE, NSFS, CGROUP, PROC = 0x534F434B, 0x50495045, 0x6E736673, 0x27E0EB, 0x9FA0
ANON, KVM_RUN = 0x9041934, 0xAE80
NEWNET, NEWNS, NEWPID, THREAD = 0x40000000, 0x00020000, 0x20000000, 0x00010000


def words(
    name: str, *args: int, text: bytes = b"", magic: int = 0, family: int = 0, protocol: int = 0
) -> str:
    return detail(name, magic, family, protocol, (*args, *[0] * (4 - len(args))), text)


INET = struct.pack("=H", socket.AF_INET) + (2379).to_bytes(2, "big") + bytes([127, 0, 0, 1])
INET6 = struct.pack("=H", socket.AF_INET6) + (80).to_bytes(2, "big") + bytes(4) + bytes(15) + b"\1"
UNIX = struct.pack("=H", socket.AF_UNIX)


@pytest.mark.parametrize(
    ("rendered", "expected"),
    [
        (words("unshare", NEWNET), "net"),
        (words("unshare", NEWNET | NEWNS | NEWPID), "net,mount,pid"),
        (words("clone", 0x01200011), ""),
        (words("clone3", NEWNET | 0x200000000), "net,into-cgroup"),
        (words("clone", 0x003D0F00 | THREAD), "thread"),
        (words("setns", 5, NEWNET, magic=NSFS, text=b"net\0"), "net"),
        (words("setns", 5, 0, magic=NSFS, text=b"mnt\0"), "mnt"),
        (words("prctl", 38), "NO_NEW_PRIVS"),
        (words("prctl", 999), "999"),
        (words("seccomp", 1), "FILTER"),
        (words("bpf", 5, text=(15).to_bytes(4, "little")), "PROG_LOAD cgroup"),
        (words("bpf", 99), "command=99"),
        (words("socket", socket.AF_PACKET, 3), "socket:packet"),
        (words("socket", socket.AF_NETLINK, 3, 12), "socket:netlink.netfilter"),
        (words("connect", magic=SOCKET, family=2, text=INET), "socket:inet 127.0.0.1:2379"),
        (words("connect", magic=SOCKET, family=10, text=INET6), "socket:inet6 [::1]:80"),
        (words("connect", magic=SOCKET, family=1, text=UNIX + b"/run/x.sock\0"),
         "socket:unix /run/x.sock"),
        (words("connect", magic=SOCKET, family=1, text=UNIX + b"\0abstract"),
         "socket:unix abstract"),
        (words("connect", magic=SOCKET, family=2, text=INET[:3]), "socket:inet"),
        (words("mount", text=b"/run/x\0tmpfs\0"), "/run/x tmpfs"),
        (words("mount", text=b"/run/x\0"), "/run/x"),
        (words("openat", text=b"/etc/passwd\0"), "/etc/passwd"),
        (words("openat", text=b"/a\xff\0"), "/a\N{REPLACEMENT CHARACTER}"),
        (words("read", 3, magic=PIPE), "pipe:"),
        (words("ioctl", 9, KVM_RUN, magic=ANON, text=b"kvm-vcpu:0\0"), "anon:kvm-vcpu:0 RUN"),
        (words("ioctl", 9, KVM_RUN, magic=ANON, text=b"other\0"), "anon:other"),
        (words("ioctl", 9, 0xAE81, magic=ANON, text=b"kvm-vcpu:0\0"), "anon:kvm-vcpu:0"),
        (words("write", 3, magic=CGROUP, text=b"cgroup.procs\0"), "cgroup:cgroup.procs"),
        (words("write", 3, magic=0x1234, text=b"x\0"), "0x1234:x"),
        (words("read", 3, magic=SOCKET, family=1), "socket:unix"),
        (words("read", 3, magic=SOCKET, family=250), "socket:250"),
        (words("fstat", 3, magic=PROC, text=b"stat\0"), "proc:stat"),
        (words("sendto", 3, magic=SOCKET, family=16, text=b""), "socket:netlink.route"),
        (words("sendto", 3, magic=SOCKET, family=1, text=b"secret"), "socket:unix"),
    ],
)  # fmt: skip
def test_a_call_in_words(rendered: str, expected: str) -> None:
    assert rendered == expected


@given(st.sets(st.sampled_from(["net", "mount", "pid", "ipc", "uts", "user", "cgroup", "time"])))
def test_each_namespace_flag_is_named(names: set[str]) -> None:
    flags = {"net": NEWNET, "mount": NEWNS, "pid": NEWPID, "ipc": 0x08000000, "uts": 0x04000000,
             "user": 0x10000000, "cgroup": 0x02000000, "time": 0x80}  # fmt: skip
    message = namespaces(sum(flags[name] for name in names))
    assert set(filter(None, message.split(","))) == names


CALLS = st.sampled_from(["unshare", "clone3", "setns", "prctl", "seccomp", "bpf", "socket",
                         "connect", "mount", "sendto", "sendmsg", "read", "openat"])  # fmt: skip
U64 = st.integers(0, 2**64 - 1)


@given(CALLS, st.integers(0, 2**32 - 1) | st.sampled_from([SOCKET, PIPE, NSFS]),
       st.integers(0, 2**16 - 1) | st.sampled_from([1, 2, 10, 16]), st.integers(0, 2**16 - 1),
       st.tuples(U64, U64, U64, U64), st.binary(max_size=64))  # fmt: skip
def test_whatever_the_kernel_says_has_words(
    name: str, magic: int, family: int, protocol: int, args: tuple[int, ...], text: bytes
) -> None:
    message = detail(name, magic, family, protocol, args, text)
    own = text.split(b"\0", 1)[0].decode(errors="replace")  # may end in a blank of its own
    assert message == message.rstrip() or message.endswith(own) or name == "mount"
    message.encode()
