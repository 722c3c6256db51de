"""A guest's clock and the host's: what one stamp of the guest's is on the host's line.

The two are never simply subtracted. The guest ran its first instruction at ``entered``, before any
stamp of its own; and what it stamped, and the host then saw, had happened before the host saw it.
Each bounds the offset that is added to a guest's stamp from one side.
"""

import subprocess
from dataclasses import dataclass
from functools import cache

from firstlight.errors import Failed
from firstlight.lab.guests import Reading
from firstlight.native import native

HOST = "host, when a console line arrived"
"""The clock of a reading whose stamps are the host's already."""


@dataclass(frozen=True)
class Offset:
    """A guest's stamp plus ``value`` is one of the host's, to within ``uncertainty``, in ns."""

    value: int
    uncertainty: int


def place(reading: Reading, entered: int | None) -> Offset | None:
    """The offset of a reading; None where no event ties its clock to the host's.

    Let g be the guest's first stamp, and (h, a) an anchor: entered - g <= offset <= h - a. The
    middle is taken, and half the width is the uncertainty. Where the bounds cross, the two clocks
    do not run at one rate: then the upper one is taken, so that nothing is placed after the host
    saw it, and by how far they cross is the uncertainty.

    A reader whose clock begins with the machine says so by a span that starts at 0.
    """
    if reading.clock == HOST:
        return Offset(0, 0)
    if entered is None or not reading.anchors:
        return None
    firsts = [guest for _, guest in reading.anchors] + [span.start for span in reading.spans]
    lower = entered - min(firsts)
    upper = min(host - guest for host, guest in reading.anchors)
    if lower > upper:
        return Offset(upper, lower - upper)
    half = (upper - lower + 1) // 2
    return Offset(upper - half, half)


@cache
def tsc_hertz() -> float:
    """How often this machine's time-stamp counter ticks, by CLOCK_MONOTONIC.

    A guest's ticks as often, under KVM and under TCG (QEMU hands the host's through); not so where
    instructions are counted: there a tick is a nanosecond (QEMU's icount_get).
    """
    done = subprocess.run([native("tsc")], capture_output=True, text=True, check=False)
    try:
        return float(done.stdout)
    except ValueError as error:
        raise Failed(
            f"cannot measure the time-stamp counter: {done.stderr.strip()}", "read the console"
        ) from error
