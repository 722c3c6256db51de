"""The experiments of machines, for real and small: whole accounts, clocks named, nothing left."""

import os
import shutil
from pathlib import Path

import polars as pl
import pytest
from tests.support.laboratory import marked, returning_home

from firstlight import store
from firstlight.analysis import boot
from firstlight.analysis.breakdown import breakdown
from firstlight.errors import Unsupported
from firstlight.host import cgroups
from firstlight.lab import runner, schedule
from firstlight.lab.backends import accel
from firstlight.lab.experiments import Options
from firstlight.lab.experiments.catalogue import ALL
from firstlight.lab.runner import Plan
from firstlight.model import Ending

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
COUNTS = {
    "unikernel-boot": 6,  # pc on two consoles and microvm on one, by two clocks
    "boot-protocol": 5,  # pc by three protocols, microvm by two
    "hypervisor-builds": 2,
}
_NO_DEVICE = ("kernel.init", "pci", "driver.console")
"""What a guest does without waiting for the host, whose pace no instruction counts."""


@pytest.fixture(autouse=True)
def _no_firecracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLIGHT_FIRECRACKER", "/nonexistent")


def measured(name: str, out: Path, *, traced: bool) -> store.Run:
    request = Options((1,), guests=("probe",), clocks=("wall", "counted"))
    plan = Plan(ALL[name], request, repetitions=1, seed=1, traced=traced, deadline=60)
    try:
        with returning_home():
            runner.run(plan, out / name)
    except Unsupported as error:
        pytest.skip(error.message)
    return store.read(out / name)


@pytest.mark.parametrize("name", list(COUNTS))
def test_machines_are_measured_whole_and_leave_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "_SAMPLES_MIN", 1)
    run = measured(name, tmp_path, traced=True)
    assert {sample.ending for sample in run.samples} == {Ending.READY}, [
        s.error for s in run.samples
    ]
    unusable = name == "hypervisor-builds" and not _has_kvm()  # Debian's small build has no TCG
    assert len(run.header.points) == COUNTS[name] - unusable
    assert {point["accel"] for point in run.header.points} <= {"tcg", "kvm"}
    for sample in run.samples:
        assert sample.guest is not None
        assert sample.latency is not None
        account = boot.account(sample)
        assert account["driver.console"] > 0
        if sample.point.get("clock") == "counted":
            assert sample.guest.offset is None
            assert boot.INIT not in account
        else:
            assert sum(account.values()) == sample.latency
            assert sample.guest.uncertainty is not None
    table = breakdown(run)
    for sample in run.samples:
        rows = table.filter(pl.col("sample") == sample.index)
        if sample.traced:
            assert rows["wall"].sum() == sample.latency
            assert {"process.start", boot.INIT} <= set(rows["phase"])
    assert not Path("/run/firstlight", run.header.run).exists()
    assert not any((each / cgroups.name(run.header.run)).exists() for each in cgroups.hierarchies())
    assert marked(run.header.run) == []


def test_counted_boots_repeat(tmp_path: Path) -> None:
    run = measured("driver-loading", tmp_path, traced=False)
    for console in ("serial", "vga"):
        counted = [
            boot.account(sample)
            for sample in run.samples
            if (sample.point["clock"], sample.point["console"]) == ("counted", console)
        ]
        assert len(counted) > 1
        for phase in _NO_DEVICE:
            times = [account[phase] for account in counted]
            assert max(times) <= 1.02 * min(times), (console, phase)


def test_builds_are_distinguished_by_their_contents() -> None:
    experiment, options = ALL["hypervisor-builds"], Options((1,))
    facts = experiment.facts(options)
    full, small = (str(case.point["build"]) for case in experiment.cases(options))
    for name in ("features", "shared objects", "relocations", "linker ns"):
        assert float(str(facts[f"{full}: {name}"])) > float(str(facts[f"{small}: {name}"])) > 0


def _has_kvm() -> bool:
    try:
        accel.choose(shutil.which("qemu-system-x86_64") or "", "kvm")
    except Unsupported:
        return False
    return True
