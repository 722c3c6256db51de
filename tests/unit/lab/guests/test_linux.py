"""Linux and other guests that a user brings: how they are booted, and what is refused before."""

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.linux_files import VMLINUX, bzimage

from firstlight.errors import Failed, FirstlightError, UnknownName, Unsupported
from firstlight.lab.guests import BootConfig, Line, catalogue, clock
from firstlight.lab.guests.catalogue import Entry
from firstlight.lab.guests.generic import Generic
from firstlight.lab.guests.linux import Linux
from firstlight.lab.guests.linux_root import FILESYSTEMS, WRITABLE, Member, archive
from firstlight.model import EndPoint, Step

COUNTED = BootConfig(icount=True)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    file = tmp_path / "vmlinuz"
    file.write_bytes(bzimage())
    return file


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    file = tmp_path / "vmlinux"
    file.write_bytes(VMLINUX)
    return file


@pytest.mark.parametrize(
    ("filesystem", "wanted", "fact"),
    [
        ("zfs", BootConfig("kernel"), "no root of zfs"),
        ("erofs", BootConfig("disk"), "no boot loader"),
        ("erofs", BootConfig("pvh", "vga"), "real-mode"),
        ("erofs", BootConfig("kernel", chart="memory"), "no boot chart"),
    ],
)
def test_what_linux_cannot_do_is_reported_with_a_hint(
    packed: Path, filesystem: str, wanted: BootConfig, fact: str
) -> None:
    with pytest.raises(Unsupported, match=fact) as failure:
        Linux(filesystem, packed).probe(wanted)
    assert failure.value.hint


def test_firmware_boots_no_unpacked_kernel(packed: Path, unpacked: Path) -> None:
    Linux("erofs", packed).probe(BootConfig("kernel", "vga"))
    Linux("erofs", unpacked).probe(BootConfig("pvh"))
    with pytest.raises(Unsupported, match="firmware cannot boot"):
        Linux("erofs", unpacked).probe(BootConfig("kernel"))


def words(guest: Linux, wanted: BootConfig) -> list[str]:
    return guest._arguments(wanted)


def test_the_command_line_says_how_to_boot() -> None:
    quiet = words(Linux("ext4"), COUNTED)
    assert quiet[:2] == ["console=ttyS0", "quiet"]
    assert "tsc_early_khz=1000000" in quiet, "where instructions are counted, a tick is 1 ns"
    assert "firstlight_least=100000" in quiet
    assert "idle=poll" in quiet
    assert "firstlight_address=172.31.0.2/16" in quiet
    assert "firstlight_gateway=172.31.0.1" in quiet
    assert "firstlight_root=ext4,rw" in quiet
    assert "firstlight_root=squashfs" in words(Linux(), COUNTED)
    assert not any("firstlight_root" in word for word in words(Linux("initramfs"), COUNTED))


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("console", ["serial", "vga"])
def test_real_mode_output_is_asked_for_when_harmless(console: str, verbose: bool) -> None:
    line = words(Linux(verbose=verbose), BootConfig("kernel", console, icount=True))
    assert ("debug" in line) == (not (verbose and console == "vga"))
    if "debug" in line:
        assert line.index("debug") < line.index("loglevel=7" if verbose else "quiet")
        assert "earlyprintk=ttyS0,115200" in line


def test_the_first_packet_is_an_end_point() -> None:
    assert Linux().end_point is EndPoint.FIRST_INSTRUCTION
    reaching = Linux(end_point=EndPoint.FIRST_PACKET)
    assert "firstlight_packet=1" in words(reaching, COUNTED)
    assert "firstlight_packet=1" not in words(Linux(), COUNTED)


_MEMBERS = st.lists(
    st.builds(
        Member,
        st.from_regex(r"[a-z.-]{1,9}(/[a-z]{1,5})?", fullmatch=True),
        st.integers(0, 0o177777),
        st.binary(max_size=20),
        st.tuples(st.integers(0, 255), st.integers(0, 255)),
    )
)


