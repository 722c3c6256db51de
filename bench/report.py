"""What a report costs: CPU time of ``firstlight report`` over the runs of the demo."""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.marks import Mark

_FIRSTLIGHT = Path(sys.executable).parent / "firstlight"
_RUNS = {
    "containers": ("container-creation", "--instances", "1,10,50", "--repetitions", "4"),
    "networks": ("network-setup", "--instances", "1,50", "--repetitions", "4"),
    "agile": ("agile", "--instances", "1,50", "--repetitions", "4", "--runtime", "runc",
              "--no-trace"),
}  # fmt: skip
_TRACED = ("container-creation", "--runtime", "runc", "--instances", "1,10,50",
           "--repetitions", "6")  # fmt: skip
"""A run of 378 traced starts."""
_TIMES = 3


def measure() -> Iterator[Mark]:
    """CPU time (user and system) of whole processes, the least of some."""
    with tempfile.TemporaryDirectory() as directory:
        for name, words in _RUNS.items():
            _firstlight("run", *words, "--out", f"{directory}/{name}")
        every = [f"{directory}/{name}" for name in _RUNS]
        page = ("--html", f"{directory}/page.html")
        _firstlight("report", *every, *page)  # Vega's bundle is in the cache from here on
        traced = f"{directory}/traced"
        _firstlight("run", *_TRACED, "--out", traced)
        yield _cost("report --json of 378 traced starts", 3.0, "report", traced, "--json")
        yield _cost("report of the demo's three runs", 5.0, "report", *every)
        yield _cost("report --html of the demo's three runs", 5.0, "report", *every, *page)


def _cost(name: str, most: float, *words: str) -> Mark:
    taken = []
    for _ in range(_TIMES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _firstlight(*words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    seconds = min(taken)
    return Mark(
        f"CPU time of {name}, least of {_TIMES}",
        f"{seconds:.2f} s",
        f"≤ {most:g} s",
        seconds <= most,
    )


def _firstlight(*words: str) -> None:
    subprocess.run([str(_FIRSTLIGHT), *words], check=True, capture_output=True)
