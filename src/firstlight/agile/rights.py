"""What a runtime must be allowed to do, asked before it makes anything."""

import ctypes
import os
import re
import resource
import threading
from pathlib import Path

from firstlight.agile.function import FILES, FILES_MOST
from firstlight.agile.parts.roots import mount_id
from firstlight.errors import WITH_SUDO, Unsupported

_CAPABILITIES = {
    "CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7,
    "CAP_SETPCAP": 8, "CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27,
}  # fmt: skip
"""Without any of these some start fails, or an instance cannot be ended."""
_PROC = Path("/proc/thread-self")
_OPEN_MOST = Path("/proc/sys/fs/nr_open")
_ALL_USERS = ["0", "0", str((1 << 32) - 1)]
_MOUNTS, _DIRECTORIES = 0x20000, 0x200  # CLONE_NEWNS, CLONE_FS

_libc = ctypes.CDLL(None, use_errno=True)


def check() -> None:
    """Raise Unsupported if this process lacks a right that a runtime needs."""
    if os.geteuid() != 0:
        raise Unsupported("the runtime needs root", WITH_SUDO)
    if (_PROC / "uid_map").read_text().split() != _ALL_USERS:
        raise Unsupported(
            "this is root of a user namespace, and the runtime makes devices",
            "run it as the host's root",
        )
    match = re.search(r"^CapEff:\s*(\w+)$", (_PROC / "status").read_text(), re.MULTILINE)
    held = int(match[1], 16) if match else 0
    if missing := [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]:
        raise Unsupported(
            f"the runtime lacks {', '.join(missing)}",
            "run it as the host's root, or add these capabilities to its container or service",
        )
    if _is_chrooted():
        raise Unsupported(
            "/ is a chroot, which an instance would leave when it enters its mount namespace",
            "run it outside, in a container, or by systemd's RootDirectory=",
        )


def _is_chrooted() -> bool:
    """Whether / is not the root of the mount namespace, where one that enters it finds itself."""
    found: list[int] = []

    def work() -> None:
        own = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not _libc.unshare(_DIRECTORIES) and not _libc.setns(own, _MOUNTS):
                found.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
        finally:
            os.close(own)

    found.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
    mount_id(found[0])  # or the thread would fail, too
    thread = threading.Thread(target=work, name="chrooted")  # whose root is changed, and that ends
    thread.start()
    thread.join()
    places = {(os.fstat(each).st_ino, mount_id(each)) for each in found}
    for each in found:
        os.close(each)
    return len(places) > 1


def raise_open_files() -> None:
    """Raise this process's limit of open files, which is the node's and bounds instances'.

    Raises Unsupported if it cannot be had for one that asks for no other.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(most, min(FILES_MOST, int(_OPEN_MOST.read_text())))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, OSError):  # without CAP_SYS_RESOURCE on the host
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if most < FILES:
            raise Unsupported(
                f"at most {most} files may be open, and an instance may have {FILES}",
                f"raise the hard limit of open files: ulimit -Hn {FILES_MOST}",
            ) from None
