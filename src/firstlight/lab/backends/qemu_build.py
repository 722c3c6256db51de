"""Describes a build of QEMU, and measures its dynamic linking by the linker's own count.

The linker calls its unit cycles, but glibc 2.36 prints a tenth of the counter's ticks. A program
whose relocation takes a known time (``native/lab/linkspin.c``) tells which.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache

from firstlight.errors import Unsupported, longer
from firstlight.lab.guests import clock
from firstlight.native import native

_STARTS = 9
_TOTAL = "total startup time in dynamic loader"
_RELOCATION = "time needed for relocation"
_LOAD = "time needed to load objects"
_SPIN_NS = 20_000_000


@dataclass(frozen=True)
class Linking:
    """The dynamic linking of a start: counts, and times in ns. Of several starts, the median.

    ``relocations`` look up a symbol by name; ``relative_relocations`` only add an object's load
    address. All are 0 for a static program.
    """

    shared_objects: int
    relocations: int
    relative_relocations: int
    total_ns: int
    relocation_ns: int
    load_ns: int


@dataclass(frozen=True)
class Features:
    """The number of machine types and device models of a build."""

    machines: int
    devices: int


@cache
def linking(program: str) -> Linking:
    """Start a program with ``--version`` several times with LD_DEBUG=statistics (see ld.so(8)).

    Raises Unsupported if it cannot be run.
    """
    outputs = [_output_of(program, "--version", LD_DEBUG="statistics") for _ in range(_STARTS)]
    times = sorted(
        tuple(_number(text, f"{words}: +", " cycles") for words in (_TOTAL, _RELOCATION, _LOAD))
        for text in outputs
    )
    total, relocation, load = times[_STARTS // 2]
    unit = _unit_ns() if total else 0.0
    objects = re.findall(r"calling init: (\S+)", _output_of(program, "--version", LD_DEBUG="files"))
    return Linking(
        shared_objects=len(set(objects)),
        relocations=_number(outputs[0], "final number of relocations: +"),
        relative_relocations=_number(outputs[0], "number of relative relocations: +"),
        total_ns=round(total * unit),
        relocation_ns=round(relocation * unit),
        load_ns=round(load * unit),
    )


@cache
def _unit_ns() -> float:
    """The linker's cycle in ns: one tick of the counter, or ten.

    A start that waits for a CPU counts more, never less.
    """
    tick = 1e9 / clock.tsc_hertz()
    outputs = [_output_of(str(native("linkspin")), LD_DEBUG="statistics") for _ in range(_STARTS)]
    least = min(_number(text, f"{_RELOCATION}: +", " cycles") for text in outputs)
    return 10 * tick if least * tick < _SPIN_NS / 2 else tick


@cache
def listed(program: str, option: str) -> frozenset[str]:
    """A QEMU's own list of ``-accel``, ``-machine`` or ``-device``.

    Raises Unsupported if it cannot be run.
    """
    lines = _output_of(program, option, "help").splitlines()
    if option == "-device":
        return frozenset(line.split('"')[1] for line in lines if line.startswith('name "'))
    return frozenset(line.split()[0] for line in lines[1:] if line.strip())


def features(program: str) -> Features:
    """Count what a QEMU lists. Raises Unsupported if it cannot be run."""
    return Features(len(listed(program, "-machine")), len(listed(program, "-device")))


def _number(text: str, before: str, behind: str = "") -> int:
    match = re.search(f"{before}(\\d+){behind}", text)
    return int(match[1]) if match else 0


def _output_of(*command: str, **environment: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=longer(30),
            env=os.environ | environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unsupported(f"cannot run {command[0]}: {error}", "give the path of a QEMU") from error
    return done.stdout + done.stderr
