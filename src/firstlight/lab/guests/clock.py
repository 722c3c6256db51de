"""Relates a guest's clock to the host's.

Stamps of the two are never simply subtracted. The guest ran its first instruction at ``entered``,
before any stamp of its own; and an event that the guest stamped happened before the host saw it.
These two facts bound the offset from either side.
"""

import subprocess
from dataclasses import dataclass
from functools import cache

from firstlight.errors import Failed
from firstlight.lab.guests import Reading
from firstlight.native import native

HOST = "host, when a console line arrived"
"""The clock of a reading whose stamps are already the host's."""


@dataclass(frozen=True)
class Offset:
    """A guest's stamp plus ``value`` is a host's stamp, to within ``uncertainty``, in ns."""

    value: int
    uncertainty: int


def place(reading: Reading, entered: int | None) -> Offset | None:
    """The offset of a reading; None if no event ties its clock to the host's.

    Let g be the guest's first stamp, and (h, a) an anchor: entered - g <= offset <= h - a. The
    estimate is the middle, the uncertainty half the width. If the bounds cross, the two clocks run
    at different rates: then the upper bound is used, so that nothing is placed after the host saw
    it, and the uncertainty is the amount by which the bounds cross.

    A span that starts at 0 means that the clock begins with the VM.
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
    """The frequency of this machine's time-stamp counter, in Hz, by CLOCK_MONOTONIC.

    A guest's counter has the same frequency, under KVM and under TCG (QEMU passes the host's on).
    With counted instructions a tick is a nanosecond instead (QEMU's icount_get).
    """
    done = subprocess.run([native("tsc")], capture_output=True, text=True, check=False)
    try:
        return float(done.stdout)
    except ValueError as error:
        raise Failed(
            f"cannot measure the time-stamp counter: {done.stderr.strip()}", "see the message"
        ) from error
