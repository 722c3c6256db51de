"""The compiled profile, run by an interpreter of classic BPF."""

import errno
from pathlib import Path
from struct import pack, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.agile import seccomp
from firstlight.agile.node.instances import ZYGOTE_CALLS

ALLOWED, EPERM, ENOSYS = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
X86_64 = 0xC000003E
NUMBERS = seccomp.system_calls()
PROGRAM = seccomp.program()


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), arch: int = X86_64) -> int:
    """The action for one call; a jump out of the program is an error."""
    words = {0: number, 4: arch}
    for place in range(6):
        value = arguments[place] if place < len(arguments) else 0
        words[16 + 8 * place], words[20 + 8 * place] = value & 0xFFFFFFFF, value >> 32
    at = accumulator = 0
    while True:
        code, true, false, k = unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            accumulator = words[k]
        elif code == 0x06:
            return int(k)
        elif code == 0x05:
            at += k
        else:
            holds = {
                0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)
            }[code]  # fmt: skip
            at += true if holds else false


@pytest.mark.parametrize("name", ["read", "execve", "mmap", "futex", "openat", "exit_group"])
def test_the_usual_calls_are_allowed(name: str) -> None:
    assert run(PROGRAM, NUMBERS[name]) == ALLOWED


@pytest.mark.parametrize(
    "name",
    ["mount", "ptrace", "bpf", "keyctl", "add_key", "setns", "unshare", "reboot", "kexec_load",
     "init_module", "perf_event_open", "userfaultfd", "io_uring_setup", "open_by_handle_at",
     "process_vm_readv", "pivot_root", "chroot", "settimeofday", "swapon"],
)  # fmt: skip
def test_what_breaks_out_is_not(name: str) -> None:
    assert run(PROGRAM, NUMBERS[name]) == EPERM


@given(st.integers(0, 2**32 - 1))
def test_every_other_number_is_refused(number: int) -> None:
    profile = {NUMBERS[n] for n in NUMBERS}
    action = run(PROGRAM, number)
    assert action in (ALLOWED, EPERM, ENOSYS)
    if number not in profile:
        assert action == ENOSYS, "a C library tries its newest call, and falls back"


SEVERITY = (0x80000000, 0x50000, 0x7FFF0000)
"""Actions, the stricter first, without their data."""


@pytest.mark.parametrize("netlink", [True, False])
@pytest.mark.parametrize("extra", [(), ZYGOTE_CALLS], ids=["instance", "zygote"])
def test_node_and_instance_filters_equal_profile(extra: tuple[str, ...], netlink: bool) -> None:
    base = seccomp.base()
    rest, whole = seccomp.rest(extra, netlink), seccomp.program(extra, netlink)
    flags = (0, 17, 0x10000000, 0x20000000, 0x7E020000, 3, 5, 8, 16, 17, 2**32 - 1)
    for number in (*range(1100), 2**30, 2**32 - 1):
        for value in flags:
            words = (value, 3, 15)
            both = [run(program, number, words) for program in (rest, base)]  # the later prevails
            strict = min(both, key=lambda action: SEVERITY.index(action & ~0xFFFF))
            assert strict == run(whole, number, words), (number, value)


def test_zygote_and_fork_filters_equal_profile() -> None:
    """What a fork adds denies all that a zygote may beyond it."""
    zygote, own = seccomp.program(ZYGOTE_CALLS), seccomp.without(ZYGOTE_CALLS)
    for number in (*range(1100), 2**30, 2**32 - 1):
        for value in (0, 17, 0x10000000, 2**32 - 1):
            both = [run(program, number, (value,)) for program in (zygote, own)]
            strict = min(both, key=lambda action: SEVERITY.index(action & ~0xFFFF))
            assert strict == run(PROGRAM, number, (value,)), (number, value)
    assert run(own, NUMBERS["read"], arch=0x40000003) == 0x80000000


