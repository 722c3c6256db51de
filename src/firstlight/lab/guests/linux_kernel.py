"""Linux kernels: finds them, unpacks them, and resolves their modules."""

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import Failed, Unsupported
from firstlight.lab.guests import images

UNPACKED = Path(sys.prefix) / "libexec/linux/boot"
"""Where ``make setup`` unpacks Debian's package without installing it."""
_PLACES = (Path("/boot"), UNPACKED)
_NAMES = "vmlinuz-*-cloud-amd64"

_SECTOR = 512
_SETUP_SECTORS, _KERNEL_VERSION, _LOAD_FLAGS, _PAYLOAD = 0x1F1, 0x20E, 0x236, 0x248
_64_BIT = 1  # XLF_KERNEL_64
_RELEASE = re.compile(rb"(\d[a-zA-Z0-9._+~-]{0,63})[ \0]")
_VERSION = re.compile(rb"Linux version " + _RELEASE.pattern)
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_UNPACKERS: tuple[tuple[bytes, tuple[str, ...], str], ...] = (
    (b"\x1f\x8b", ("gzip", "-dc"), "gzip"),
    (b"\xfd7zXZ", ("xz", "-dc"), "xz-utils"),
    (b"BZh", ("bzip2", "-dc"), "bzip2"),
    (b"\x5d\0\0", ("xz", "-dc", "--format=lzma"), "xz-utils"),
    (b"\x02\x21\x4c\x18", ("lz4", "-dcq"), "lz4"),
    (b"\x28\xb5\x2f\xfd", ("zstd", "-dcq"), "zstd"),
)


@dataclass(frozen=True)
class Kernel:
    """A complete Linux kernel for x86-64: a bzImage, or the ELF file that it unpacks to.

    ``modules`` is the directory of its modules; None if everything is built in.
    """

    image: Path
    bzimage: bool
    version: str
    modules: Path | None


def newest() -> Path:
    """Debian's newest installed cloud kernel. Raises Unsupported if there is none."""
    images = [file for place in _PLACES for file in place.glob(_NAMES)]
    if not images:
        raise Unsupported(
            "no Linux kernel to boot was found",
            "apt-get install linux-image-cloud-amd64",
        )
    return max(images, key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)])


def load(image: Path) -> Kernel:
    """Identify a Linux kernel. Raises Failed if it is missing, truncated or not for x86-64."""
    bzimage = images.kernel(image).bzimage
    raw = image.read_bytes()
    if bzimage:
        (flags,) = struct.unpack_from("<H", raw, _LOAD_FLAGS)
        if not flags & _64_BIT:
            raise Failed(
                f"kernel {image} is a bzImage for i386, not x86_64", "give an x86-64 kernel"
            )
        (offset,) = struct.unpack_from("<H", raw, _KERNEL_VERSION)
        release = _RELEASE.match(raw, offset + _SECTOR)
    else:
        release = _VERSION.search(raw)
    if not release:
        raise Failed(f"kernel {image} is not Linux", "give a bzImage or a vmlinux")
    named = release[1].decode()
    beside = image.absolute().parent.parent / "lib/modules" / named
    modules = [place for place in (beside, Path("/lib/modules") / named) if place.is_dir()]
    return Kernel(image, bzimage, named, modules[0] if modules else None)


def uncompress(kernel: Kernel, directory: Path) -> Path:
    """The ELF file that a kernel unpacks itself to, made once per directory.

    Raises Failed if it cannot be unpacked. See Documentation/arch/x86/boot.rst, payload_offset.
    """
    if not kernel.bzimage:
        return kernel.image
    elf = directory / f"vmlinux-{kernel.version}"
    if not elf.exists():
        raw = kernel.image.read_bytes()
        offset, length = struct.unpack_from("<II", raw, _PAYLOAD)
        start = ((raw[_SETUP_SECTORS] or 4) + 1) * _SECTOR + offset
        elf.write_bytes(_unpack(kernel.image, raw[start : start + length], sized=True))
    return elf


def modules(kernel: Kernel, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """The files of modules and their dependencies, in load order.

    A missing module is built in, or the guest reports it. Names have no hyphens.
    """
    if kernel.modules is None:
        return []
    there = {
        file.name.partition(".ko")[0].replace("-", "_"): file
        for file in (kernel.modules / "kernel").rglob("*.ko*")
    }
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in there:
            return
        raw = _unpack(there[name], there[name].read_bytes(), sized=False)
        depends = _DEPENDS.search(raw)
        for other in depends[1].decode().split(",") if depends else ():
            add(other.replace("-", "_"))
        ordered[name] = raw

    for name in wanted:
        add(name)
    return list(ordered.items())


def _unpack(file: Path, raw: bytes, *, sized: bool) -> bytes:
    """Unpack ``raw``. If ``sized``, the length follows the data, except in gzip's own format."""
    for magic, command, package in _UNPACKERS:
        if not raw.startswith(magic):
            continue
        if not shutil.which(command[0]):
            raise Unsupported(
                f"{command[0]}, which unpacks {file}, is not installed",
                f"apt-get install {package}",
            )
        if sized and command[0] != "gzip":
            raw = raw[:-4]
        done = subprocess.run(command, input=raw, capture_output=True, check=False)
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip()
            raise Failed(f"cannot unpack {file}: {reason}", "copy or download it again")
        return done.stdout
    return raw
