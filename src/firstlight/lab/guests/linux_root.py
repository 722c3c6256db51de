"""Makes the root of firstlight's Linux guest: an archive that the kernel unpacks, or an image.

It holds little more than the payload. The archive's format is "newc"; see
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import shutil
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import Failed, Unsupported
from firstlight.lab import rootfs
from firstlight.native import native

FILESYSTEMS = ("initramfs", "squashfs", "erofs", "ext4", "btrfs")
WRITABLE = ("ext4", "btrfs")
_MAKERS = {"ext4": ("mke2fs", "e2fsprogs"), "btrfs": ("mkfs.btrfs", "btrfs-progs")}
_MEGABYTES = {"ext4": 64, "btrfs": 128}  # btrfs needs at least 109


@dataclass(frozen=True)
class Member:
    """A file of an archive. ``mode`` includes its type; ``device`` is major, minor."""

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def archive(members: Iterable[Member]) -> bytes:
    """The members as an initramfs, uncompressed."""
    packed = bytearray()
    for number, member in enumerate([*members, Member("TRAILER!!!", 0)], start=1):
        name = member.name.encode() + b"\0"
        header = (number, member.mode, 0, 0, 1, 0, len(member.content), 0, 0, *member.device,
                  len(name), 0)  # fmt: skip
        packed += b"070701" + b"".join(b"%08X" % field for field in header) + name
        packed += bytes(-len(packed) % 4) + member.content
        packed += bytes(-len(packed) % 4)
    return bytes(packed)


def initramfs(modules: Iterable[tuple[str, bytes]], *, is_root: bool) -> bytes:
    """An initramfs with guest-init and the modules; with the payload as well if ``is_root``."""
    loaded = [(f"modules.d/{name}.ko", content) for name, content in modules]
    listed = "".join(f"/{path}\n" for path, _ in loaded).encode()
    files = [("modules", listed), *loaded]
    programs = [("init", native("guest-init").read_bytes())]
    if is_root:
        programs.append(("payload", native("payload").read_bytes()))
    return archive([
        *(Member(name, stat.S_IFDIR | 0o755) for name in ("dev", "root", "trace", "modules.d")),
        Member("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        *(Member(name, stat.S_IFREG | 0o755, content) for name, content in programs),
        *(Member(name, stat.S_IFREG | 0o644, content) for name, content in files),
    ])  # fmt: skip


def probe(filesystem: str) -> None:
    """Raise Unsupported if such a root cannot be made here."""
    if filesystem not in FILESYSTEMS:
        raise Unsupported(
            f"the Linux guest has no root of {filesystem}", f"valid: {', '.join(FILESYSTEMS)}"
        )
    maker, package = {**rootfs.MAKERS, **_MAKERS}.get(filesystem, ("true", ""))
    if not shutil.which(maker, path="/usr/sbin:/sbin:/usr/bin:/bin"):
        raise Unsupported(f"{maker} is not installed", f"apt-get install {package}")


def image(filesystem: str, directory: Path) -> Path:
    """The image of a root with the payload, made once per directory. Raises Failed."""
    tree = directory / "linux-root"
    if not tree.exists():
        for name in ("dev", "trace"):
            (tree / name).mkdir(parents=True)
        shutil.copy(native("payload"), tree / "payload")
    if filesystem not in _MAKERS:
        return rootfs.prepare(filesystem, tree, directory)
    made = directory / f"{tree.name}.{filesystem}"
    if not made.exists():
        with made.open("wb") as file:
            file.truncate(_MEGABYTES[filesystem] << 20)
        _run(made, {
            "ext4": ["mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0",
                     "-d", str(tree), str(made)],
            "btrfs": ["mkfs.btrfs", "-q", "--rootdir", str(tree), str(made)],
        }[filesystem])  # fmt: skip
    return made


def _run(made: Path, argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        made.unlink()
        raise Failed(
            f"{' '.join(argv)} failed: {done.stderr.strip()}", "check that enough memory is free"
        )