def test_another_architecture_kills() -> None:
    assert run(PROGRAM, NUMBERS["read"], arch=0x40000003) == 0x80000000


@pytest.mark.parametrize("flag", [0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x02000000])
def test_a_clone_makes_no_namespace(flag: int) -> None:
    assert run(PROGRAM, NUMBERS["clone"], (17,)) == ALLOWED
    assert run(PROGRAM, NUMBERS["clone"], (17 | flag,)) == EPERM
    assert run(PROGRAM, NUMBERS["clone3"]) == ENOSYS, "glibc falls back to clone"


@pytest.mark.parametrize(
    ("name", "place", "flag"),
    [("mmap", 3, 0x40000), ("memfd_create", 1, 4), ("shmget", 2, 0o4000)],
)
def test_no_call_takes_huge_pages_that_the_host_has_set_aside(
    name: str, place: int, flag: int
) -> None:
    """No memory limit counts them."""
    for others, action in ((0, ALLOWED), (flag, EPERM), (flag | 0x22, EPERM), (0x22, ALLOWED)):
        arguments = [0] * 6
        arguments[place] = others
        assert run(PROGRAM, NUMBERS[name], tuple(arguments)) == action


def test_asynchronous_io_reads_as_not_built_in() -> None:
    """All users of a host share its requests (fs.aio-max-nr), and one could take them."""
    for name in ("io_setup", "io_submit", "io_getevents", "io_destroy"):
        assert run(PROGRAM, NUMBERS[name]) == ENOSYS


def test_only_known_socket_families() -> None:
    allowed = {
        family for family in range(64) if run(PROGRAM, NUMBERS["socket"], (family,)) == ALLOWED
    }
    assert allowed == {1, 2, 10, 16}
    pairs = {each for each in range(64) if run(PROGRAM, NUMBERS["socketpair"], (each,)) == ALLOWED}
    assert pairs == {1}


def test_netlink_shows_only_the_instances_network() -> None:
    """Not the kernel's events of devices, which every network namespace hears."""
    protocols = (*range(64), 2**32 - 1)
    verdicts = {p: run(PROGRAM, NUMBERS["socket"], (16, 3, p)) for p in protocols}
    assert {p for p, action in verdicts.items() if action == ALLOWED} == {0, 4}
    assert set(verdicts.values()) == {ALLOWED, 0x50000 | errno.EPROTONOSUPPORT}


def test_a_function_may_do_without_netlink() -> None:
    program = seccomp.program(netlink=False)
    for protocol in (0, 4, 16):
        action = run(program, NUMBERS["socket"], (16, 3, protocol))
        assert action == 0x50000 | errno.EAFNOSUPPORT
    assert run(program, NUMBERS["socket"], (2, 1, 6)) == ALLOWED


@pytest.mark.parametrize(("family", "usual"), [(2, {0, 1, 6, 17}), (10, {0, 6, 17, 58})])
def test_no_socket_loads_a_module_of_the_host(family: int, usual: set[int]) -> None:
    """As SCTP, DCCP, L2TP and SMC do; generic netlink loads one by any name."""
    verdicts = {p: run(PROGRAM, NUMBERS["socket"], (family, 1, p)) for p in range(300)}
    assert {p for p, action in verdicts.items() if action == ALLOWED} == usual
    assert set(verdicts.values()) == {ALLOWED, 0x50000 | errno.EPROTONOSUPPORT}


def test_no_socket_has_a_compiled_filter() -> None:
    """All of a host share net.core.bpf_jit_limit; without it, no seccomp profile can be loaded."""
    for option in (26, 51):  # SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF
        assert run(PROGRAM, NUMBERS["setsockopt"], (3, 1, option)) == EPERM


