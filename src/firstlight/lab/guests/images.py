"""Identifies kernel files and disk images by their content, and checks that they are complete."""

import shlex
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from firstlight.errors import Failed

SECTOR = 512
_BYTES_ENOUGH = 256 << 10  # enough to identify a volume's file system: ZFS writes its label last
_MACHINES = {3: "i386", 21: "ppc64", 22: "s390x", 40: "arm", 183: "aarch64", 243: "riscv"}
_X86_64 = 62
_GPT = 0xEE
_ENTRIES_MOST, _ENTRY_LEAST, _ENTRY_MOST = 1024, 48, 4096  # tools make 128 entries of 128 bytes
_CONTAINERS = (
    ("qcow2", 0, b"QFI\xfb"), ("VMDK", 0, b"KDMV"), ("VMDK", 0, b"COWD"),
    ("VMDK", 0, b"# Disk DescriptorFile"), ("VDI", 0x40, b"\x7f\x10\xda\xbe"),
    ("VHD", 0, b"conectix"), ("VHDX", 0, b"vhdxfile"), ("QED", 0, b"QED\0"),
)  # fmt: skip
_INITRAMFS = (
    b"070701", b"070702", b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18",
    b"BZh", b"\x5d\0\0", b"\x89LZO",
)  # fmt: skip
"""Beginnings of cpio, gzip, xz, zstd, lz4, bzip2, lzma and lzo, as in Linux's lib/decompress.c."""
_HINT_WHOLE = "copy or download it again and compare the sizes"


@dataclass(frozen=True)
class Kernel:
    """A complete x86-64 kernel. ``pvh``: it has a PVH entry; ``bzimage``: Linux's own format."""

    bzimage: bool
    pvh: bool


@dataclass(frozen=True)
class Volume:
    """A file system in an image, starting at byte ``start``.

    ``partition`` is its number in the partition table, from 1; 0 is the whole disk.
    """

    filesystem: str
    start: int
    partition: int = 0


@dataclass(frozen=True)
class Disk:
    """A complete raw disk image. ``boots``: its first sector has a boot loader."""

    volumes: tuple[Volume, ...]
    boots: bool


