"""How long a million spans take to read, classify and summarise, and in how much memory.

The spans are those of real starts of runc, repeated under new sample numbers.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import polars as pl

from bench.marks import Mark
from firstlight import store
from firstlight.analysis import breakdown
from firstlight.lab import runner
from firstlight.lab.experiments import Options
from firstlight.lab.experiments.catalogue import find

SPANS = 1_000_000
SECONDS, MEGABYTES = 10.0, 1000.0
_PER_BATCH = 100


def make(directory: Path, spans: int = SPANS) -> Path:
    """A run with that many spans, in batches of a hundred starts. Returns its path."""
    plan = runner.Plan(find("container-creation"), Options((10,), ("runc",)), 1, seed=1)
    runner.run(plan, directory / "real")
    real = store.read(directory / "real")
    traced = {sample.index: sample for sample in real.samples if sample.traced}
    parts = [
        (traced[int(index)], rows)
        for _, frame in real.span_batches()
        for (index,), rows in frame.group_by("sample", maintain_order=True)
    ]
    with store.Writer(directory / "many", real.header) as writer:
        written = index = batch = 0
        while written < spans:
            frames = []
            for place in range(_PER_BATCH):
                sample, rows = parts[(index + place) % len(parts)]
                number = pl.lit(index + place, dtype=pl.UInt32).alias("sample")
                frames.append(rows.with_columns(number))
                writer.append([msgspec.structs.replace(sample, index=index + place, batch=batch)])
                written += len(rows)
            writer.append_spans(batch, pl.concat(frames))
            index, batch = index + _PER_BATCH, batch + 1
    return directory / "many"


def summarise(path: Path) -> dict[str, float]:
    """Read a run, break it down and take each phase's median; what that took."""
    begun = time.monotonic()
    run = store.read(path)
    parts = breakdown.breakdown(run)
    medians = parts.group_by("sample", "phase").agg(pl.col("wall").sum())
    medians.group_by("phase").agg(pl.col("wall").median())
    return {
        "seconds": time.monotonic() - begun,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def measure() -> list[Mark]:
    """Make the run, and summarise it in a process of its own, whose memory nothing else used."""
    with tempfile.TemporaryDirectory() as directory:
        path = make(Path(directory))
        command = [sys.executable, "-m", "bench.spans", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken = json.loads(done.stdout)
    return [
        Mark("a million spans, read and summarised: time", f"{taken['seconds']:.1f} s",
             f"< {SECONDS:.0f} s", taken["seconds"] < SECONDS),
        Mark("a million spans, read and summarised: peak memory",
             f"{taken['megabytes']:.0f} MB", f"< {MEGABYTES:.0f} MB",
             taken["megabytes"] < MEGABYTES),
    ]  # fmt: skip


if __name__ == "__main__":
    json.dump(summarise(Path(sys.argv[1])), sys.stdout)
