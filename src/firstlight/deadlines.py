"""One scale for all deadlines, so that slowness is told apart from failure.

Deadlines are chosen for the machines of today. Where everything takes N times as long, as under
emulation, ``FIRSTLIGHT_SLOWER=N`` makes them N times as long. ``native/common/clock.h`` reads it
too.
"""

import os
import re

from firstlight.errors import FirstlightError

VARIABLE = "FIRSTLIGHT_SLOWER"
_MOST = 1000
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")  # as both Python and C read it


def longer(seconds: float) -> float:
    """A deadline on this machine. Raises FirstlightError if the variable is not valid."""
    word = os.environ.get(VARIABLE) or "1"
    times = float(word) if _NUMBER.fullmatch(word) else 0.0
    if not 1 <= times <= _MOST:
        raise FirstlightError(f"{VARIABLE}={word} is not a number from 1 to {_MOST}",
                              "unset it, or say how many times slower this is")  # fmt: skip
    return seconds * times


def variable() -> dict[str, str]:
    """The environment of a program that gets no other variable."""
    word = os.environ.get(VARIABLE)
    return {VARIABLE: word} if word else {}
