"""Messages to and from the native programs, and netlink requests as the kernel reads them."""

from ipaddress import IPv4Address
from struct import pack, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.agile import netlink, wire
from firstlight.errors import Failed

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(words, min_size=1, max_size=5), st.dictionaries(words, words, max_size=4), words)
def test_a_start_reads_back(argv: list[str], env: dict[str, str], directory: str) -> None:
    message = wire.start(tuple(argv), env, directory)
    argc, envc = wire.START.unpack_from(message)
    strings = message[wire.START.size :].decode().split("\0")
    assert (argc, envc) == (len(argv), len(env))
    assert strings == [*argv, *(f"{k}={v}" for k, v in env.items()), directory, ""]


def test_a_nul_and_too_long_a_start_are_refused() -> None:
    with pytest.raises(Failed, match="NUL"):
        wire.start(("/bin/x", "a\0b"), {}, "/")
    with pytest.raises(Failed, match="131"):
        wire.start(("/bin/x", "x" * wire.START_MAX), {}, "/")
    with pytest.raises(Failed, match="10002 bytes"):
        wire.start(("x",) * 5000, {}, "/")


def test_a_report_names_its_step_and_drops_steps_that_were_not_taken() -> None:
    report = wire.report(pack("=Ii16q", 12, 1, *([5] * 13), 0, 0, 0))
    assert (report.step, report.error) == (wire.Step.SECCOMP, 1)
    assert set(report.stamps) == set(wire.Step) - {
        wire.Step.WAIT, wire.Step.STREAMS, wire.Step.EXEC
    }  # fmt: skip


def attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        size, kind = unpack_from("=HH", data)
        assert 4 <= size <= len(data)
        found[kind & 0x7FFF] = data[4:size]
        data = data[size + -size % 4 :]
    return found


@given(st.integers(1, 2**31 - 1), st.text("abc-", min_size=1, max_size=15))
def test_a_veth_request_nests_its_peer(index: int, name: str) -> None:
    message = netlink.veth(name, index, b"hostmc", "eth0", 2, b"instmc", 9)
    length, kind, flags = unpack_from("=IHH", message)
    assert (length, kind, flags & 0x605) == (len(message), 16, 0x605)
    assert unpack_from("=BxHiII", message, 16)[2] == index
    outer = attributes(message[32:])
    assert outer[3] == name.encode() + b"\0"
    assert outer[1] == b"hostmc"
    info = attributes(outer[18])
    assert info[1] == b"veth\0"
    peer = attributes(info[2])[1]
    inner = attributes(peer[16:])
    assert (inner[3], inner[1], inner[28]) == (b"eth0\0", b"instmc", pack("=i", 9))


@pytest.mark.parametrize(
    ("message", "fixed"),
    [
        (netlink.address(2, IPv4Address("10.0.0.2")), 8),
        (netlink.route_host(2, IPv4Address("10.0.0.1")), 12),
        (netlink.route_default(2, IPv4Address("10.0.0.1")), 12),
        (netlink.neighbour(2, IPv4Address("10.0.0.1"), b"hostmc"), 12),
        (netlink.link_up_without_ipv6(3), 16),
        (netlink.set_element("table", "set", IPv4Address("10.0.0.2")), 4),
    ],
    ids=["address", "route", "default", "neighbour", "link", "element"],
)
def test_every_request_is_as_long_as_it_says(message: bytes, fixed: int) -> None:
    assert unpack_from("=I", message)[0] == len(message)
    assert attributes(message[16 + fixed :])
