"""What a runtime must be allowed to do, asked before it makes anything."""

import os
import re
import resource
from pathlib import Path

from firstlight.agile.function import FILES, FILES_MOST
from firstlight.errors import WITH_SUDO, Unsupported

_CAPABILITIES = {
    "CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7,
    "CAP_SETPCAP": 8, "CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27,
}  # fmt: skip
"""Without any of these some start fails, or an instance cannot be ended."""
_PROC = Path("/proc/thread-self")
_ALL_USERS = ["0", "0", str((1 << 32) - 1)]


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


def raise_open_files() -> None:
    """Raise this process's limit of open files, which is the node's and bounds instances'.

    Raises Unsupported if it cannot be had for one that asks for no other.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(most, FILES_MOST)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, OSError):  # without CAP_SYS_RESOURCE, or fs.nr_open is lower
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if most < FILES:
            raise Unsupported(
                f"at most {most} files may be open, and an instance may have {FILES}",
                f"raise the hard limit of open files: ulimit -Hn {FILES_MOST}",
            ) from None
