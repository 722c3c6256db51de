"""Programs that end, with all that they start, when the script that runs them ends.

For root each runs in PID and mount namespaces of its own, so no process and no mount outlives it.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_TIED = ("setpriv", "--pdeathsig", "KILL")
_ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_ENTER = 'mount -t proc proc "$0/proc"; mount --bind /dev "$0/dev"; exec chroot "$0" "$@"'

terminated = threading.Event()


def listen() -> None:
    """Note SIGTERM and SIGINT in ``terminated``."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: terminated.set())


def in_root(root: Path, *words: str) -> list[str]:
    """The words that run a program in a root, with /proc and /dev."""
    return ["/bin/sh", "-ec", _ENTER, str(root), *words]


@contextmanager
def started(
    words: Sequence[str | Path],
    log: IO[str] | int,
    environment: Mapping[str, str] | None = None,
) -> Iterator["subprocess.Popen[str]"]:
    """A program, which is killed at the end if it still runs."""
    alone = _ALONE if os.geteuid() == 0 else ()
    with subprocess.Popen(
        [*_TIED, *alone, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        text=True, env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def run(
    words: Sequence[str | Path],
    log: IO[str] | int = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end; exits when terminated. ``stdout`` has all output, without a log."""
    with started(words, log, environment) as process:
        while not terminated.is_set():
            try:
                output, _ = process.communicate(timeout=1)
            except subprocess.TimeoutExpired:
                continue
            return subprocess.CompletedProcess(words, process.returncode, output)
    sys.exit(128 + signal.SIGTERM)
