"""Measures firstlight's marks: ``python -m bench [PART...]``, as root.

Prints a line per mark and writes build/bench.json. Each part runs in its own process, since the lab
moves a process into namespaces for good. What fails or takes too long is a missed mark, and what is
left is measured. Exit status 1 if a mark is missed.
"""

import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.marks import ROW_SECONDS, Mark, deadline, failed
from firstlight.host.workspace import unshare

PARTS = (
    "startup",
    "spans",
    "attribution",
    "independent",
    "overhead",
    "cni",
    "pods",
    "vm",
    "agile",
    "agile_node",
    "rate",
    "wasm",
    "functions",
    "report",
    "watch",
)
_TRACEFS = Path("/sys/kernel/tracing")
_CLONE_NEWNS = 0x00020000
_PART_SECONDS = 3600.0
OUT = Path(__file__).parent.parent / "build" / "bench.json"


def measure(part: str) -> list[Mark]:
    """The marks of a part, printed as they are measured; a part that fails is a missed mark."""
    _see_tracefs()
    sys.stdout.write(f"== {part} (load {os.getloadavg()[0]:.1f})\n")
    marks: list[Mark] = []
    try:
        result = iter(importlib.import_module(f"bench.{part}").measure())
        while mark := _next(result):
            marks.append(mark)
            _show(mark)
    except Exception as error:
        marks.append(failed(part, error))
        _show(marks[-1])
    return marks


def _next(remaining: Iterator[Mark]) -> Mark | None:
    """The next mark. Raises TimeoutError if it is not there in time; rows have deadlines too."""
    with deadline(2 * ROW_SECONDS):
        return next(remaining, None)


def _see_tracefs() -> None:
    """Mount tracefs if the machine has not, for this process and its children only."""
    if any(_TRACEFS.iterdir()):
        return
    unshare(_CLONE_NEWNS)
    for words in (("--make-rprivate", "/"), ("-t", "tracefs", "none", str(_TRACEFS))):
        subprocess.run(["mount", *words], check=True)


def _show(mark: Mark) -> None:
    state = "" if mark.mark == "none" else "met" if mark.met else "MISSED"
    sys.stdout.write(f"{mark.name:<72}  {mark.measured:<44}  {mark.mark:<8}  {state}\n")
    sys.stdout.flush()


def main(wanted: list[str]) -> int:
    """Measure the wanted parts, or all; returns the exit status."""
    unknown = set(wanted) - set(PARTS)
    if unknown:
        sys.stderr.write(f"unknown: {', '.join(unknown)}; valid: {', '.join(PARTS)}\n")
        return 2
    marks: list[Mark] = []
    for part in wanted or PARTS:
        with multiprocessing.get_context("fork").Pool(1) as alone:
            try:
                marks += alone.apply_async(measure, (part,)).get(_PART_SECONDS)
            except multiprocessing.TimeoutError as error:  # it hangs where no signal ends it
                marks.append(failed(part, error))
                _show(marks[-1])
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_bytes(msgspec.json.format(msgspec.json.encode(marks)) + b"\n")
    return not all(mark.met for mark in marks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
