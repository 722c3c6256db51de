"""What files are, by their bytes: real file systems and kernels, whole, cut and of other kinds."""

import os
import shlex
import shutil
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.errors import Failed
from firstlight.lab.backends.accel import elf
from firstlight.lab.guests.images import Disk, Kernel, Volume, check_root, disk, kernel

MIB = 1 << 20
MAKERS = {
    "ext": ("mke2fs", "-q", "-F", "OUT", "8M"),
    "squashfs": ("mksquashfs", "IN", "OUT", "-quiet", "-no-progress", "-noappend"),
    "erofs": ("mkfs.erofs", "OUT", "IN"),
    "btrfs": ("mkfs.btrfs", "-q", "OUT"),
}


def made(filesystem: str, directory: Path) -> Path:
    """A file system of a file of 100,000 bytes, by its own tool where there is one."""
    image, content = directory / f"{filesystem}.img", directory / "content"
    content.mkdir(exist_ok=True)
    (content / "file").write_bytes(Random(1).randbytes(100_000))  # incompressible
    if filesystem == "rofs":
        image.write_bytes(rofs(9))
        return image
    if filesystem == "zfs":
        image.write_bytes(zfs())
        return image
    program, *arguments = MAKERS[filesystem]
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    if filesystem == "btrfs":
        with image.open("wb") as file:
            file.truncate(128 * MIB)
    words = [str({"OUT": image, "IN": content}.get(word, word)) for word in arguments]
    subprocess.run([program, *words], check=True, capture_output=True)
    return image


def rofs(blocks: int) -> bytes:
    """The superblock of OSv's fs/rofs/rofs.hh before as many blocks, the last with the tables."""
    head = struct.pack("<8Q", 0xDEADBEAD, 1, 512, blocks - 1, 1, 9, 1, 10)
    return head.ljust(512 * blocks, b"\0")


def zfs() -> bytes:
    """The first label of a pool: its array of uberblocks, of which one was written."""
    return (bytes(128 << 10) + bytes(3 << 10) + struct.pack("<Q", 0xBAB10C)).ljust(MIB, b"\0")


def partitioned(volume: bytes, start: int = 2048, code: bytes = b"\xea\x1e\x7c") -> bytes:
    sectors = (len(volume) + 511) // 512
    entry = struct.pack("<8B2I", 0, 0, 1, 0, 0x83, 0, 1, 0, start, sectors)
    sector = code.ljust(0x1CE, b"\0") + entry.ljust(48, b"\0") + b"\x55\xaa"
    return sector.ljust(start * 512, b"\0") + volume.ljust(sectors * 512, b"\0")


@pytest.mark.parametrize("filesystem", [*MAKERS, "rofs", "zfs"])
def test_a_file_system_is_known_bare_and_in_a_partition(filesystem: str, tmp_path: Path) -> None:
    image = made(filesystem, tmp_path)
    assert disk(image) == Disk((Volume(filesystem, 0),), boots=False)
    inside = tmp_path / "partitioned.img"
    inside.write_bytes(partitioned(image.read_bytes()))
    assert disk(inside) == Disk((Volume(filesystem, MIB, 2),), boots=True)
    check_root(inside, filesystem)


