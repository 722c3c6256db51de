"""How soon the command line answers, and what it costs: to read its help, and to ask a runtime."""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.marks import Mark
from firstlight.native import native

CALLS = 15
SECONDS = 0.2
CPU_SECONDS = 0.1
FIRSTLIGHT = str(Path(sys.executable).with_name("firstlight"))


def measure() -> Iterator[Mark]:
    """The time of ``firstlight --help``, and the CPU time of ``agile ps`` and ``agile start``."""
    taken = []
    for _ in range(CALLS):
        begun = time.monotonic()
        _call("--help")
        taken.append(time.monotonic() - begun)
    middle = float(np.median(taken))
    yield Mark(f"firstlight --help, median of {CALLS}", f"{middle * 1000:.0f} ms",
               f"< {SECONDS * 1000:.0f} ms", middle < SECONDS)  # fmt: skip
    with _runtime() as (config, root):
        for words in (
            ("ps",),
            ("start", "--rootfs", root, "--network", "none", "--", "/payload", "once"),
        ):
            verb, *rest = words
            spent = [_cpu_seconds("agile", verb, "--config", config, *rest) for _ in range(CALLS)]
            least = min(spent)
            yield Mark(f"firstlight agile {verb}, whole process, CPU time, least of {CALLS}",
                       f"{least * 1000:.0f} ms", f"<= {CPU_SECONDS * 1000:.0f} ms",
                       least <= CPU_SECONDS)  # fmt: skip


@contextmanager
def _runtime() -> Iterator[tuple[str, str]]:
    """A runtime in namespaces of its own: its configuration, and a root with the payload."""
    with tempfile.TemporaryDirectory(prefix="firstlight-bench-") as scratch:
        directory, config = Path(scratch), Path(scratch) / "config.toml"
        directory.chmod(0o755)
        (directory / "root").mkdir()
        shutil.copy(native("payload"), directory / "root/payload")
        config.write_text(f'name = "bench"\nstate = "{scratch}/state"\n')
        runtime = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", FIRSTLIGHT, "agile", "up",
             "--config", config], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert runtime.stderr is not None
            for line in runtime.stderr:
                if line.startswith("ready:"):
                    break
            yield str(config), str(directory / "root")
        finally:
            runtime.terminate()
            runtime.communicate()


def _call(*words: str) -> None:
    subprocess.run(
        [FIRSTLIGHT, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True
    )


def _cpu_seconds(*words: str) -> float:
    before = _children_seconds()
    _call(*words)
    return _children_seconds() - before


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
