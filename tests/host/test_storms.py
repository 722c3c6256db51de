"""Every storm of ``firstlight run storms`` and its remedy start, and nothing of them is left."""

import subprocess
import sys
from pathlib import Path

from firstlight import store
from firstlight.host import cgroups
from firstlight.host.workspace import DISK
from firstlight.lab.experiments import Options
from firstlight.lab.experiments.storms import STORMS
from firstlight.model import Ending

FIRSTLIGHT = Path(sys.executable).parent / "firstlight"


def test_every_storm_and_its_remedy_start_and_leave_nothing(
    can_trace: None, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = subprocess.run(
        [FIRSTLIGHT, "run", "storms", "--repetitions", "1", "--no-trace", "--out", out],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = store.read(out)
    met = {tuple(case.point.items()) for case in STORMS.cases(Options((1,)))}
    skipped = {point for point, _ in run.header.skipped}
    ready = {tuple(s.point.items()) for s in run.samples if s.ending is Ending.READY}
    assert {point for point in met if dict(point)["storm"] not in skipped} == ready
    assert not any(DISK.glob(f"{run.header.run}*"))
    group = cgroups.name(run.header.run)
    assert not any((hierarchy / group).exists() for hierarchy in cgroups.hierarchies())