@pytest.mark.parametrize("filesystem", [*MAKERS, "rofs"])
def test_a_cut_file_system_is_reported(filesystem: str, tmp_path: Path) -> None:
    image = made(filesystem, tmp_path)
    with image.open("r+b") as file:
        file.truncate(image.stat().st_size // 1024 * 512)
    with pytest.raises(Failed, match=rf"{filesystem}\.img is truncated: it has \d+ of \d+ bytes"):
        disk(image)


def test_a_cut_partition_is_reported(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(partitioned(zfs())[:-512])
    with pytest.raises(Failed, match="is truncated"):
        disk(image)


def test_an_entry_without_kind_or_length_is_no_partition(tmp_path: Path) -> None:
    """As a partition that was removed leaves it: beyond the disk, here."""
    content = bytearray(partitioned(rofs(9)))
    for place, kind, sectors in ((0x1DE, 0, 1 << 20), (0x1EE, 0x83, 0)):
        struct.pack_into("<4xB3x2I", content, place, kind, 1 << 20, sectors)
    image = tmp_path / "disk.img"
    image.write_bytes(content)
    assert disk(image) == Disk((Volume("rofs", MIB, 2),), boots=True)


def gpt(volume: bytes, start: int = 40) -> bytes:
    """With its third partition in the second entry that is used, as UEFI's specification has it."""
    first = b"\xea\x1e\x7c".ljust(0x1BE, b"\0")
    first += struct.pack("<8B2I", 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 0xFFFFFFFF)
    first = first.ljust(510, b"\0") + b"\x55\xaa"
    second = b"EFI PART".ljust(72, b"\0") + struct.pack("<QII", 2, 128, 128)
    sectors = (len(volume) + 511) // 512
    entries = [
        struct.pack("<16s16s2Q", bytes([kind]) * 16, b"unique", at, at + length - 1).ljust(
            128, b"\0"
        )
        for kind, at, length in ((1, 34, 2), (0, 0, 1), (2, start, sectors))
    ]
    head = first + second.ljust(512, b"\0") + b"".join(entries)
    return head.ljust(start * 512, b"\0") + volume.ljust(sectors * 512, b"\0")


def test_a_file_system_is_known_in_a_partition_of_a_gpt(tmp_path: Path) -> None:
    """The MBR before it may say that the disk has 2 TiB, if its maker did not know."""
    image = tmp_path / "disk.img"
    image.write_bytes(gpt(rofs(9)))
    assert disk(image) == Disk((Volume("rofs", 40 * 512, 3),), boots=True)
    image.write_bytes(gpt(rofs(9))[:-512])
    with pytest.raises(Failed, match="is truncated"):
        disk(image)


@pytest.mark.parametrize(("count", "step"), [(1, 0xFFFFFFFF), (20_000_000, 48), (1, 0)])
def test_a_partition_table_without_sense_is_refused_at_once(
    count: int, step: int, tmp_path: Path
) -> None:
    """A sparse file has room for any."""
    image = tmp_path / "disk.img"
    image.write_bytes(
        gpt(rofs(9)).replace(struct.pack("<2I", 128, 128), struct.pack("<2I", count, step))
    )
    os.truncate(image, 8 << 30)
    with pytest.raises(Failed, match=f"damaged partition table: {count} entries of {step} bytes"):
        disk(image)


def test_a_fixed_vhd_is_raw_once_it_is_converted_as_said(tmp_path: Path) -> None:
    if not shutil.which("qemu-img"):
        pytest.skip("qemu-img is not installed")
    (tmp_path / "raw").write_bytes(rofs(9))
    words = ["qemu-img", "convert", "-O", "vpc", "-o", "subformat=fixed", "raw", "disk.vhd"]
    subprocess.run(words, check=True, cwd=tmp_path)
    with pytest.raises(Failed, match="in VHD format") as error:
        disk(tmp_path / "disk.vhd")
    assert error.value.hint is not None
    _, _, command = error.value.hint.partition(": ")
    subprocess.run(shlex.split(command), check=True, cwd=tmp_path)
    assert disk(tmp_path / "disk.raw") == Disk((Volume("rofs", 0),), boots=False)


def test_a_disk_without_code_boots_not(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(partitioned(rofs(9), 1, code=b""))
    assert disk(image) == Disk((Volume("rofs", 512, 2),), boots=False)


def test_a_wrong_file_system_is_named_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(partitioned(rofs(9)))
    with pytest.raises(Failed, match=r"disk\.img holds rofs, not zfs"):
        check_root(tmp_path / "disk.img", "zfs")
    (tmp_path / "text").write_text("nothing of the kind")
    with pytest.raises(Failed, match="holds no known file system, not rofs"):
        check_root(tmp_path / "text", "rofs")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("qcow2", b"QFI\xfb".ljust(1024, b"\0")),
        ("VMDK", b"KDMV".ljust(1024, b"\0")),
        ("VMDK", b"# Disk DescriptorFile\nversion=1\n".ljust(1024, b"\0")),
        ("VDI", (b"<<< QEMU VM Virtual Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe")
         .ljust(1024, b"\0")),
        ("VHD", b"conectix".ljust(1024, b"\0")),
        ("VHD", bytes(1024) + b"conectix".ljust(512, b"\0")),
        ("VHDX", b"vhdxfile".ljust(1024, b"\0")),
    ],
)  # fmt: skip
def test_an_image_that_is_not_raw_is_known_by_its_content(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "disk.img").write_bytes(content)
    with pytest.raises(Failed, match=f"in {name} format") as error:
        disk(tmp_path / "disk.img")
    assert "-O raw" in (error.value.hint or "")


@pytest.mark.parametrize("ask", [kernel, disk])
def test_a_file_that_is_not_there_or_empty_is_reported(
    ask: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(Failed, match="No such file"):
        ask(tmp_path / "absent")
    (tmp_path / "empty").touch()
    for bad in ("empty", "."):
        with pytest.raises(Failed, match="is empty or not a regular file"):
            ask(tmp_path / bad)


def bzimage(paragraphs: int) -> bytes:
    """Linux's boot protocol: one setup sector more than the boot sector, then the kernel."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x1F4:0x1F8] = struct.pack("<I", paragraphs)
    head[0x202:0x206] = b"HdrS"
    return bytes(head) + bytes(paragraphs * 16)


def test_kernels_are_distinguished(tmp_path: Path) -> None:
    (tmp_path / "pvh").write_bytes(elf(b"\xf4"))
    (tmp_path / "bzimage").write_bytes(bzimage(7))
    assert kernel(tmp_path / "pvh") == Kernel(bzimage=False, pvh=True)
    assert kernel(tmp_path / "bzimage") == Kernel(bzimage=True, pvh=False)
    assert kernel(Path("/bin/true")) == Kernel(bzimage=False, pvh=False)


def test_foreign_kernels_are_reported(tmp_path: Path) -> None:
    foreign = bytearray(Path("/bin/true").read_bytes())
    foreign[18:20] = struct.pack("<H", 183)
    (tmp_path / "arm").write_bytes(foreign)
    with pytest.raises(Failed, match="an ELF file for aarch64, not x86_64"):
        kernel(tmp_path / "arm")
    (tmp_path / "text").write_text("#!/bin/sh\n" * 99)
    with pytest.raises(Failed, match="neither an ELF file nor a bzImage"):
        kernel(tmp_path / "text")


@pytest.mark.parametrize("kind", ["elf", "bzimage"])
@given(share=st.floats(0.05, 0.99))
@settings(max_examples=20)
def test_a_cut_kernel_is_reported(kind: str, share: float, tmp_path: Path) -> None:
    whole = Path("/bin/true").read_bytes() if kind == "elf" else bzimage(500)
    (tmp_path / "kernel").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(Failed, match=r"is truncated|neither an ELF"):
        kernel(tmp_path / "kernel")


@given(
    raw=st.binary(min_size=1, max_size=3000),
    magic=st.sampled_from(
        [
            (0, b""),
            (0, b"\x7fELF\x02\x01"),
            (0, b"hsqs"),
            (0, struct.pack("<Q", 0xDEADBEAD)),
            (1080, b"\x53\xef"),
            (1024, struct.pack("<I", 0xE0F5E1E2)),
            (0x202, b"HdrS"),
        ]
    ),
    signed=st.booleans(),
)
def test_no_bytes_are_more_than_refused(
    tmp_path: Path, raw: bytes, magic: tuple[int, bytes], signed: bool
) -> None:
    at, word = magic
    raw = raw[:at].ljust(at, b"\xff") + word + raw[at:]
    if signed and len(raw) > 512:
        raw = raw[:510] + b"\x55\xaa" + raw[512:]
    (tmp_path / "any").write_bytes(raw)
    for ask in (kernel, disk):
        with suppress(Failed):
            ask(tmp_path / "any")
