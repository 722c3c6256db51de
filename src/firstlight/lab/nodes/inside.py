"""Measures an experiment on the node where it runs, in a Job.

    python3 -m firstlight.lab.nodes.inside         measure the order in the environment
    python3 -m firstlight.lab.nodes.inside send    write the run to standard output, as a tar file

The Job reports on its standard output by lines, an ``Event`` each, and ends when its run was sent
or nobody has fetched it in ten minutes. SIGTERM ends it, and removes what the run made.
"""

import os
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from firstlight.errors import FirstlightError, Unsupported, longer
from firstlight.files import write_whole
from firstlight.lab import runner
from firstlight.lab.experiments import catalogue
from firstlight.lab.nodes.order import VARIABLE, Event, Order
from firstlight.lab.schedule import Batch
from firstlight.model import Sample
from firstlight.trace import bpf

_RUN = Path("/run/firstlight-run")
_SENT = Path("/run/firstlight-sent")
_FETCH_SECONDS = longer(600.0)
_ALIVE_SECONDS = 5.0
_LOOK_SECONDS = 0.1


def main() -> None:
    """Measure, report, and wait until the run is fetched."""
    _know_node()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    order = msgspec.json.decode(os.environ[VARIABLE], type=Order)
    progress = _Progress()
    threading.Thread(target=progress.report, daemon=True).start()
    try:
        runner.run(_plan(order), _RUN, progress)
    except KeyboardInterrupt:
        sys.exit(1)
    except FirstlightError as error:
        why = f"{error.message} ({error.hint})" if error.hint else error.message
        say(Event("failed", message=why))
        sys.exit(1)
    say(Event("measured", 1.0))
    until = time.monotonic() + _FETCH_SECONDS
    while not _is_sent() and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)


def _is_sent() -> bool:
    """Whether the sender of the run has ended too: it would end with this process."""
    try:
        return not Path("/proc", _SENT.read_text()).exists()
    except FileNotFoundError:
        return False


def _know_node() -> None:
    """Take the node's identity from its first process; a run stores it as the machine's."""
    for name in ("os-release", "machine-id"):
        with suppress(OSError):
            Path("/etc", name).write_bytes(Path("/proc/1/root/etc", name).read_bytes())


def _plan(order: Order) -> runner.Plan:
    """The plan, without traces where the node's kernel gives none: latencies are worth having."""
    traced = order.traced
    if traced:
        try:
            bpf.probe()
        except Unsupported as error:
            say(Event("progress", message=f"without traces: {error.message}"))
            traced = False
    return runner.Plan(
        catalogue.find(order.experiment), order.options, order.repetitions, order.seed,
        traced=traced, cold=order.cold, deadline=order.deadline, budget=order.budget,
    )  # fmt: skip


class _Progress:
    """Reports progress every few seconds; silence means that the node is gone."""

    def __init__(self) -> None:
        self._done = 0.0

    def begin(self, batch: Batch, done: float) -> None:
        """Keep the share of the work that is done, for the next report."""
        del batch
        self._done = min(done, 1.0)

    def end(self, batch: Batch, samples: Sequence[Sample]) -> None:
        """The run has the samples."""

    def report(self) -> None:
        """Report until the process ends."""
        while True:
            say(Event("progress", self._done))
            time.sleep(_ALIVE_SECONDS)


def say(event: Event) -> None:
    """Write an event."""
    os.write(1, msgspec.json.encode(event) + b"\n")


def send() -> None:
    """Write the run as a tar file, and let the Job end."""
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        for path in sorted(_RUN.rglob("*")):
            with suppress(FileNotFoundError):  # it was written under another name
                tar.add(path, str(path.relative_to(_RUN)), recursive=False)
    sys.stdout.buffer.flush()
    write_whole(_SENT, str(os.getpid()).encode())


if __name__ == "__main__":
    send() if sys.argv[1:] == ["send"] else main()
