"""A guest's log on the host's line: no gap, no overlap, the innermost owns."""

import tempfile
from itertools import pairwise
from pathlib import Path

import msgspec
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from firstlight import store
from firstlight.analysis import boot
from firstlight.analysis.boot import Stretch, partition, stretches
from firstlight.analysis.breakdown import breakdown, timelines
from firstlight.analysis.phases import of_guest
from firstlight.model import Ending, EndPoint, Footer, GuestLog, Header, Point, Sample, Stamps, Step
from firstlight.store import SPAN_SCHEMA, Writer

NAMES = ["console", "block", "ROFS mounted", "pci enumerated", "unknown"]
spans = st.builds(
    lambda name, start, length: Step(name, start, start + length),
    st.sampled_from(NAMES), st.integers(-50, 150), st.integers(0, 80),
)  # fmt: skip


def machine(*log: Step, offset: int | None = 1_000, ready: int = 2_000) -> Sample:
    """A start at 0 whose guest runs from 500 and is ready at 2,000, traced."""
    return Sample(
        index=0, batch=0, instance=0, repetition=0, point={"instances": 1}, traced=True,
        ending=Ending.READY, stamps=Stamps(0, 0, ready, ready), pid=7,
        steps=(Step(boot.INIT, 0, 500),), guest=GuestLog("TSC", log, offset, 10),
    )  # fmt: skip


@given(st.lists(spans, max_size=12))
def test_a_partition_has_no_gap_and_the_innermost_owns(drawn: list[Step]) -> None:
    parts = partition(drawn, 0, 100)
    assert parts[0].start == 0
    assert parts[-1].end == 100
    assert all(
        first.end == second.start and first.phase != second.phase
        for first, second in pairwise(parts)
    )
    for instant in range(100):
        over = [span for span in drawn if span.start <= instant < span.end]
        [part] = [each for each in parts if each.start <= instant < each.end]
        latest = max((max(span.start, 0) for span in over), default=None)
        allowed = {of_guest(span.name) for span in over if max(span.start, 0) == latest} or {
            "guest.other"
        }
        assert part.phase in allowed


def test_a_guest_is_laid_on_the_hosts_line_after_its_firmware() -> None:
    sample = machine(
        Step("drivers loaded", 0, 300), Step("console", 100, 150), Step("ROFS mounted", 300, 400)
    )
    assert stretches(sample) == [
        Stretch(500, 1000, "firmware"),
        Stretch(1000, 1100, "driver.other"),
        Stretch(1100, 1150, "driver.console"),
        Stretch(1150, 1300, "driver.other"),
        Stretch(1300, 1400, "mount"),
        Stretch(1400, 2000, "guest.other"),
    ]


def test_a_guest_whose_clock_nothing_ties_is_one_stretch() -> None:
    assert stretches(machine(Step("console", 0, 9), offset=None)) == [
        Stretch(500, 2000, "guest.other")
    ]


def test_what_is_no_machine_has_no_stretches() -> None:
    sample = machine()
    assert stretches(msgspec.structs.replace(sample, steps=())) == []


@given(st.lists(spans, max_size=6), st.integers(500, 2_000))
def test_the_breakdown_of_a_machine_sums_to_its_latency(log: list[Step], offset: int) -> None:
    sample = machine(*log, offset=offset)
    with tempfile.TemporaryDirectory() as scratch:
        run = written(Path(scratch) / "run", sample)
        table = breakdown(run)
        line = timelines(run, [sample])[sample.index]
    assert table["wall"].sum() == sample.latency
    before = line.filter(pl.col("start") < 500)
    assert set(before["phase"]) <= {"process.start", "hypervisor.init"}
    expected = {part.phase: 0 for part in stretches(sample)}
    for part in stretches(sample):
        expected[part.phase] += part.end - part.start
    after = dict(
        line.filter(pl.col("start") >= 500)
        .group_by("phase")
        .agg((pl.col("end") - pl.col("start")).sum())
        .iter_rows()
    )
    assert after == expected


def written(path: Path, sample: Sample) -> store.Run:
    """A run of one start: a process that is executed at 100 and opens a file at 300."""
    point: Point = {"instances": 1}
    header = Header(
        run="r", experiment="unikernel-boot", question="?", end_point=EndPoint.FIRST_INSTRUCTION,
        axes=("instances",), points=(point,), argv=(), seed=1, started="", revision="",
        repetitions=1,
    )  # fmt: skip
    rows = [
        ("exec", "qemu", "/usr/bin/qemu", 100, 100),
        ("call", "execve", "/usr/bin/qemu", 50, 100),
        ("call", "openat", "/dev/net/tun", 300, 310),
        ("call", "ioctl", "kvm-vcpu:0", 600, 1900),
    ]
    frame = pl.DataFrame(
        [
            {"sample": 0, "kind": kind, "name": name, "detail": detail, "stack": "",
             "start": start, "end": end, "pid": 7, "tid": 7, "result": 0, "peer": 0}
            for kind, name, detail, start, end in rows
        ],
        schema=SPAN_SCHEMA,
    )  # fmt: skip
    with Writer(path, header) as writer:
        writer.append_spans(0, frame)
        writer.append([sample])
        writer.finish(Footer(ended=""))
    return store.read(path)
