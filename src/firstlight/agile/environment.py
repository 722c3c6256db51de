"""The default environment of instances."""

import time
from pathlib import Path

from firstlight import files
from firstlight.agile.function import Function
from firstlight.agile.parts import roots

HOST_NAME = "instance"
_PASSWD_MOST = 1 << 20
_LOOKS = 50


def defaults(function: Function, uid: int) -> dict[str, str]:
    """The variables of every instance of a function. The user's name and home are from the root
    file system, if it has the user.

    Any other user has the home /tmp, the only directory that it can write to.
    """
    name, home = _user(Path(function.rootfs), uid)
    named = {"USER": name, "LOGNAME": name} if name else {}
    return {"PATH": roots.PATH, "HOME": home or "/tmp", "HOSTNAME": HOST_NAME, **named}  # noqa: S108


def of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it is gone or inaccessible.

    While a process is in execve, the kernel shows none: retries for at most 50 ms.
    """
    text = ""
    for _ in range(_LOOKS):
        try:
            text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape")
        except OSError:
            return {}
        if text:
            break
        time.sleep(0.001)
    pairs = (word.partition("=") for word in text.split("\0"))
    return {name: value for name, separator, value in pairs if separator}


def _user(rootfs: Path, uid: int) -> tuple[str, str]:
    """The name and home in the root's /etc/passwd, each empty if missing. Layout: passwd(5)."""
    path = roots.inside(rootfs, "/etc/passwd")
    try:
        if path is None:
            return "", ""
        text = files.read_regular(path, _PASSWD_MOST)
    except OSError:
        return "", ""
    lines = text.decode(errors="surrogateescape").splitlines()
    for fields in (line.split(":") for line in lines):
        if len(fields) >= 6 and fields[2] == str(uid):
            return fields[0], fields[5] if fields[5].startswith("/") else ""
    return "", ""
