"""The user's guests: copies of their files, with the checksums that they had when added.

A guest is a directory of the catalogue: ``guest.json`` (an Entry) and its files. The catalogue is
FIRSTLIGHT_GUESTS, or firstlight/guests below XDG_DATA_HOME.
"""

import gzip
import os
import re
import shlex
import shutil
import struct
import subprocess
import zlib
from collections.abc import Mapping
from hashlib import file_digest, sha256
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from firstlight.errors import Failed, FirstlightError, UnknownName, Unsupported
from firstlight.host.facts import home
from firstlight.lab.guests import Guest, built_in, images, linux_kernel, linux_root, osv
from firstlight.lab.guests.generic import Generic
from firstlight.lab.guests.linux import Linux
from firstlight.lab.guests.osv import Osv
from firstlight.model import to_json

KINDS = ("osv", "linux", "generic")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
PARTS = ("kernel", "disk.img", "root", "initrd")
_ENTRY = "guest.json"
_GZIP, _QCOW2 = b"\x1f\x8b", b"QFI\xfb"
_QCOW2_HEADER, _QCOW2_DATA_FILE = struct.Struct(">IQ56xQ"), 1 << 2
"""Behind the magic: the version, the offset of the backing file's name, incompatible features."""


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One guest. ``sums`` are the SHA-256 sums of its files, by their names in its directory.

    ``program`` is the program that OSv runs, ``arguments`` the command line of any other kernel,
    ``ready`` the pattern of the console line that ends a generic guest's start.
    """

    name: str
    kind: str
    sums: dict[str, str] = {}
    sources: dict[str, str] = {}
    filesystem: str = ""
    program: str = ""
    arguments: str = ""
    ready: str = ""


def directory() -> Path:
    """The catalogue's directory."""
    own = os.environ.get("FIRSTLIGHT_GUESTS")
    data = os.environ.get("XDG_DATA_HOME") or home() / ".local/share"
    return Path(own) if own else Path(data) / "firstlight/guests"


def entries() -> list[Entry]:
    """All guests, sorted by name. Raises Failed if they cannot be read."""
    try:
        return [_entry(file) for file in sorted(directory().glob(f"[!.]*/{_ENTRY}"))]
    except OSError as error:
        raise Failed(
            f"cannot read the guest catalogue {error.filename}: {error.strerror}",
            "set FIRSTLIGHT_GUESTS to a directory that you may read",
        ) from error


def find(name: str) -> Entry:
    """One guest. Raises UnknownName, or Failed if its files have changed since it was added."""
    file = directory() / name / _ENTRY
    if not _NAME.fullmatch(name) or not file.is_file():
        raise UnknownName("guest", name, [entry.name for entry in entries()])
    entry = _entry(file)
    for part, expected in entry.sums.items():
        if _sum(file.parent / part) != expected:
            raise Failed(
                f"{file.parent / part} changed since guest {name} was added: its SHA-256 differs",
                f"add it again after firstlight guest remove {name}",
            )
    return entry


def guest(entry: Entry) -> Guest:
    """The guest that a hypervisor boots."""
    home = directory() / entry.name
    kernel, disk, root, initrd = (home / part if part in entry.sums else None for part in PARTS)
    if entry.kind == "linux":
        return Linux(entry.filesystem, kernel, name=entry.name)
    if entry.kind == "generic":
        return Generic(entry.name, entry.ready, kernel, disk, entry.arguments,
                       entry.filesystem or "unknown", initrd=initrd)  # fmt: skip
    return Osv(entry.name, entry.filesystem, kernel, disk, entry.program, root)