def kernel(file: Path) -> Kernel:
    """Identify a kernel. Raises Failed if it is missing, truncated or not for x86-64."""
    size = _size("kernel", file)
    with file.open("rb") as stream:
        head = stream.read(64 << 10)
        if head[:4] == b"\x7fELF":
            return Kernel(bzimage=False, pvh=_elf(file, stream, head, size))
    if head[0x202:0x206] == b"HdrS" and len(head) > 0x1F8:
        (paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
        _whole("kernel", file, ((head[0x1F1] or 4) + 1) * SECTOR + paragraphs * 16, size)
        return Kernel(bzimage=True, pvh=False)
    raise Failed(f"kernel {file} is neither an ELF file nor a bzImage", "give an x86-64 kernel")


def initramfs(file: Path) -> None:
    """Raise Failed if it is missing, or begins with nothing that Linux unpacks."""
    _size("initramfs", file)
    with file.open("rb") as stream:
        head = stream.read(8)
    if not head.startswith(_INITRAMFS):
        raise Failed(
            f"initramfs {file} is neither a cpio archive nor compressed", "give an initramfs"
        )


def disk(file: Path) -> Disk:
    """Identify a disk image. Raises Failed if it is missing, truncated or not raw."""
    size = _size("image", file)
    with file.open("rb") as stream:
        sector = stream.read(SECTOR)
        stream.seek(max(size - SECTOR, 0))
        if container := _container(sector, stream.read(SECTOR)):
            guess = "-f vpc " if container == "VHD" else ""  # qemu-img knows no footer alone
            raise Failed(
                f"image {file} is in {container} format",
                f"convert it: qemu-img convert {guess}-O raw {shlex.quote(str(file))} disk.raw",
            )
        partitioned = sector[510:] == b"\x55\xaa"
        starts = {0: 0}
        for number, start, end in _partitions(file, stream, size) if partitioned else ():
            _whole("image", file, max(start, end) * SECTOR, size)
            starts[number] = start * SECTOR
        volumes = []
        for number, start in starts.items():
            stream.seek(start)
            volume = _volume(stream.read(_BYTES_ENOUGH))
            if volume:
                filesystem, length = volume
                _whole("image", file, start + length, size)
                volumes.append(Volume(filesystem, start, number))
    return Disk(tuple(volumes), boots=partitioned and any(sector[:3]))


def _partitions(file: Path, stream: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """The number, first sector and end of each partition of an MBR, or of the GPT behind one."""
    stream.seek(0)
    first, second = stream.read(SECTOR), stream.read(SECTOR)
    if _GPT in first[0x1C2:0x1FE:16] and second[:8] == b"EFI PART":
        table, count, step = struct.unpack_from("<QII", second.ljust(SECTOR, b"\0"), 72)
        if count > _ENTRIES_MOST or not _ENTRY_LEAST <= step <= _ENTRY_MOST:
            raise Failed(f"image {file} has a damaged partition table: {count} entries of {step} "
                         "bytes", "give another image")  # fmt: skip
        _whole("image", file, table * SECTOR + count * step, size)
        stream.seek(table * SECTOR)
        for number in range(1, count + 1):
            kind, start, last = struct.unpack_from("<16s16x2Q", stream.read(step))
            if any(kind):
                yield number, start, last + 1
        return
    for number in range(1, 5):
        kind, start, sectors = struct.unpack_from("<4xB3x2I", first, 0x1AE + 16 * number)
        if sectors and kind:
            yield number, start, start + sectors


def _container(first: bytes, last: bytes) -> str | None:
    """The format of an image that is not raw, by its first and last sector; None if it may be.

    Sources: QEMU's docs/interop/qcow2.txt, VMware's Virtual Disk Format 5.0, VirtualBox's
    VDICore.h, Microsoft's VHD specification (a fixed disk has no more than a footer) and MS-VHDX.
    """
    for name, start, magic in _CONTAINERS:
        if first[start : start + len(magic)] == magic:
            return name
    return "VHD" if last[:8] == b"conectix" else None


def check_root(file: Path, filesystem: str) -> None:
    """Raise Failed if ``file`` is not a complete raw image with ``filesystem``."""
    held = [volume.filesystem for volume in disk(file).volumes]
    if filesystem not in held:
        raise Failed(
            f"image {file} holds {' and '.join(held) or 'no known file system'}, not {filesystem}",
            "give its file system with --filesystem, or give another image",
        )


def _size(what: str, file: Path) -> int:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise Failed(f"{what} {file}: {error.strerror}", "give a readable file") from error
    if not file.is_file() or not size:
        raise Failed(f"{what} {file} is empty or not a regular file", _HINT_WHOLE)
    return size


def _whole(what: str, file: Path, needed: int, size: int) -> None:
    if needed > size:
        raise Failed(
            f"{what} {file} is truncated: it has {size} of {needed} bytes",
            _HINT_WHOLE,
        )


def _elf(file: Path, stream: BinaryIO, head: bytes, size: int) -> bool:
    """Whether it has a PVH entry, the ELF note "Xen" of type 18 (XEN_ELFNOTE_PHYS32_ENTRY)."""
    if len(head) < 64:
        _whole("kernel", file, 64, size)
    (machine,) = struct.unpack_from("<H", head, 18)
    if machine != _X86_64 or head[4] != 2:
        name = _MACHINES.get(machine, f"machine {machine}")
        raise Failed(
            f"kernel {file} is an ELF file for {name}, not x86_64", "give an x86-64 kernel"
        )
    table, sections = struct.unpack_from("<QQ", head, 32)
    step, count, section_step, section_count = struct.unpack_from("<4H", head, 54)
    _whole("kernel", file, table + step * count, size)
    _whole("kernel", file, sections + section_step * section_count, size)
    pvh = False
    stream.seek(table)
    headers = stream.read(step * count)
    for at in range(0, len(headers) - 55, step) if step >= 56 else ():
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", headers, at)
        _whole("kernel", file, offset + length, size)
        if kind == 4:  # PT_NOTE
            stream.seek(offset)
            pvh |= any(note == (b"Xen\0", 18) for note in _notes(stream.read(length)))
    return pvh


def _notes(section: bytes) -> Iterator[tuple[bytes, int]]:
    at = 0
    while at + 12 <= len(section):
        name, description, kind = struct.unpack_from("<III", section, at)
        yield section[at + 12 : at + 12 + name], kind
        at += 12 + (name + 3 & ~3) + (description + 3 & ~3)


def _volume(head: bytes) -> tuple[str, int] | None:
    """The file system of a volume that begins with these bytes, and its minimum size."""
    head = head.ljust(_BYTES_ENOUGH, b"\0")

    def word(at: int) -> int:
        return int.from_bytes(head[at : at + 4], "little")

    def long(at: int) -> int:
        return int.from_bytes(head[at : at + 8], "little")

    if long(0) == 0xDEADBEAD:  # OSv fs/rofs/rofs.hh
        return "rofs", (long(24) + long(32)) * long(16)
    if head[:4] == b"hsqs":
        return "squashfs", long(40)
    if word(1024) == 0xE0F5E1E2:
        return "erofs", word(1024 + 36) << head[1024 + 12]
    if head[1080:1082] == b"\x53\xef" and word(1048) <= 6:  # blocks of 64 KiB at most
        return "ext", word(1028) << (10 + word(1048))
    if head[0x10040:0x10048] == b"_BHRfS_M":
        return "btrfs", long(0x10070)
    if any(long(at) == 0x00BAB10C for at in range(128 << 10, 256 << 10, 1024)):  # an uberblock
        return "zfs", 0
    return None
