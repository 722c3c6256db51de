"""Runs of traced starts whose spans a test writes, for what counts them."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from firstlight.model import Ending, EndPoint, Footer, Header, Point, Presentation, Sample, Stamps
from firstlight.store import SPAN_SCHEMA, Run, Writer, read

Row = tuple[object, ...]
READY = 1000
GRACE = "schedule_timeout;synchronize_rcu_expedited;namespace_unlock;path_umount"
IN_THE_QUEUE = "mutex_lock;exp_funnel_lock;synchronize_rcu_expedited;namespace_unlock;path_umount"
POINT: Point = {"runtime": "runc", "instances": 1}


def call(name: str, detail: str = "", at: int = 10, result: int = 0, end: int = 0) -> Row:
    return ("call", name, detail, "", at, end or at + 5, result)


USUAL: tuple[Row, ...] = (
    call("mount", "/proc proc"),
    call("mount", "/dev tmpfs"),
    call("sendto", "socket:netlink.route RTM_NEWLINK up", result=32),
    call("read", "ext4:config.json", result=5000),
    call("umount2", "/old", at=100, end=200),
    ("blocked", "", "", GRACE, 110, 150, None),
    ("fork", "process", "", "", 300, 300, None),
    ("exec", "exec", "/usr/bin/runc", "", 310, 310, None),
    call("mount", "/after the end point", at=READY + 1),
)


def run_of(
    path: Path, starts: Sequence[Sequence[Row]], points: Sequence[Point] = (POINT,), lost: int = 0,
    faults: Sequence[int] = (0,),
) -> Run:  # fmt: skip
    """A run of traced starts, which have these spans: kind, name, detail, stack, start, end,
    result. The points and the page faults are taken in turn.
    """
    header = Header(
        run="r", experiment="container-creation", question="?",
        end_point=EndPoint.FIRST_INSTRUCTION, axes=tuple(points[0]), points=tuple(points),
        argv=(), seed=0, started="2026", revision="", repetitions=1,
        environment={"machine": "m"}, presentation=Presentation(headline="traced"),
    )  # fmt: skip
    with Writer(path, header) as writer:
        for index, rows in enumerate(starts):
            spans = pl.DataFrame(
                [(index, *row[:6], 1, 1, row[6], None) for row in rows],
                schema=SPAN_SCHEMA, orient="row",
            )  # fmt: skip
            writer.append_spans(index, spans)
            sample = Sample(
                index=index, batch=index, instance=0, repetition=index,
                point=points[index % len(points)], traced=True, ending=Ending.READY,
                stamps=Stamps(0, 0, READY), lost=lost,
                page_faults=faults[index % len(faults)],
            )  # fmt: skip
            writer.append([sample])
        writer.finish(Footer(ended="2026"))
    return read(path)
