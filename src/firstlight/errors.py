"""Errors: each names the object, the fact and, in its hint, the remedy.

The command line prints ``message`` and ``hint`` and exits with ``exit_status``. Here are the
remedies that many share, too, and the scale of all deadlines, which tells failure from slowness.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

_SUDO_FINDS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""sudo's secure_path of Debian. It has no directory of a user, as pipx and uv install to."""


def _with_sudo() -> str:
    words = "run firstlight with sudo"
    if any(os.access(f"{directory}/firstlight", os.X_OK) for directory in _SUDO_FINDS):
        return words
    program = sys.argv[0] if sys.argv else ""
    is_script = program.rpartition("/")[2] == "firstlight"
    command = (program,) if is_script else (sys.executable or "python3", "-m", "firstlight")
    return f"{words}: sudo {shlex.join(command)}"


WITH_SUDO = _with_sudo()
"""The remedy where root is needed."""
WITH_ADMIN = "run firstlight as root, with CAP_SYS_ADMIN"
"""The remedy where root has too few rights, as in a container."""
WRITABLE_CGROUPS = (
    "mount a cgroup file system that it may write to, as --privileged or "
    "--volume /sys/fs/cgroup:/sys/fs/cgroup do"
)
"""The remedy in a container whose cgroups are read-only."""
DEBIAN = Path("/usr/lib/firstlight")
"""Where Debian's package lies, with every extra (mk/deb.py)."""
SLOWER = "FIRSTLIGHT_SLOWER"
"""The variable with the scale of deadlines. ``native/common/clock.h`` reads it too."""
_MOST_SLOWER = 1000
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")  # as both Python and C read it


def install_extra(extra: str) -> str:
    """The remedy where a package of an extra of pyproject.toml is missing."""
    if Path(__file__).is_relative_to(DEBIAN):
        return "install Debian's package firstlight again: it has the extra " + extra
    return install_package(f"firstlight[{extra}]")


def install_package(package: str) -> str:
    """The command that adds a package to the interpreter that runs, as pip, pipx and uv each have
    environments of their own; those of uv have no pip. zsh expands brackets.
    """
    from importlib.util import find_spec  # takes a millisecond

    pip = "{} -m pip install" if find_spec("pip") else "uv pip install --python {}"
    return f"{pip.format(shlex.quote(sys.executable))} '{package}'"


class FirstlightError(Exception):
    """Base of all errors. ``message`` names the object and the fact, ``hint`` the remedy."""

    exit_status = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Unsupported(FirstlightError):
    """This machine lacks a kernel feature, a privilege, a program or space."""


class NotApplicable(Unsupported):
    """A combination that exists on no machine, whatever is installed."""


class UnknownName(FirstlightError):
    """A name that is not in a list; the hint shows the list, and first the most similar name."""

    def __init__(self, what: str, name: str, valid: Iterable[str]) -> None:
        from difflib import get_close_matches

        names = list(valid)
        meant = "".join(f"did you mean {near}? " for near in get_close_matches(name, names, 1))
        super().__init__(f"unknown {what} {name!r}", f"{meant}valid: {', '.join(names) or 'none'}")


class BadRun(FirstlightError):
    """A run that cannot be read: damaged, foreign, or of a newer schema."""


class Failed(FirstlightError):
    """A program or a system call that firstlight needs has failed."""


def printable(text: str) -> str:
    """A text that others wrote, on one line and without control characters of terminals."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def describe(error: OSError) -> str:
    """The fact of a failed call, after the file that it was about if there is one."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def longer(seconds: float) -> float:
    """A deadline on this machine. Deadlines are chosen for the machines of today; where everything
    takes N times as long, as under emulation, FIRSTLIGHT_SLOWER=N makes them N times as long.
    Raises FirstlightError if the variable is not valid.
    """
    word = os.environ.get(SLOWER) or "1"
    times = float(word) if _NUMBER.fullmatch(word) else 0.0
    if not 1 <= times <= _MOST_SLOWER:
        raise FirstlightError(f"{SLOWER}={word} is not a number from 1 to {_MOST_SLOWER}",
                              "unset it, or say how many times slower this is")  # fmt: skip
    return seconds * times


def deadline_variable() -> dict[str, str]:
    """The environment of a program that gets no other variable."""
    word = os.environ.get(SLOWER)
    return {SLOWER: word} if word else {}
