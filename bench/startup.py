"""How soon the command line answers."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bench.marks import Mark

CALLS = 15
SECONDS = 0.2


def measure() -> list[Mark]:
    """The median of ``firstlight --help``, from the start of the process to its end."""
    command = [str(Path(sys.executable).with_name("firstlight")), "--help"]
    taken = []
    for _ in range(CALLS):
        begun = time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        taken.append(time.monotonic() - begun)
    middle = float(np.median(taken))
    return [
        Mark(f"firstlight --help, median of {CALLS}", f"{middle * 1000:.0f} ms",
             f"< {SECONDS * 1000:.0f} ms", middle < SECONDS)
    ]  # fmt: skip
