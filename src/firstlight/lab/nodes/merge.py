"""Makes one run of the nodes' runs, with the node as its first axis.

Facts that the nodes share are the run's; those that differ are its notes. A node without a run has
a failed start at every point.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import polars as pl

from firstlight.lab.nodes.jobs import NodeResult
from firstlight.model import (
    Ending,
    Footer,
    Header,
    Point,
    Presentation,
    Sample,
    Setting,
    Stamps,
)
from firstlight.store import Run, Writer, read

AXIS = "node"
_OWN = ("machine",)  # they differ by nature, and cause nothing


def merge(
    outcomes: Mapping[str, NodeResult], plain: Header, points: Sequence[Point], out: Path
) -> None:
    """Write the run to ``out``.

    ``plain`` has what no node knows: name, arguments, start. ``points`` are those of the
    experiment, for when no node has a run.
    """
    runs = {node: read(path) for node, path in outcomes.items() if isinstance(path, Path)}
    reasons = {node: why for node, why in outcomes.items() if isinstance(why, str)}
    first = next(iter(runs.values()), None)
    measured = {node: run.header.points for node, run in runs.items()}
    seen = {str(point): point for each in measured.values() for point in each}
    points = [*seen.values()] or points
    facts = {node: run.header.environment for node, run in runs.items()}
    shared, notes = _facts(facts)
    header = msgspec.structs.replace(
        first.header if first else plain,
        run=plain.run, argv=plain.argv, started=plain.started, revision=plain.revision,
        axes=(AXIS, *plain.axes),
        points=tuple(
            {AXIS: node, **point} for node in outcomes for point in measured.get(node, points)
        ),
        environment=shared,
        notes=tuple(dict.fromkeys(
            (*notes, *(note for run in runs.values() for note in run.header.notes)))),
        skipped=tuple(
            (f"{node} {point}", why) for node, run in runs.items()
            for point, why in run.header.skipped
        ),
        presentation=Presentation(
            subject=plain.presentation.subject, view="nodes",
            headline=plain.presentation.headline,
        ),
    )  # fmt: skip
    with Writer(out, header) as writer:
        index = batch = 0
        for node, run in runs.items():
            index, batch = _append(writer, node, run, index, batch)
        for node, why in reasons.items():
            writer.append(
                _failed({AXIS: node, **point}, f"node {node}: {why}", index + n, batch + n)
                for n, point in enumerate(points)
            )
            index, batch = index + len(points), batch + len(points)
        footers = {node: run.footer for node, run in runs.items()}
        warnings = [f"Node {node} has no run: {why}." for node, why in reasons.items()]
        for node, footer in footers.items():
            warnings += [f"{node}: {each}" for each in (footer.warnings if footer else ())]
        ended = max((each.ended for each in footers.values() if each), default=plain.started)
        interrupted = any(not each or each.interrupted for each in footers.values())
        writer.finish(Footer(ended=ended, interrupted=interrupted, warnings=tuple(warnings)))


def _append(writer: Writer, node: str, run: Run, index: int, batch: int) -> tuple[int, int]:
    """Append a node's samples and spans, numbered from these; returns the next numbers."""
    writer.append(
        msgspec.structs.replace(
            sample, index=index + sample.index, batch=batch + sample.batch,
            point={AXIS: node, **sample.point},
        )
        for sample in run.samples
    )  # fmt: skip
    for number, spans in run.span_batches():
        shifted = spans.with_columns((pl.col("sample") + index).cast(pl.UInt32))
        writer.append_spans(batch + number, shifted)
    return (
        index + max((each.index + 1 for each in run.samples), default=0),
        batch + max((each.batch + 1 for each in run.samples), default=0),
    )


def _failed(point: Point, why: str, index: int, batch: int) -> Sample:
    now = time.monotonic_ns()
    return Sample(
        index=index, batch=batch, instance=0, repetition=0, point=point, traced=False,
        ending=Ending.FAILED, stamps=Stamps(now, now), error=why,
    )  # fmt: skip


Facts = Mapping[str, Setting | list[str]]


def _facts(of: Mapping[str, Facts]) -> tuple[dict[str, Setting | list[str]], list[str]]:
    """The facts that all nodes share, and a sentence for each other."""
    names = dict.fromkeys(name for facts in of.values() for name in facts)
    shared: dict[str, Setting | list[str]] = {"nodes": list(of)}
    notes = []
    for name in names:
        values = {node: facts.get(name, "none") for node, facts in of.items()}
        if len({str(value) for value in values.values()}) == 1:
            shared[name] = next(iter(values.values()))
        elif name not in _OWN:
            each = "; ".join(f"{node} {_words(value)}" for node, value in values.items())
            notes.append(f"Nodes differ in {name}: {each}")
    return shared, notes


def _words(value: Setting | list[str]) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