def add(entry: Entry, files: Mapping[str, Path]) -> Entry:
    """Copy a guest's ``files``, named as in PARTS, into the catalogue; returns the full entry.

    ``root`` is a directory that OSv mounts as its root by virtio-fs.

    Gzipped kernels and qcow2 images are stored unpacked; an ``initrd`` is the kernel's to unpack.
    Raises Failed for files that are missing, truncated, for another architecture or of another
    kind.
    """
    _check_words(entry)
    home = directory() / entry.name
    making = directory() / f".{entry.name}.{os.getpid()}"
    try:
        making.mkdir(parents=True)
        whole = {part: source if part == "initrd" else _unpack(source, making / part)
                 for part, source in files.items()}  # fmt: skip
        entry = _check(entry, whole)
        for part, source in whole.items():
            if source != making / part:
                _run("cp", "-RH", "--sparse=always", "--reflink=auto", source, making / part)
            if part != "root":
                (making / part).chmod(0o444)
        entry = replace(
            entry,
            sums={part: _sum(making / part) for part in files},
            sources={part: str(source.absolute()) for part, source in files.items()},
        )
        (making / _ENTRY).write_bytes(msgspec.json.format(to_json(entry)))
        making.rename(home)
    except OSError as error:
        raise Failed(
            f"cannot store guest {entry.name} in {home.parent}: {error.strerror}",
            "free some space, or set FIRSTLIGHT_GUESTS to another directory",
        ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return entry


def remove(name: str) -> None:
    """Remove a guest and its files. Raises UnknownName."""
    home = directory() / name
    if not _NAME.fullmatch(name) or not home.is_dir():
        raise UnknownName("guest", name, [entry.name for entry in entries()])
    shutil.rmtree(home)


def _entry(file: Path) -> Entry:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Entry)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Failed(
            f"cannot read the guest {file}: {error}",
            f"delete {file.parent} and add the guest again",
        ) from error


def _check_words(entry: Entry) -> None:
    if entry.kind not in KINDS:
        raise UnknownName("kind of guest", entry.kind, KINDS)
    if not _NAME.fullmatch(entry.name):
        raise FirstlightError(
            f"{entry.name!r} is not a valid guest name",
            "use lower-case letters, digits, '.', '_' and '-'",
        )
    if entry.name in built_in.NAMES:
        raise FirstlightError(
            f"{entry.name} is one of firstlight's own guests", "choose another --name"
        )
    if entry.kind == "generic" and not entry.ready:
        raise FirstlightError(
            f"guest {entry.name} has no ready line",
            "give --ready a pattern that matches the line it prints when ready",
        )
    for words in (entry.program, entry.arguments, entry.ready):
        if not words.isprintable():
            raise FirstlightError(
                f"{words!a} is not printable text", "leave out control characters"
            )
    if entry.ready and not _is_pattern(entry.ready):
        raise FirstlightError(
            f"--ready {entry.ready!r} is not a POSIX extended regular expression",
            "try it with grep -E",
        )
    if (directory() / entry.name).exists():
        raise FirstlightError(
            f"guest {entry.name} already exists",
            f"remove it with firstlight guest remove {entry.name}, or choose another --name",
        )


def _is_pattern(words: str) -> bool:
    """Whether it is a POSIX extended regular expression; grep knows, Python's re does not."""
    command = ["grep", "-E", "-e", words, "/dev/null"]
    return subprocess.run(command, capture_output=True, check=False).returncode < 2


def _check(entry: Entry, files: Mapping[str, Path]) -> Entry:
    """Fill in the entry's file system. Raises Failed for files that cannot boot."""
    if not files:
        raise FirstlightError(
            f"guest {entry.name} has neither a kernel nor an image", "give --kernel or --image"
        )
    kernel, disk, root, initrd = (files.get(part) for part in PARTS)
    if initrd:
        _check_initrd(entry, kernel, initrd)
    if root and entry.kind != "osv":
        raise FirstlightError(
            f"a guest of kind {entry.kind} cannot have a directory as its image",
            "give an image file; only OSv takes a directory",
        )
    if entry.kind == "linux":
        return _check_linux(entry, kernel, disk)
    if kernel:
        osv.check_kernel(kernel) if entry.kind == "osv" else images.kernel(kernel)
    held = [volume.filesystem for volume in images.disk(disk).volumes] if disk else []
    if entry.kind == "osv" and not entry.filesystem:
        known = [filesystem for filesystem in held if filesystem in osv.FILESYSTEMS]
        other = "virtiofs" if root else "ramfs"
        entry = replace(entry, filesystem=known[0] if known else other)
    elif held and not entry.filesystem:
        entry = replace(entry, filesystem=held[0])
    if disk and entry.filesystem not in ("", *osv.DISKLESS):
        check = osv.check_disk if entry.kind == "osv" else images.check_root
        check(disk, entry.filesystem)
    if disk and not kernel and not images.disk(disk).boots:
        raise Failed(
            f"guest {entry.name} has no kernel, and image {disk} no boot loader",
            "give --kernel too, or an image that boots",
        )
    return entry


