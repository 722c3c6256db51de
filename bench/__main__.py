"""Measures firstlight's marks: ``python -m bench [PART...]``, as root.

Prints a line per mark and writes build/bench.json. Each part runs in its own process, since the lab
moves a process into namespaces for good. Exit status 1 if a mark is missed.
"""

import importlib
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from bench.marks import Mark
from firstlight.host.workspace import unshare

PARTS = (
    "startup",
    "spans",
    "attribution",
    "independent",
    "overhead",
    "cni",
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
OUT = Path(__file__).parent.parent / "build" / "bench.json"


def measure(part: str) -> list[Mark]:
    """The marks of a part, printed as they are measured; a part that fails is a missed mark."""
    _see_tracefs()
    sys.stdout.write(f"== {part} (load {os.getloadavg()[0]:.1f})\n")
    marks = []
    try:
        for mark in importlib.import_module(f"bench.{part}").measure():
            marks.append(mark)
            _show(mark)
    except Exception as error:
        marks.append(Mark(f"{part} can be measured", f"{type(error).__name__}: {error}", "", False))
        _show(marks[-1])
    return marks


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
            marks += alone.apply(measure, (part,))
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_bytes(msgspec.json.format(msgspec.json.encode(marks)) + b"\n")
    return not all(mark.met for mark in marks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
