"""The probe in real hypervisors: every step on every machine, and what it says when it cannot."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from tests.support.laboratory import laboratory
from tests.support.machineroom import Room

from firstlight.analysis import boot
from firstlight.errors import Unsupported
from firstlight.lab.backends.firecracker import Firecracker
from firstlight.lab.backends.qemu import Qemu
from firstlight.lab.guests import BootConfig, BootSpec
from firstlight.lab.guests.probe import Probe
from firstlight.lab.guests.probe_images import fnv1a
from firstlight.lab.load import Generator
from firstlight.model import Ending, EndPoint, GuestLog, Sample
from firstlight.native import native

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86"),
    pytest.mark.skipif(not shutil.which("mkfs.erofs"), reason="needs erofs-utils"),
]
ALL = {"entry", "console", "block", "net", "rng", "mount", "packet"}


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with laboratory(f"test-{os.getpid()}-probe") as place, Generator() as generator:
        yield Room(place, generator)


def tcg(guest: Probe, **more: object) -> Qemu:
    return Qemu(guest, **({"accel": "tcg", "memory_mb": 64} | more))  # type: ignore[arg-type]


def ready(samples: list[Sample]) -> tuple[Sample, GuestLog]:
    [first] = samples
    assert first.ending is Ending.READY, first
    assert first.guest is not None
    return first, first.guest


def error(samples: list[Sample]) -> str:
    [first] = samples
    assert first.ending is Ending.FAILED, first
    assert first.error is not None
    return first.error


def check_whole(sample: Sample, guest: GuestLog, looked: str, *loader: str) -> None:
    """Every step is there, in order and without overlap, within what the host saw."""
    steps = ALL | {looked}
    assert {span.name for span in guest.spans} - {"firmware"} == {*steps, *loader}
    assert all(first.end <= second.start for first, second in pairwise(guest.spans))
    texts = [span for span in guest.spans if span.name == "console"]
    assert len(texts) == len(steps)  # what it prints: itself, and every other step's line
    message = len(texts) * 2 + len(loader)
    assert guest.console.split("\n")[-1].startswith(f"probe end {message} ")
    assert guest.offset is not None
    assert sample.stamps.ready is not None
    entered = boot.entered(sample)
    assert entered is not None
    for span in boot.placed(sample):
        assert entered - 1_000_000 <= span.start  # a counter may run a little off
        assert span.end <= sample.stamps.ready


@pytest.mark.parametrize(
    ("machine", "protocol", "console"),
    [("microvm", "pvh", "serial"), ("microvm", "kernel", "serial"), ("pc", "pvh", "serial"),
     ("pc", "kernel", "serial"), ("pc", "disk", "vga"), ("q35", "pvh", "vga"),
     ("q35", "disk", "serial")],
)  # fmt: skip
def test_every_step_on_every_machine(room: Room, machine: str, protocol: str, console: str) -> None:
    how = tcg(Probe(), machine=machine, protocol=protocol, console=console)
    sample, guest = ready(room.start(how))
    loader = ["disk read"] if protocol == "disk" else []
    check_whole(sample, guest, "virtio" if machine == "microvm" else "pci", *loader)
    assert guest.spans[0].name == "firmware"
    assert ("block: " in guest.console) == (console == "serial")
    assert room.leftovers() == []


def test_a_kvm_that_only_emulates_suffices(room: Room) -> None:
    how = tcg(Probe(), accel="kvm")
    try:
        how.probe()
    except Unsupported:
        return  # test_qemu.py asks why
    sample, guest = ready(room.start(how))
    check_whole(sample, guest, "virtio")


@pytest.mark.parametrize("protocol", ["direct", "pvh"])
def test_firecracker_enters_it_by_both_protocols(room: Room, protocol: str) -> None:
    how = Firecracker(Probe(), protocol=protocol, memory_mb=64)
    try:
        how.probe()
    except Unsupported as why:
        pytest.skip(f"needs a real Firecracker, and KVM: {why.message}")
    sample, guest = ready(room.start(how))
    check_whole(sample, guest, "virtio")


def test_counted_time_is_on_no_line_of_the_hosts(room: Room) -> None:
    _, guest = ready(room.start(tcg(Probe(), icount=True)))
    assert (guest.offset, guest.uncertainty) == (None, None)
    assert {span.name for span in guest.spans} >= ALL
    assert "one nanosecond per instruction" in guest.clock


def test_several_at_once_have_an_address_each(room: Room) -> None:
    samples = room.start(tcg(Probe()), 3)
    assert [sample.ending for sample in samples] == [Ending.READY] * 3
    assert room.leftovers() == []


def test_a_device_that_is_not_there_is_absent(room: Room) -> None:
    guest = Probe("none", packet=False)
    assert guest.end_point is EndPoint.BOOTED
    for machine, looked in (("microvm", set[str]()), ("pc", {"pci"})):
        _, log = ready(room.start(tcg(guest, machine=machine, devices=())))
        assert {span.name for span in log.spans} == {"firmware", "entry", "console", *looked}
        for device in ("block", "net", "rng"):
            assert f"probe {device} absent" in log.console.split("\n")


def test_what_was_asked_for_and_is_not_there_fails(room: Room) -> None:
    assert "probe failed packet: there is no network interface" in error(
        room.start(tcg(Probe(), devices=("block",)))
    )
    assert "probe failed mount: there is no disk" in error(
        room.start(tcg(Probe(), devices=("net",)))
    )


@dataclass(frozen=True)
class Altered(Probe):
    """A probe which is booted otherwise than it would be."""

    how: Callable[[BootSpec], BootSpec] = lambda boot: boot

    def boot(self, wanted: BootConfig, directory: Path) -> BootSpec:
        return self.how(super().boot(wanted, directory))


def with_arguments(words: str) -> Altered:
    """A probe with words before its own on the command line: the first of each name counts."""
    return Altered(how=lambda boot: replace(boot, arguments=f"{words} {boot.arguments}"))


def with_image(image: Path, words: str) -> Altered:
    """A probe told so, with another disk."""
    return Altered(
        how=lambda boot: replace(boot, disk=image, arguments=f"{words} {boot.arguments}")
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("file=/bin/none", "mount: the file is not in the image"),
        ("file=/bin/first/none", "mount: the file is not in the image"),
        ("file=/bin", "mount: the path is not a file"),
        ("sum=1", "mount: the file's content is not what it should be"),
        ("gw=172.31.9.9", "packet: the gateway does not say where it is (ARP)"),
        ("virtio_mmio.device=512@0xf000000000000:5", "exception: the processor cannot go on"),
    ],
)
def test_it_says_which_step_cannot_be_done(room: Room, words: str, complaint: str) -> None:
    assert f"probe failed {complaint}" in error(room.start(tcg(with_arguments(words))))
    assert room.leftovers() == []


def test_an_exception_is_reported_by_vector_and_address(room: Room) -> None:
    [sample] = room.start(tcg(with_arguments("virtio_mmio.device=512@0xf000000000000:5")))
    assert sample.guest is not None
    [line] = [line for line in sample.guest.console.split("\n") if "exception" in line][:1]
    assert line.startswith("probe exception 14 at 0x10")  # a page fault in the code at 1 MiB


def test_a_missing_vga_is_reported(room: Room) -> None:
    assert "probe failed console: there is none of this kind" in error(
        room.start(tcg(with_arguments("console=vga"), machine="microvm"))
    )


def test_a_disk_of_something_else_is_no_image(room: Room, tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(8192))
    guest = Altered(how=lambda boot: replace(boot, disk=tmp_path / "zeros"))
    assert "probe failed mount: the disk is no EROFS image" in error(room.start(tcg(guest)))


def test_a_disk_that_ends_too_soon_cannot_be_read(room: Room, tmp_path: Path) -> None:
    def cut(boot: BootSpec) -> BootSpec:
        assert boot.disk is not None
        (tmp_path / "cut").write_bytes(boot.disk.read_bytes()[:512])
        return replace(boot, disk=tmp_path / "cut")

    assert "probe failed block: the disk cannot be read there" in error(
        room.start(tcg(Altered(how=cut)))
    )


LAST_OF_ITS_BLOCK = "a-file-with-a-rather-long-name-087"  # its name is padded with zeros


@pytest.mark.parametrize(
    ("size", "name", "options"),
    [(1, "last", ()), (4096, "last", ()), (4097, "last", ()), (70_000, LAST_OF_ITS_BLOCK, ()),
     (8191, "last", ("-Eforce-inode-extended",)), (8000, "last", ("-Enoinline_data",)),
     (300, "last", ("-x1",))],
)  # fmt: skip
def test_it_reads_what_mkfs_wrote(
    room: Room, tmp_path: Path, size: int, name: str, options: tuple[str, ...]
) -> None:
    """Files with and without a last part beside their inode, in a directory of several blocks."""
    content = bytes(index * index >> 3 & 0xFF for index in range(size))
    directory = tmp_path / "tree" / "a" / "directory"
    directory.mkdir(parents=True)
    for index in range(400):
        (directory / f"a-file-with-a-rather-long-name-{index:03}").touch()
    file = directory / name
    file.write_bytes(content)
    os.setxattr(file, "user.note", b"x" * 30)
    subprocess.run(
        ["mkfs.erofs", *options, tmp_path / "image", tmp_path / "tree"],
        check=True, capture_output=True,
    )  # fmt: skip
    guest = with_image(tmp_path / "image", f"file=//a/directory/{name} sum={fnv1a(content)}")
    _, log = ready(room.start(tcg(guest)))
    assert f"mount: erofs, a file of {size} bytes, sum {fnv1a(content):#x}" in log.console


def test_the_boot_sector_reports_a_disk_without_a_kernel(room: Room, tmp_path: Path) -> None:
    def cut(boot: BootSpec) -> BootSpec:
        assert boot.disk is not None
        content = bytearray(boot.disk.read_bytes())
        content[0x1FA] = 1  # the kernel's first sector is some 4 G on
        (tmp_path / "disk").write_bytes(content)
        return replace(boot, disk=tmp_path / "disk")

    assert "probe failed disk read: the BIOS cannot read the disk" in error(
        room.start(tcg(Altered(how=cut), machine="pc", protocol="disk"))
    )


def test_a_compressed_file_is_refused(room: Room, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(bytes(100_000))
    subprocess.run(
        ["mkfs.erofs", "-zlz4", tmp_path / "image", tmp_path / "tree"],
        check=True, capture_output=True,
    )  # fmt: skip
    guest = with_image(tmp_path / "image", "file=/file")
    assert "probe failed mount: a file of the image is compressed" in error(room.start(tcg(guest)))


def test_the_vga_screen_shows_the_last_lines(tmp_path: Path) -> None:
    monitor, picture = tmp_path / "monitor", tmp_path / "picture"
    machine = subprocess.Popen(
        ["qemu-system-x86_64", "-nodefaults", "-accel", "tcg", "-machine", "pc", "-m", "64",
         "-display", "none", "-vga", "std", "-serial", "stdio", "-no-reboot",
         "-monitor", f"unix:{monitor},server=on,wait=off",
         "-kernel", native("guest/probe"), "-append", "console=vga lines=40"],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert machine.stdout is not None
        assert any(line.startswith("probe end ") for line in machine.stdout)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(monitor))
            connection.sendall(f'pmemsave 0xb8000 4000 "{picture}"\nquit\n'.encode())
            machine.wait(timeout=60)
    finally:
        machine.kill()
        machine.wait()
    cells = picture.read_bytes()[::2].decode("cp437")
    rows = [cells[at : at + 80].rstrip() for at in range(0, len(cells), 80)]
    assert rows[:-2] == [
        f"[{number}] what a talkative kernel prints of each part that it sets up"
        for number in range(18, 41)
    ]
    assert rows[-2].startswith("pci: ")
    assert rows[-1] == ""
