"""Plausible runs on disk, written through store.Writer, for tests of what reads runs.

``breakdown`` and ``timeline`` stand for those of ``analysis.breakdown`` where a test needs to
know every figure (``known_phases`` puts them there); the raw spans of traced samples are a few
calls each, so the real ones can be used too.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from firstlight.analysis import Analysis
from firstlight.analysis import breakdown as real
from firstlight.analysis.figures import PointFigures
from firstlight.lab.experiments.container_creation import CONTAINER_CREATION
from firstlight.lab.experiments.network_setup import NETWORK_SETUP
from firstlight.model import Ending, EndPoint, Footer, Header, Point, Sample, Setting, Stamps, Step
from firstlight.store import SPAN_SCHEMA, Run, Writer, read

MS = 1_000_000
ENVIRONMENT: dict[str, str | int | float | bool | list[str]] = {
    "kernel": "6.18.0-synthetic",
    "distribution": "Debian GNU/Linux 12 (bookworm)",
    "cpu": "Imaginary CPU @ 2.40GHz",
    "cores": 2,
    "memory": "23.5 GiB",
    "cgroup": "hybrid (v1)",
    "virtualisation": True,
    "mitigations": ["spectre_v2: Retpolines", "meltdown: Not affected"],
    "runc": "1.1.5",
    "crun": "1.8.1",
}

# phase: (share of a lone start, growth with instances, share in the kernel, causes)
CONTAINER: dict[str, tuple[float, float, float, dict[str, float]]] = {
    "process.start": (0.17, 1.0, 0.30, {"on CPU": 0.8, "waiting for a CPU": 0.2}),
    "fork": (0.04, 1.0, 0.60, {"on CPU": 0.7, "waiting for a CPU": 0.3}),
    "config": (0.05, 1.0, 0.15, {"on CPU": 0.9, "waiting for a CPU": 0.1}),
    "ns.net": (0.04, 2.2, 0.95, {"lock: pernet_ops_rwsem (copy_net_ns)": 0.7, "on CPU": 0.3}),
    "ns.mount": (0.03, 1.2, 0.90, {"on CPU": 0.6, "lock: namespace_sem (copy_mnt_ns)": 0.4}),
    "ns.other": (0.03, 1.0, 0.80, {"on CPU": 1.0}),
    "mount": (0.24, 1.2, 0.45, {"on CPU": 0.55, "RCU: synchronize_rcu_expedited": 0.45}),
    "cgroup": (0.10, 1.3, 0.55, {"lock: cgroup_mutex (cgroup_mkdir)": 0.5, "on CPU": 0.5}),
    "security": (0.13, 1.0, 0.35, {"on CPU": 0.7, "another process": 0.3}),
    "handshake": (0.06, 1.0, 0.50, {"another process": 0.8, "on CPU": 0.2}),
    "exec": (0.08, 1.0, 0.60, {"on CPU": 0.6, "I/O: read ext4 (filemap_fault)": 0.4}),
    "unattributed": (0.03, 1.0, 0.00, {"on CPU": 0.5, "sleep": 0.5}),
}
NETWORK: dict[str, tuple[float, float, float, dict[str, float]]] = {
    "process.start": (0.10, 0.6, 0.40, {"on CPU": 1.0}),
    "netns": (0.10, 1.0, 0.90, {"on CPU": 0.6, "lock: pernet_ops_rwsem (copy_net_ns)": 0.4}),
    "veth": (0.08, 1.5, 0.85, {"lock: rtnl_mutex (rtnl_newlink)": 0.8, "on CPU": 0.2}),
    "veth.move": (
        0.50,
        1.6,
        0.95,
        {"RCU: rcu_barrier": 0.75, "lock: rtnl_mutex (rtnl_setlink)": 0.25},
    ),
    "link.up": (0.12, 1.0, 0.80, {"lock: rtnl_mutex (rtnl_newlink)": 0.5, "on CPU": 0.5}),
    "ipam": (0.05, 1.0, 0.70, {"on CPU": 1.0}),
    "route": (0.04, 1.0, 0.70, {"on CPU": 1.0}),
    "unattributed": (0.01, 1.0, 0.00, {"sleep": 1.0}),
}
STEPS = {
    "netns": 0.15,
    "veth": 0.10,
    "move": 0.52,
    "host.up": 0.06,
    "container.up": 0.08,
    "address": 0.05,
    "route": 0.03,
}


def container_creation(path: Path, *, repetitions: int = 10) -> Run:
    """Two runtimes × 1, 10, 50 at once, untraced and traced; one start failed, one hung."""
    points: list[Point] = [
        {"runtime": runtime, "instances": instances}
        for runtime in ("runc", "crun")
        for instances in (1, 10, 50)
    ]
    base = {"runc": 31 * MS, "crun": 12 * MS}

    def latency(point: Point, draw: np.random.Generator) -> float:
        instances = int(point["instances"])
        alone = base[str(point["runtime"])]
        return float(alone * instances**0.9 * draw.lognormal(0, 0.12))

    return _write(
        path,
        Header(
            run="fl-container",
            experiment="container-creation",
            question="Where does container creation spend its time?",
            end_point=EndPoint.FIRST_INSTRUCTION,
            axes=("runtime", "instances"),
            points=tuple(points),
            argv=("firstlight", "run", "container-creation"),
            seed=7,
            started="2026-05-04T10:00:00+00:00",
            revision="0d8d918",
            repetitions=repetitions,
            environment=ENVIRONMENT,
            notes=("crun runs without cgroups here.",),
            skipped=(("runtime=runsc", "runsc is not installed; apt install runsc"),),
            presentation=CONTAINER_CREATION.presentation,
        ),
        latency,
        steps={},
        broken=True,
    )


def network_setup(path: Path, *, repetitions: int = 10) -> Run:
    """Two methods × two orders × 1, 10, 50 requests, with steps; nothing fails."""
    points: list[Point] = [
        {"method": method, "order": order, "instances": instances}
        for method in ("ip", "netlink")
        for order in ("sequential", "parallel")
        for instances in (1, 10, 50)
    ]

    def latency(point: Point, draw: np.random.Generator) -> float:
        alone = (34 if point["method"] == "ip" else 22) * MS
        instances = int(point["instances"])
        growth = 1.0 if point["order"] == "sequential" else instances**0.85
        return float(alone * growth * draw.lognormal(0, 0.1))

    return _write(
        path,
        Header(
            run="fl-network",
            experiment="network-setup",
            question="Where does network set-up spend its time, in sequence and at once?",
            end_point=EndPoint.REQUEST_DONE,
            axes=("method", "order", "instances"),
            points=tuple(points),
            argv=("firstlight", "run", "network-setup"),
            seed=8,
            started="2026-05-04T10:05:00+00:00",
            revision="0d8d918",
            repetitions=repetitions,
            environment=ENVIRONMENT,
            presentation=NETWORK_SETUP.presentation,
        ),
        latency,
        steps=STEPS,
        broken=False,
    )


def nothing_ready(path: Path) -> Run:
    """Two starts of one point, both failed, and the run killed: there is no footer."""
    point: Point = {"runtime": "<b>runc</b>", "instances": 2}
    header = Header(
        run="fl-nothing",
        experiment="container-creation",
        question="Where does container creation spend its time?",
        end_point=EndPoint.FIRST_INSTRUCTION,
        axes=("runtime", "instances"),
        points=(point,),
        argv=("firstlight", "run"),
        seed=1,
        started="2026-05-04T10:00:00+00:00",
        revision="0d8d918",
        repetitions=1,
    )
    with Writer(path, header) as writer:
        writer.append(
            Sample(
                index=index,
                batch=0,
                instance=index,
                repetition=0,
                point=point,
                traced=False,
                ending=Ending.FAILED,
                stamps=Stamps(index * MS, index * MS),
                exit_status=1,
                error="exit status 1",
                output="</script><script>alert(1)</script>",
            )
            for index in range(2)
        )
    return read(path)


Latency = Callable[[Point, np.random.Generator], float]


def _write(
    path: Path, header: Header, latency: Latency, steps: dict[str, float], broken: bool
) -> Run:
    draw = np.random.default_rng(header.seed)
    schedule = [
        (point, repetition, traced)
        for repetition in range(header.repetitions)
        for point in header.points
        for traced in (False, True)
    ]
    index, now = 0, 1_000_000 * MS
    with Writer(path, header) as writer:
        for batch, (point, repetition, traced) in enumerate(schedule):
            sequential = point.get("order") == "sequential"
            samples = []
            for instance in range(int(point["instances"])):
                spent = int(latency(point, draw) * (1.05 if traced else 1.0))
                late = int(draw.exponential(0.02 * MS * (instance + 1)))
                ready = now + late + spent
                sample = Sample(
                    index=index,
                    batch=batch,
                    instance=instance,
                    repetition=repetition,
                    point=point,
                    traced=traced,
                    ending=Ending.READY,
                    stamps=Stamps(now, now + late, ready, ready + 20_000, ready + 2 * MS),
                    steps=_steps(steps, now + late, ready),
                    pid=10_000 + index,
                    user_ns=spent // 5,
                    system_ns=spent // 3,
                    exit_status=0,
                )
                samples.append(_broken(sample) if broken else sample)
                index += 1
                now = ready if sequential else now
            writer.append(samples)
            if traced:
                writer.append_spans(batch, _spans(header, samples))
            now = max(sample.stamps.stopped or now for sample in samples) + 5 * MS
        writer.finish(Footer(ended="2026-05-04T10:04:00+00:00"))
    return read(path)


def _broken(sample: Sample) -> Sample:
    """The third start of the first burst failed, the fourth hung."""
    if sample.repetition != 0 or sample.point != {"runtime": "runc", "instances": 10}:
        return sample
    stamps = Stamps(sample.stamps.intended, sample.stamps.spawned)
    if sample.instance == 2:
        output = 'runc run failed: unable to start container process: exec: "/x": no such file\n'
        return _replaced(
            sample, Ending.FAILED, stamps, 1, "runc: exit status 1 before it was ready", output
        )
    if sample.instance == 3:
        error = "not ready after 30 s, in mount"
        return _replaced(sample, Ending.HUNG, stamps, None, error, "")
    return sample


def _replaced(
    sample: Sample, ending: Ending, stamps: Stamps, status: int | None, error: str, output: str
) -> Sample:
    return Sample(
        index=sample.index,
        batch=sample.batch,
        instance=sample.instance,
        repetition=sample.repetition,
        point=sample.point,
        traced=sample.traced,
        ending=ending,
        stamps=stamps,
        pid=sample.pid,
        exit_status=status,
        error=error,
        output=output,
    )


def _steps(shares: dict[str, float], start: int, end: int) -> tuple[Step, ...]:
    if not shares:
        return ()
    edges = start + (end - start) * np.cumsum([0.0, *shares.values()])
    return tuple(
        Step(name, int(low), int(high))
        for name, (low, high) in zip(shares, pairwise(edges), strict=True)
    )


def _spans(header: Header, samples: list[Sample]) -> pl.DataFrame:
    """A few system calls a sample, about where the phases are."""
    calls = [
        ("exec", "execve", "/usr/sbin/runc", ""),
        ("call", "unshare", "CLONE_NEWNET", ""),
        ("call", "unshare", "CLONE_NEWNS", ""),
        ("call", "mount", "proc", ""),
        ("blocked", "D", "", "synchronize_rcu_expedited;namespace_unlock;do_mount"),
        ("call", "mkdir", "/sys/fs/cgroup/firstlight", ""),
        ("call", "seccomp", "", ""),
        ("call", "execve", "/payload", ""),
    ]
    rows = []
    for sample in samples:
        if sample.stamps.ready is None:
            continue
        edges = np.linspace(sample.stamps.spawned, sample.stamps.ready, len(calls) + 1).astype(int)
        for (kind, name, detail, stack), (start, end) in zip(calls, pairwise(edges), strict=True):
            rows.append(
                {
                    "sample": sample.index,
                    "kind": kind,
                    "name": name,
                    "detail": detail,
                    "stack": stack,
                    "start": int(start),
                    "end": int(start if kind == "exec" else end),
                    "pid": sample.pid,
                    "tid": sample.pid,
                    "result": 0,
                    "peer": 0,
                }
            )
    return pl.DataFrame(rows, schema=SPAN_SCHEMA)


def with_points(analysis: Analysis, points: Iterable[PointFigures]) -> Analysis:
    """The same run, with other figures."""
    other = Analysis(analysis.run)
    vars(other)["points"] = tuple(points)
    return other


@contextmanager
def known_phases() -> Iterator[None]:
    """All readers of runs see the breakdown and the timeline of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "breakdown", breakdown)
        patch.setattr(real, "timelines", timelines)
        yield