def _check_initrd(entry: Entry, kernel: Path | None, initrd: Path) -> None:
    if entry.kind != "generic" or not kernel:
        lacks = "has no kernel for" if entry.kind == "generic" else "cannot have"
        raise FirstlightError(
            f"guest {entry.name} of kind {entry.kind} {lacks} an initramfs",
            "add it as kind generic, with --kernel",
        )
    images.initramfs(initrd)


def _check_linux(entry: Entry, kernel: Path | None, disk: Path | None) -> Entry:
    if kernel is None or disk is not None:
        raise FirstlightError(
            f"guest {entry.name} of kind linux takes a kernel only; firstlight makes its root",
            "leave out --image, or add the image as kind generic",
        )
    linux_kernel.load(kernel)
    entry = replace(entry, filesystem=entry.filesystem or Linux.filesystem)
    if entry.filesystem not in linux_root.FILESYSTEMS:
        raise UnknownName("file system of Linux", entry.filesystem, linux_root.FILESYSTEMS)
    return entry


def _unpack(source: Path, target: Path) -> Path:
    """``source`` itself, or ``target`` with its unpacked content."""
    if source.is_dir():
        return source
    if source.is_fifo():
        raise Failed(f"{source} is a pipe", "give a regular file")
    try:
        with source.open("rb") as file:
            magic = file.read(4)
            rest = file.read(_QCOW2_HEADER.size)
        if magic[:2] == _GZIP:
            with gzip.open(source) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file)
            return target
    except (EOFError, zlib.error) as error:
        raise Failed(f"{source} is truncated or damaged: {error}", "download it again") from error
    except OSError as error:
        raise Failed(
            f"cannot read {source}: {error.strerror or error}", "give a readable file"
        ) from error
    if magic == _QCOW2:
        _check_qcow2(source, rest)
        # convert reads what is missing as 0; of an image with leaked clusters nothing is missing
        _run("qemu-img", "check", "-q", "-f", "qcow2", source, harmless=3)
        _run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", source, target)
        return target
    return source


def _check_qcow2(source: Path, header: bytes) -> None:
    """Refuse an image that names other files: whoever made it may not read what root may.

    Source: QEMU's docs/interop/qcow2.rst.
    """
    version, backing, features = _QCOW2_HEADER.unpack(header.ljust(_QCOW2_HEADER.size, b"\0"))
    if backing or (version >= 3 and features & _QCOW2_DATA_FILE):
        raise Failed(
            f"image {source} takes its content from another file",
            f"make it whole: qemu-img convert -O qcow2 {shlex.quote(str(source))} whole.qcow2",
        )


def _run(*command: str | Path, harmless: int = 0) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Unsupported(
            f"{command[0]}, which unpacks qcow2, is not installed", "apt-get install qemu-utils"
        ) from error
    if done.returncode not in (0, harmless):
        raise Failed(
            f"{command[0]} failed: {done.stderr.strip()}", "check that the file is complete"
        )


def _sum(file: Path) -> str:
    """The SHA-256 of a file; for a directory, of its sorted paths and their content."""
    if file.is_dir():
        total = sha256()
        for path in sorted(file.rglob("*")):
            is_content = path.is_file() and not path.is_symlink()
            what = _sum(path) if is_content else path.readlink() if path.is_symlink() else "/"
            total.update(f"{path.relative_to(file)}\0{what}\0".encode(errors="surrogateescape"))
        return total.hexdigest()
    try:
        with file.open("rb") as stream:
            return file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise Failed(f"cannot read {file}: {error.strerror}", "add the guest again") from error
