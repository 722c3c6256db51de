"""Makes the probe's images: its root file system, and its kernel in each protocol's format."""

import struct
import subprocess
from functools import reduce
from pathlib import Path

from firstlight.errors import Failed
from firstlight.native import native

FILE, _CONTENT = "bin/first", b"first light\n"
_SECTOR, _BLOCK = 512, 4096
_LEAST_DISK = 1 << 20  # SeaBIOS refuses disks smaller than a cylinder
_KERNEL_UNITS = 0x1F4  # in a bzImage's header: the size in units of 16 bytes
_READ_PROBE = 0x1EE  # in disk.S: the number of sectors at +2, the first sector at +8


def fnv1a(content: bytes) -> int:
    """The 32-bit hash of Fowler, Noll and Vo, as in contrib/probe-guest/erofs.c."""
    return reduce(lambda past, byte: (past ^ byte) * 0x01000193 & 0xFFFFFFFF, content, 0x811C9DC5)


SUM = fnv1a(_CONTENT)


def root(directory: Path) -> Path:
    """An EROFS image with FILE, one for all instances of a batch. Raises Failed."""
    image = directory / "probe.erofs"
    if image.exists():
        return image
    file = directory / "probe-root" / FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(_CONTENT)
    done = subprocess.run(
        ["mkfs.erofs", "-T0", image, directory / "probe-root"], capture_output=True, text=True
    )
    if done.returncode:
        image.unlink(missing_ok=True)
        raise Failed(
            f"mkfs.erofs cannot make {image}: {done.stderr.strip()}",
            "free some memory",
        )
    return image


def bzimage(directory: Path) -> Path:
    """The kernel as a bzImage, which firmware can boot."""
    image = directory / "probe.bzimage"
    setup, kernel = _bytes("bzimage.setup"), _padded(_bytes("probe.flat"), 16)
    struct.pack_into("<I", setup, _KERNEL_UNITS, len(kernel) // 16)
    image.write_bytes(setup + kernel)
    return image


def bootable(filesystem: Path | None, arguments: str, image: Path) -> Path:
    """A disk: boot sector, ``arguments`` in the next sector, ``filesystem``, then the kernel.

    EROFS leaves the first two sectors to boot loaders: its superblock is at 1024 (Linux,
    fs/erofs/erofs_fs.h).
    """
    if len(arguments) >= _SECTOR:
        raise Failed(
            f"the probe's command line is too long: {len(arguments)} bytes", "at most 511 bytes fit"
        )
    content = bytearray(filesystem.read_bytes() if filesystem else bytes(_BLOCK))
    kernel = _padded(_bytes("probe.flat"), _SECTOR)
    loader = _bytes("disk.boot")
    struct.pack_into("<H", loader, _READ_PROBE + 2, len(kernel) // _SECTOR)
    struct.pack_into("<Q", loader, _READ_PROBE + 8, len(content) // _SECTOR)
    content[: 2 * _SECTOR] = loader + arguments.encode().ljust(_SECTOR, b"\0")
    image.write_bytes((content + kernel).ljust(_LEAST_DISK, b"\0"))
    return image


def _bytes(name: str) -> bytearray:
    return bytearray(native(f"guest/{name}").read_bytes())


def _padded(content: bytearray, unit: int) -> bytearray:
    return content.ljust(-(-len(content) // unit) * unit, b"\0")
