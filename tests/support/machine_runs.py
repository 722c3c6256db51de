"""Runs of machines on disk whose starts take just the times that a test gives."""

from pathlib import Path

from firstlight import store
from firstlight.analysis import boot
from firstlight.lab.experiments import catalogue
from firstlight.model import Ending, EndPoint, Footer, GuestLog, Header, Point, Sample, Stamps, Step
from firstlight.store import Writer

MS = 1_000_000
Parts = dict[str, float]
"""Milliseconds of each span of a guest's log, after ``init`` of its hypervisor."""


def run(
    path: Path,
    experiment: str,
    points: list[tuple[Point, Parts]],
    *,
    repetitions: int = 4,
    environment: dict[str, str | int | float | bool | list[str]] | None = None,
) -> store.Run:
    """A run whose starts take just these times, but for a percent."""
    axes = tuple(points[0][0])
    header = Header(
        run="r", experiment=experiment, question="?", end_point=EndPoint.FIRST_INSTRUCTION,
        axes=axes, points=tuple(point for point, _ in points), argv=(), seed=1, started="",
        revision="", repetitions=repetitions, environment=environment or {},
        presentation=catalogue.find(experiment).presentation,
    )  # fmt: skip
    samples: list[Sample] = []
    for batch in range(repetitions):
        for place, (point, parts) in enumerate(points):
            number = batch * len(points) + place
            for instance in range(int(point["instances"])):
                samples.append(
                    _sample(len(samples), number, instance, point, parts, 1 + batch / 99)
                )
    with Writer(path, header) as writer:
        writer.append(samples)
        writer.finish(Footer(ended=""))
    return store.read(path)


def _sample(
    index: int, batch: int, instance: int, point: Point, parts: Parts, stretch: float
) -> Sample:
    times = {name: round(ms * MS * stretch) for name, ms in parts.items()}
    begun = times.pop("init")
    spans, at = [], 0
    for name, length in times.items():
        spans.append(Step(name, at, at + length))
        at += length
    return Sample(
        index=index, batch=batch, instance=instance, repetition=0, point=point, traced=False,
        ending=Ending.READY, stamps=Stamps(0, 0, begun + at, begun + at),
        steps=(Step(boot.INIT, 0, begun),), guest=GuestLog("TSC", tuple(spans), begun, 0),
    )  # fmt: skip
