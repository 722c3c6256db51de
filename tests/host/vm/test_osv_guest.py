"""OSv's boot chart out of a real machine's memory: of a guest that lays one, and of real OSv."""

import os
import shutil
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from tests.support.laboratory import laboratory
from tests.support.machineroom import Room
from tests.support.tinyguest import HALT, exits

from firstlight.errors import Unsupported
from firstlight.lab.backends.accel import _ENTRY as LOAD_ADDRESS
from firstlight.lab.backends.accel import elf
from firstlight.lab.backends.qemu import Qemu
from firstlight.lab.guests import Guest, catalogue
from firstlight.lab.guests.osv import Osv
from firstlight.lab.guests.osv_chart import MARK
from firstlight.lab.load import Generator
from firstlight.model import Ending, GuestLog, Sample

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86"),
]
EVENTS = [b"", MARK[:-1], b"uncompress lzloader.elf", b"TLS initialization", b"Total time"]
LOOPS = 500_000  # of two instructions each, before each event but the first
OURS = [entry for entry in catalogue.entries() if entry.kind == "osv"]
MOUNTED = {"rofs": "ROFS mounted", "zfs": "ZFS mounted", "ext": "EXT mounted",
           "virtiofs": "Virtio-fs mounted"}  # fmt: skip


def laying(shift: int) -> bytes:
    """A kernel that spins, stamps each event in a table as OSv does, and says so as OSv does."""
    spin = b"\xb9" + LOOPS.to_bytes(4, "little") + bytes.fromhex("4975fd")  # dec ecx; jnz
    stamp = 13  # bytes of rdtsc; mov [low], eax; mov [high], edx
    size = len(EVENTS) * stamp + (len(EVENTS) - 1) * len(spin) + len(exits(0, 0)) + len(HALT)
    table = (LOAD_ADDRESS + size + 7) & ~7
    names = table + 256
    code, rows, text = b"", b"", b""
    for number, name in enumerate(EVENTS):
        ticks = table + 16 * number + 8
        code += spin * bool(number) + b"\x0f\x31\xa3" + struct.pack("<I", ticks)
        code += b"\x89\x15" + struct.pack("<I", ticks + 4)
        rows += struct.pack("<QQ", names + len(text) + shift, 0)
        text += name + b"\0"
    code += exits(0x3F0, 123) + HALT
    return elf(code.ljust(table - LOAD_ADDRESS, b"\0") + rows.ljust(256, b"\0") + text)


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with laboratory(f"test-{os.getpid()}-osv") as place, Generator() as generator:
        yield Room(place, generator)


def machine(guest: Guest, **more: object) -> Qemu:
    words = {"machine": "pc", "accel": "tcg", "chart": "memory"} | more
    return Qemu(guest, **words)  # type: ignore[arg-type]


def charted(sample: Sample) -> GuestLog:
    assert sample.ending is Ending.READY, sample
    assert sample.guest is not None
    spans = sample.guest.spans
    assert spans, sample.guest.console
    assert all(before.end == after.start for before, after in pairwise(spans))
    return sample.guest


@pytest.mark.parametrize("shift", [0x4000_0000, 0])
def test_a_chart_is_read_from_memory_and_laid_on_the_hosts_line(
    room: Room, tmp_path: Path, shift: int
) -> None:
    (tmp_path / "kernel").write_bytes(laying(shift))
    guest = Osv("laying", "ramfs", tmp_path / "kernel")
    [sample] = room.start(machine(guest, memory_mb=64))
    log = charted(sample)
    assert [span.name for span in log.spans] == ["firmware", *(e.decode() for e in EVENTS[1:])]
    assert log.offset is not None
    [init] = sample.steps
    assert sample.stamps.ready is not None
    assert init.end - 1 <= log.spans[0].start + log.offset + (log.uncertainty or 0)
    assert log.spans[-1].end + log.offset <= sample.stamps.ready
    assert room.leftovers() == []


def test_counted_time_is_that_of_the_instructions(room: Room, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(laying(0))
    guest = Osv("laying", "ramfs", tmp_path / "kernel")
    [sample] = room.start(machine(guest, memory_mb=64, icount=True))
    for span in charted(sample).spans[1:]:
        assert span.end - span.start == pytest.approx(2 * LOOPS, rel=0.01), "a ns an instruction"


def test_qemu_without_end_event_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(laying(0))
    if not shutil.which("qemu-system-x86_64-microvm"):
        pytest.skip("needs qemu-system-x86_64-microvm")
    bare = machine(
        Osv("laying", "ramfs", tmp_path / "kernel"), binary="qemu-system-x86_64-microvm",
        machine="microvm", accel="auto",
    )  # fmt: skip
    with pytest.raises(Unsupported):
        bare.probe()


@pytest.mark.skipif(not OURS, reason="needs an OSv in the catalogue: firstlight guest add osv")
@pytest.mark.parametrize("entry", OURS, ids=lambda entry: entry.name)
@pytest.mark.parametrize("console", ["serial", "vga"])
def test_a_real_osv_tells_its_whole_boot(room: Room, entry: catalogue.Entry, console: str) -> None:
    guest = catalogue.guest(catalogue.find(entry.name))
    protocol = "pvh" if "kernel" in entry.sums else "disk"
    for sample in room.start(machine(guest, console=console, protocol=protocol), 2, deadline=120):
        names = [span.name for span in charted(sample).spans]
        assert names[:4] == ["firmware", *(event.decode() for event in EVENTS[1:4])]
        assert names[-1] == "Total time"
        assert names[-2] == MOUNTED.get(entry.filesystem, names[-2])
    assert room.leftovers() == []
