"""What the probe boots from: its root file system, and its kernel as each protocol wants it."""

import struct
import subprocess
from functools import reduce
from pathlib import Path

from firstlight.errors import Failed
from firstlight.native import native

FILE, _CONTENT = "bin/first", b"first light\n"
_SECTOR, _BLOCK = 512, 4096
_LEAST_DISK = 1 << 20  # SeaBIOS reads none of less than a cylinder
_KERNEL_UNITS = 0x1F4  # of a bzImage's header: its size in units of 16 bytes
_READ_PROBE = 0x1EE  # of disk.S: sectors at +2, the first of them at +8


def fnv1a(content: bytes) -> int:
    """The 32-bit sum of Fowler, Noll and Vo, as contrib/probe-guest/erofs.c has it."""
    return reduce(lambda past, byte: (past ^ byte) * 0x01000193 & 0xFFFFFFFF, content, 0x811C9DC5)


SUM = fnv1a(_CONTENT)


def root(directory: Path) -> Path:
    """An EROFS image that holds FILE, one for all instances of a batch. Raises Failed."""
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
            "it needs a few KiB of room, and no option of its own",
        )
    return image


def bzimage(directory: Path) -> Path:
    """The kernel in Linux's format, which firmware can boot."""
    image = directory / "probe.bzimage"
    setup, kernel = _bytes("bzimage.setup"), _padded(_bytes("probe.flat"), 16)
    struct.pack_into("<I", setup, _KERNEL_UNITS, len(kernel) // 16)
    image.write_bytes(setup + kernel)
    return image


def bootable(filesystem: Path | None, arguments: str, image: Path) -> Path:
    """A disk with a boot sector, ``arguments`` in the next, ``filesystem`` and then the kernel.

    EROFS leaves the first two sectors to boot loaders (Linux, fs/erofs/erofs_fs.h: the superblock
    is at 1024).
    """
    if len(arguments) >= _SECTOR:
        raise Failed(f"the probe's command line has {len(arguments)} bytes", "511 fit its sector")
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