@given(_MEMBERS)
def test_an_archive_holds_its_members(members: list[Member]) -> None:
    """Read as the kernel does (init/initramfs.c): names and contents start at multiples of 4."""
    raw, at, contents = archive(members), 0, []
    while True:
        assert raw[at : at + 6] == b"070701"
        fields = [int(raw[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = raw[at + 110 : at + 110 + fields[11] - 1].decode()
        assert raw[at + 110 + fields[11] - 1] == 0
        content = at + 110 + fields[11] + 3 & ~3
        if name == "TRAILER!!!":
            break
        contents.append(Member(name, fields[1], raw[content : content + fields[6]],
                            (fields[9], fields[10])))  # fmt: skip
        at = content + fields[6] + 3 & ~3
    assert contents == members


class TestCatalogue:
    """Guests of the kinds linux and generic."""

    @pytest.fixture(autouse=True)
    def own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("FIRSTLIGHT_GUESTS", str(tmp_path / "guests"))
        return tmp_path / "guests"

    def test_a_kernel_of_the_users_boots_with_our_root(self, packed: Path, own: Path) -> None:
        added = catalogue.add(Entry(name="mine", kind="linux"), {"kernel": packed})
        assert catalogue.guest(added) == Linux("squashfs", own / "mine/kernel", name="mine")

    def test_linux_has_no_other_root(self, packed: Path) -> None:
        mine = Entry(name="mine", kind="linux")
        with pytest.raises(FirstlightError, match="firstlight makes its root"):
            catalogue.add(mine, {"kernel": packed, "disk.img": packed})
        with pytest.raises(UnknownName, match="zfs"):
            catalogue.add(msgspec.structs.replace(mine, filesystem="zfs"), {"kernel": packed})

    def test_what_is_not_linux_is_refused(self, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.write_bytes(VMLINUX.replace(b"Linux version", b"Other version"))
        with pytest.raises(Failed, match="not Linux"):
            catalogue.add(Entry(name="mine", kind="linux"), {"kernel": other})

    def test_any_guest_needs_a_ready_marker(self, unpacked: Path, own: Path) -> None:
        entry = Entry(name="any", kind="generic", arguments="ip={ip}")
        with pytest.raises(FirstlightError, match="has no ready line"):
            catalogue.add(entry, {"kernel": unpacked})
        added = catalogue.add(msgspec.structs.replace(entry, ready="^up$"), {"kernel": unpacked})
        expected = Generic("any", "^up$", own / "any/kernel", arguments="ip={ip}")
        assert catalogue.guest(added) == expected


def test_a_generic_guest_gets_what_its_command_line_asks_for(unpacked: Path) -> None:
    guest = Generic("any", "^up$", unpacked, arguments="a={address} {ip}/{prefix} {gateway} {x} {")
    boot = guest.boot(BootConfig(), unpacked.parent)
    assert boot.arguments == "a=172.31.0.2/16 172.31.0.2/16 172.31.0.1 {x} {"
    assert (boot.kernel, boot.disk, boot.ready) == (unpacked, None, "^up$")


@pytest.mark.parametrize(
    ("wanted", "fact"),
    [
        (BootConfig("disk"), "no disk with a boot loader"),
        (BootConfig("kernel"), "an ELF file, which the protocol kernel does not boot"),
        (BootConfig(chart="memory"), "no boot chart"),
        (BootConfig(icount=True), "has no clock of its own"),
    ],
)
def test_a_generic_guest_boots_by_what_its_files_are_for(
    unpacked: Path, wanted: BootConfig, fact: str
) -> None:
    Generic("any", "^up$", unpacked).probe(BootConfig("pvh"))
    with pytest.raises(Unsupported, match=re.escape(fact)):
        Generic("any", "^up$", unpacked).probe(wanted)
    with pytest.raises(Unsupported, match="no kernel"):
        Generic("any", "^up$").probe(BootConfig("pvh"))


def test_a_generic_guests_spans_are_from_line_to_line() -> None:
    lines = [Line(5, "one"), Line(7, ""), Line(9, " two "), Line(20, "x" * 99)]
    reading = Generic("any", "x").read(BootConfig(), lines, None)
    assert reading.spans == (Step("line two", 7, 9), Step(f"line {'x' * 72}", 9, 20))
    assert clock.place(reading, entered=1) == clock.Offset(0, 0)


def test_roots_that_are_written_to_are_known() -> None:
    assert set(WRITABLE) < set(FILESYSTEMS)