def breakdown(run: Run) -> pl.DataFrame:
    """As ``breakdown.breakdown``: every traced, ready sample, its rows summing to its latency."""
    rows = [
        {
            "sample": sample.index,
            "phase": phase,
            "shade": shade,
            "cause": cause,
            "wall": wall,
            "summed": int(wall * (1.0 + 0.02 * int(sample.point["instances"]))),
        }
        for sample in run.samples
        if sample.traced and sample.latency is not None
        for phase, shade, cause, wall in _rows(run, sample.point, sample.latency)
    ]
    schema = {
        "sample": pl.UInt32,
        "phase": pl.String,
        "shade": pl.String,
        "cause": pl.String,
        "wall": pl.Int64,
        "summed": pl.Int64,
    }
    return pl.DataFrame(rows, schema=schema)


def timelines(run: Run, samples: Iterable[Sample]) -> dict[int, pl.DataFrame]:
    """As ``breakdown.timelines``: ``timeline`` of each."""
    return {sample.index: timeline(run, sample) for sample in samples}


def timeline(run: Run, sample: Sample) -> pl.DataFrame:
    """As ``breakdown.timeline``: the rows of ``breakdown`` one after another, in two processes."""
    now = sample.stamps.intended
    rows = []
    for phase, shade, cause, wall in _rows(run, sample.point, sample.latency or 0):
        pid = sample.pid + (phase in {"handshake", "security", "exec"})
        rows.append((now, now + wall, phase, shade, cause, pid, pid))
        now += wall
    schema = {
        "start": pl.Int64,
        "end": pl.Int64,
        "phase": pl.String,
        "shade": pl.String,
        "cause": pl.String,
        "pid": pl.Int64,
        "tid": pl.Int64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def _rows(run: Run, point: Point, latency: int) -> Iterator[tuple[str, str, str, int]]:
    table = CONTAINER if run.header.experiment == "container-creation" else NETWORK
    instances: Setting = point["instances"]
    weights = {
        phase: share * int(instances) ** (growth - 1.0)
        for phase, (share, growth, _, _) in table.items()
    }
    cells = [
        (phase, shade, cause, weights[phase] * part * of_cause)
        for phase, (_, _, kernel, causes) in table.items()
        for shade, part in (("kernel", kernel), ("around", 1 - kernel))
        for cause, of_cause in causes.items()
        if part
    ]
    edges = np.round(
        latency * np.cumsum([0.0, *(cell[3] for cell in cells)]) / sum(cell[3] for cell in cells)
    ).astype(np.int64)
    for (phase, shade, cause, _), (low, high) in zip(cells, pairwise(edges), strict=True):
        yield phase, shade, cause, int(high - low)
