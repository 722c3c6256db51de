"""Debian's cloud kernel in real QEMU, from each root, by each protocol; and how it fails."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.support.laboratory import laboratory
from tests.support.machineroom import Room

from firstlight.analysis import boot, phases
from firstlight.errors import Unsupported
from firstlight.lab.backends.qemu import Qemu
from firstlight.lab.guests import BootConfig, BootSpec, Line, Reading, linux_kernel, linux_root
from firstlight.lab.guests.generic import Generic
from firstlight.lab.guests.linux import Linux
from firstlight.lab.load import Generator
from firstlight.model import Ending, EndPoint, Sample

_DEADLINE = 120  # seconds, of a boot that takes two: others compute here too


def _kernel() -> Path | None:
    try:
        return linux_kernel.newest()
    except Unsupported:
        return None


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86"),
    pytest.mark.skipif(not _kernel(), reason="needs linux-image-cloud-amd64 (make .venv/linux)"),
]


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with laboratory(f"test-{os.getpid()}-linux") as place, Generator() as generator:
        yield Room(place, generator)


def spans_of(sample: Sample) -> dict[str, int]:
    """The spans of a whole boot: they fit the host's line, and their phases sum to the latency."""
    assert sample.ending is Ending.READY, sample
    log = sample.guest
    assert log is not None
    assert log.offset is not None
    assert log.uncertainty is not None
    placed = boot.placed(sample)
    begin, stopped = boot.entered(sample), sample.stamps.stopped
    assert begin is not None
    assert stopped is not None
    assert min(span.start for span in placed) >= begin - log.uncertainty
    assert max(span.end for span in placed) <= stopped
    assert sum(boot.account(sample).values()) == sample.latency
    [execution] = [span for span in placed if span.name == "exec"]
    assert sample.stamps.ready is not None
    assert execution.start < sample.stamps.ready
    return {span.name: span.end - span.start for span in log.spans}


@pytest.mark.parametrize("filesystem", linux_root.FILESYSTEMS)
def test_it_boots_from_each_root(room: Room, filesystem: str) -> None:
    [sample] = room.start(Qemu(Linux(filesystem), accel="tcg"), deadline=_DEADLINE)
    spans = spans_of(sample)
    expected = {"firmware", "kernel", "network", "exec", "initcall con_init", "module virtio_net"}
    assert expected <= spans.keys()
    assert (f"mount {filesystem}" in spans) == (filesystem != "initramfs")
    assert ("initcall virtio_blk" in spans) == (filesystem != "initramfs")
    assert spans["initcall virtio_net"] < spans["module virtio_net"]
    assert room.leftovers() == []


@pytest.mark.parametrize("console", ["serial", "vga"])
def test_a_bzimage_tells_what_uncompressing_it_costs(room: Room, console: str) -> None:
    machine = Qemu(Linux("erofs"), machine="pc", protocol="kernel", console=console, accel="tcg")
    [sample] = room.start(machine, deadline=_DEADLINE)
    spans = spans_of(sample)
    assert {"firmware", "uncompress", "kernel"} <= spans.keys()
    assert sample.guest is not None
    colour = "VGA+" if console == "vga" else "CGA"
    assert f"{colour} 80x25" in sample.guest.console


def test_neighbours_reach_the_gateway_each_by_its_own_address(room: Room) -> None:
    machine = Qemu(Linux("initramfs", end_point=EndPoint.FIRST_PACKET), accel="tcg")
    assert machine.end_point is EndPoint.FIRST_PACKET
    samples = room.start(machine, 2, deadline=_DEADLINE)
    assert len(samples) == 2
    for sample in samples:
        assert "packet" in spans_of(sample)
    assert room.leftovers() == []


class Overheard(Linux):
    """Linux whose whole console is kept."""

    def read(self, wanted: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        HEARD[:] = [line.text for line in lines]
        return super().read(wanted, lines, memory)


HEARD: list[str] = []


@pytest.mark.parametrize("verbose", [False, True])
def test_unsolicited_output_is_read_before_it_is_ready(room: Room, verbose: bool) -> None:
    [sample] = room.start(
        Qemu(Overheard("initramfs", verbose=verbose), accel="tcg"), deadline=_DEADLINE
    )
    spans_of(sample)
    before = HEARD[: next(i for i, text in enumerate(HEARD) if "firstlight ready" in text)]
    assert any("Linux version" in text for text in before) == verbose
    assert len(before) > 100 if verbose else len(before) < 10


@dataclass(frozen=True)
class Spoilt(Linux):
    """Linux whose image holds something else, or that is given no init."""

    spoil: str = "image"

    def boot(self, wanted: BootConfig, directory: Path) -> BootSpec:
        whole = super().boot(wanted, directory)
        if self.spoil == "image":
            assert whole.disk is not None
            whole.disk.write_bytes(b"not a file system".ljust(1 << 20, b"\n"))
            return whole
        return replace(whole, initrd=None)


def failed(room: Room, machine: Qemu) -> str:
    [sample] = room.start(machine, deadline=_DEADLINE)
    assert sample.ending is Ending.FAILED
    assert boot.entered(sample) is not None, "it came as far as into the guest"
    assert room.leftovers() == []
    assert sample.error is not None
    return sample.error


def test_the_guest_reports_an_image_of_another_file_system(room: Room) -> None:
    error = failed(room, Qemu(Spoilt("erofs"), accel="tcg"))
    assert error == "mount /dev/vda as erofs: Invalid argument"


def test_the_guest_reports_a_missing_block_device(room: Room) -> None:
    error = failed(room, Qemu(Linux("erofs"), devices=("net",), accel="tcg"))
    assert error == "mount /dev/vda as erofs: No such file or directory"


def test_a_panic_ends_the_start_with_the_kernels_last_words(room: Room) -> None:
    error = failed(room, Qemu(Spoilt("erofs", spoil="initrd"), accel="tcg"))
    assert "Kernel panic" in error


def test_any_kernel_is_ready_by_its_marker(room: Room) -> None:
    kernel = _kernel()
    assert kernel is not None
    marker = "^\\[ *[0-9.]+\\] Linux version "
    guest = Generic("any", marker, kernel, arguments="console=ttyS0 earlyprintk=ttyS0")
    machine = Qemu(guest, machine="pc", protocol="kernel", accel="tcg")
    [sample] = room.start(machine, deadline=_DEADLINE)
    assert sample.ending is Ending.READY, sample
    assert sum(boot.account(sample).values()) == sample.latency
    assert sample.guest is not None
    assert {phases.of_guest(span.name) for span in sample.guest.spans} <= {"guest.other"}
    assert room.leftovers() == []
