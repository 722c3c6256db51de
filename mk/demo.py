"""The main job in under three minutes: containers and their networks, measured and explained.

The first answer comes within 20 seconds: the start of a single container. The last is what prepared
parts gain: a runtime with the bridge plugin, and the agile runtime.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FIRSTLIGHT = Path(sys.executable).parent / "firstlight"
RUNS = Path("build/demo")
EXPERIMENTS = (
    ("container-creation", "--instances", "1,10,50", "--repetitions", "4"),
    ("network-setup", "--instances", "1,50", "--repetitions", "4"),
    ("agile", "--instances", "1,50", "--repetitions", "4", "--runtime", "runc", "--no-trace"),
)


def firstlight(*words: str) -> None:
    """Run a verb as a user would, with sudo if needed."""
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    print(f"\n$ firstlight {' '.join(words)}", flush=True)
    subprocess.run([*sudo, str(FIRSTLIGHT), *words], check=True)


shutil.rmtree(RUNS, ignore_errors=True)
alone = ("--instances", "1", "--runtime", "runc", "--budget", "4s")
firstlight("run", "container-creation", *alone, "--out", str(RUNS / "first"))
runs = [str(RUNS / name) for name, *_ in EXPERIMENTS]
for run, (name, *options) in zip(runs, EXPERIMENTS, strict=True):
    firstlight("run", name, *options, "--out", run)
firstlight("claims", *runs)
firstlight("report", *runs, "--html", "report.html", "--pictures", "report")
firstlight("report", runs[-1])
