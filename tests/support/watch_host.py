"""``firstlight watch`` as a process, and the starts that it shows."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FIRSTLIGHT = Path(sys.executable).parent / "firstlight"
SECONDS = 60


class Watch:
    """A running ``firstlight watch --json``."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self._unread = b""

    def starts(self, prefix: str, count: int) -> list[dict[str, object]]:
        """The next starts of containers whose identifiers begin so."""
        seen: list[dict[str, object]] = []
        while len(seen) < count:
            record = json.loads(self._line(seen))
            if record["labels"]["id"].startswith(prefix):
                seen.append(record)
        return seen

    def start_of(self, container: str) -> dict[str, object]:
        """The next start of a container of this name."""
        seen: list[object] = []
        while True:
            record: dict[str, object] = json.loads(self._line(seen))
            labels = record["labels"]
            assert isinstance(labels, dict)
            if labels.get("container") == container:
                return record
            seen.append(labels)

    def _line(self, seen: object) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self._unread:
            assert select.select([self.process.stdout], [], [], SECONDS)[0], seen
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            assert more, seen
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _heed_hangups() -> None:
    """As from a terminal, also where the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def watching(*options: object) -> Iterator[Watch]:
    with subprocess.Popen(
        [FIRSTLIGHT, "watch", "--json", *map(str, options)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=_heed_hangups,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith(b"watching ")
            yield Watch(process)
            process.terminate()
            process.communicate(timeout=SECONDS)  # what others started meanwhile
        finally:
            process.kill()