@pytest.mark.parametrize(
    "request_number",
    [0x5412, 0x541C, 0x5423, 0x8940, 0x8941, 0x89A0, 0x89A1, 0x8982, 0x8983],
)
def test_no_request_types_on_a_terminal_or_loads_a_module(request_number: int) -> None:
    assert run(PROGRAM, NUMBERS["ioctl"], (3, request_number)) == EPERM
    assert run(PROGRAM, NUMBERS["ioctl"], (3, 1 << 32 | request_number)) == EPERM
    assert run(PROGRAM, NUMBERS["ioctl"], (3, 0x5401)) == ALLOWED


def test_no_instance_has_a_processor_core_for_itself() -> None:
    """PR_SCHED_CORE keeps others from its sibling, which no limit counts."""
    assert run(PROGRAM, NUMBERS["prctl"], (62, 1)) == 0x50000 | errno.EINVAL
    assert run(PROGRAM, NUMBERS["prctl"], (15,)) == ALLOWED


def test_nobody_sets_the_limit_of_core_files() -> None:
    """At 1 alone, the kernel starts no program of the host's that core_pattern pipes a core to."""
    done, core, others = 0x50000, 4, (0, 3, 5, 7, 15)
    assert run(PROGRAM, NUMBERS["setrlimit"], (core, 1 << 32)) == done
    for new in (1, 1 << 32, 0x7FFF00000000, 2**64 - 8):
        assert run(PROGRAM, NUMBERS["prlimit64"], (0, core, new, 0)) == done
    assert run(PROGRAM, NUMBERS["prlimit64"], (0, core, 0, 1 << 32)) == ALLOWED, "to read it"
    for other in others:
        assert run(PROGRAM, NUMBERS["prlimit64"], (0, other, 1 << 32)) == ALLOWED
        assert run(PROGRAM, NUMBERS["setrlimit"], (other,)) == ALLOWED


def test_of_ipv6_no_option_leaves_anything_in_a_network() -> None:
    """Labels of flows stay for a minute, groups and anycast addresses are reported afterwards."""
    calls = {
        (level, option): run(PROGRAM, NUMBERS["setsockopt"], (3, level, option))
        for level in (0, 1, 6, 17, 41, 58) for option in range(80)
    }  # fmt: skip
    denied = {(41, option) for option in (20, 27, 32, 42, 46)}
    of_ipv6 = {call for call, action in calls.items() if action != ALLOWED and call[0] != 1}
    assert of_ipv6 == denied
    assert {calls[call] for call in denied} == {0x50000 | errno.ENOPROTOOPT}


def test_a_zygote_may_enter_namespaces_and_no_more() -> None:
    zygote = seccomp.program(ZYGOTE_CALLS)
    more = {
        name for name, number in NUMBERS.items()
        if run(zygote, number, (0x10000000,)) == ALLOWED != run(PROGRAM, number, (0x10000000,))
    }  # fmt: skip
    assert more == set(ZYGOTE_CALLS)


def test_call_numbers_under_other_names_are_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As asm-generic/unistd.h does, which arm64 has."""
    headers = tmp_path / "system-calls.txt"
    headers.write_text(
        "#define __NR_fcntl __NR3264_fcntl\n#define __NR3264_fcntl 25\n#define __NR_clone3 435\n"
        "#define __NR_arch_specific_syscall __NOT_A_NUMBER\n#define __linux__ 1\n#define unix\n"
    )
    monkeypatch.setattr(seccomp, "native", lambda _: headers)
    assert seccomp.system_calls() == {"fcntl": 25, "clone3": 435}


def test_code_beyond_a_conditional_jump_is_reached() -> None:
    """Its offset has 8 bits."""
    again = ((seccomp._LOAD, 0, 0, 0),) * 200
    ranges = [(first, (*again, *seccomp._returns(first))) for first in range(0, 40, 10)]
    code = [(seccomp._LOAD, 0, 0, 0), *seccomp._search(ranges)]
    program = b"".join(pack("=HBBI", *each) for each in code)
    assert [run(program, number) for number in (0, 9, 10, 25, 39)] == [0, 0, 10, 20, 30]
