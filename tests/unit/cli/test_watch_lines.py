"""The line of ``firstlight watch`` for a start."""

import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from tests.support.watched_start import start

from firstlight.cli.watch import _print
from firstlight.model import Ending, Sample, Stamps
from firstlight.report.live.watched_start import watched_start
from firstlight.store import SPAN_SCHEMA


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, "security 67 %, mount 33 %"),
        ({"phases": {}}, "(total alone)"),
        ({"latency": None}, "not executed"),
    ],
)
def test_a_line_says_what_is_known_of_a_start(
    capsys: pytest.CaptureFixture[str], changes: dict[str, object], what: str
) -> None:
    _print(start(**changes))  # type: ignore[arg-type]
    line = capsys.readouterr().out
    assert all(words in line for words in ("runc", "web/shop-0/nginx", *what.split(", ")))


def test_the_time_of_a_start_is_when_it_began() -> None:
    """On a busy machine it is analysed seconds later."""
    began = time.monotonic_ns() - 3_600_000_000_000
    sample = Sample(
        index=0, batch=0, instance=0, repetition=0, point={}, traced=False, ending=Ending.READY,
        stamps=Stamps(began, began, began + 1, began + 1), labels={"id": "c", "runtime": "runc"},
    )  # fmt: skip
    shown = datetime.fromisoformat(watched_start(sample, pl.DataFrame(schema=SPAN_SCHEMA)).time)
    assert abs(datetime.now(UTC) - timedelta(hours=1) - shown) < timedelta(minutes=1)


def test_an_end_that_takes_too_long_is_said() -> None:
    program = (
        "import os, signal\n"
        "from firstlight.cli.watch import _stop_signals\n"
        "with _stop_signals():\n"
        "    for number in (signal.SIGINT, signal.SIGALRM):\n"
        "        os.kill(os.getpid(), number)\n"
        "    print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGALRM, "")
    assert done.stderr.startswith("the last starts are not shown: ")
