"""The CNIs of a run side by side: what each does for a pod, and how long that takes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from firstlight.analysis import Analysis
from firstlight.analysis.stats import FEWEST_BATCHES, quantile_interval, ratio_interval
from firstlight.claims.advice import LEAST_SHARE
from firstlight.model import Ending, EndPoint, Sample
from firstlight.report.records import Table, View
from firstlight.units import duration, percent

CONTENDERS = 5
"""As many of the next phases are compared with the one that takes longest."""
TAIL = 10
"""A P99 above this multiple of the median is shown with the multiple."""

_NETLINK = pl.col("name").is_in(["sendto", "sendmsg"]) & pl.col("detail").str.starts_with(
    "socket:netlink"
)
_MOVES = pl.col("detail").str.contains(r"^socket:(inet6?$|unix /)") & (pl.col("result") > 0)
_PREFACE, _ACKNOWLEDGED = 24, 47  # bytes of HTTP/2 frames
_SAYS = pl.col("name").is_in(["write", "writev", "sendto", "sendmsg"])
_HEARS = pl.col("name").is_in(["read", "readv", "recvfrom", "recvmsg"])
_COUNTED = {
    "switches": (pl.col("name") == "setns") & pl.col("detail").str.contains(r"\bnet\b"),
    "netlink": _NETLINK,
    "programs": (pl.col("name") == "bpf") & (pl.col("detail") == "PROG_LOAD"),
}
_PHASES = {
    "switches": "netns.switch",
    "asks": "datastore",
    "processes": "process.start",
    "programs": "ebpf",
}
SCHEMA = pl.Schema(
    {"cni": pl.String, "latency": pl.Float64, "low": pl.Float64, "high": pl.Float64,
     "p99": pl.Float64, "packet": pl.Float64,
     **{name: pl.Float64 for kind in ("switches", "netlink", "processes", "asks", "programs")
        for name in (kind, f"{kind}_ns")}}
)  # fmt: skip


def side_by_side(analysis: Analysis) -> pl.DataFrame:
    """A row per CNI, as SCHEMA, for starts of one pod alone; the fastest first.

    ``latency`` (with its 95 % interval), ``p99`` and ``packet``, the first packet's way there and
    back (after the end point, unless that is the end point),
    are of untraced starts, in ns; everything else is a median over traced ones. ``switches``
    between network namespaces, ``netlink`` requests, ``processes`` started and how often a daemon
    is asked (``asks``) are counted in the plugins' processes, ``programs`` of eBPF also in the
    daemon. ``*_ns`` is the time on the critical path in the phase of each, and for netlink that of
    the calls themselves.
    """
    alone = [
        sample
        for sample in analysis.run.samples
        if sample.ending is Ending.READY and sample.point["instances"] == 1
    ]
    explained = _explained(analysis, [sample for sample in alone if sample.traced])
    rows = []
    for name in dict.fromkeys(str(sample.point["cni"]) for sample in alone):
        mine = [sample for sample in alone if sample.point["cni"] == name and not sample.traced]
        if not mine:
            continue
        latency = quantile_interval(
            [sample.latency or 1 for sample in mine], 0.5, groups=[sample.batch for sample in mine]
        )
        medians = explained.filter(pl.col("cni") == name).drop("cni", "sample").median()
        rows.append(
            {
                "cni": name,
                "latency": latency.value,
                "low": latency.low,
                "high": latency.high,
                "p99": float(np.quantile([sample.latency or 1 for sample in mine], 0.99)),
                "packet": _packet(mine),
                **(medians.row(0, named=True) if len(medians) else {}),
            }
        )
    return pl.DataFrame(rows, schema=SCHEMA).sort("latency")


_REMEDIES = {
    "veth.move": "use a plugin that creates the pod's end in its namespace, so nothing moves",
    "garp": "set arp_notify, and the kernel announces the address by itself",
    "process.start": "use fewer and smaller plugins: each in the chain is a program to start",
    "ipam": "use an address plugin without another program or daemon",
    "datastore": "give each node its own address range, so that ADD needs no request",
    "ebpf": "compile the programs once and load a copy with each pod's constants",
    "firewall": "keep pods in a set with a single rule, instead of a chain per pod",
    "bridge": "route to each pod instead of bridging, as ptp does",
}


def advice(analysis: Analysis) -> str:
    """The largest possible gain among the traced CNIs, with its figures; or "".

    A phase of less than LEAST_SHARE of the starts is no gain worth a change. It is called the
    largest only if its time is longer than any other phase's for certain.
    """
    alone = {
        sample.index: str(sample.point["cni"])
        for sample in analysis.run.samples
        if sample.traced and sample.ending is Ending.READY and sample.point["instances"] == 1
    }
    if not alone:
        return ""
    starts = pl.DataFrame({"sample": pl.Series(list(alone), dtype=pl.UInt32),
                           "cni": list(alone.values())})  # fmt: skip
    parts = analysis.breakdown.join(starts, on="sample")
    totals = parts.group_by("cni", "sample").agg(total=pl.col("wall").sum())
    walls = (
        parts.filter(pl.col("phase").is_in(_REMEDIES))
        .group_by("cni", "sample", "phase")
        .agg(wall=pl.col("wall").sum())
    )
    phases = (
        walls.join(totals, on=["cni", "sample"])
        .group_by("cni", "phase")
        .agg(pl.col("wall", "total").median(), share=(pl.col("wall") / pl.col("total")).median())
        .filter(pl.col("wall") > 0, pl.col("share") >= LEAST_SHARE)
        .sort("wall", descending=True)
    )
    if phases.is_empty():
        return ""
    most = phases.row(0, named=True)
    causes = (
        parts.filter((pl.col("cni") == most["cni"]) & (pl.col("phase") == most["phase"]))
        .group_by("cause")
        .agg(pl.col("wall").sum())
        .sort("wall", descending=True)
    )
    contenders = phases.rows(named=True)[1 : CONTENDERS + 1]
    is_largest = bool(contenders) and all(_walls_apart(walls, most, each) for each in contenders)
    return (
        f"{'The largest' if is_largest else 'A large'} possible gain is in {most['cni']}: "
        f"{most['phase']} takes {duration(most['wall'])} of {duration(most['total'])} "
        f"({percent(most['wall'] / most['total'])}, medians of traced starts), mainly "
        f"{causes['cause'][0]}. Remedy: {_REMEDIES[most['phase']]}."
    )


def _walls_apart(walls: pl.DataFrame, most: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one phase of a CNI takes longer than another's for certain."""
    sides = [
        walls.filter((pl.col("cni") == row["cni"]) & (pl.col("phase") == row["phase"]))["wall"]
        for row in (most, other)
    ]
    ratio = ratio_interval(*(side.clip(1) for side in sides), level=1 - 0.05 / CONTENDERS)
    return min(map(len, sides)) >= FEWEST_BATCHES and ratio.low > 1


_ENDS = {EndPoint.FIRST_PACKET: ("first packet answered", "of which packet")}
_OTHERS = ("netns switches", "netlink", "processes", "daemon requests", "eBPF programs")


def headings(analysis: Analysis) -> tuple[str, ...]:
    """The headings of ``cells``; the second names the end point."""
    end, packet = _ENDS.get(analysis.end_point, ("ADD returned", "+ packet"))
    return ("CNI", end, "P99", packet, *_OTHERS)


def cells(analysis: Analysis) -> list[tuple[str, ...]]:
    """``side_by_side`` in words, each count with its time."""
    return [
        (
            row["cni"],
            f"{duration(row['latency'])} ({duration(row['low'])}–{duration(row['high'])})",
            _tail(row["p99"], row["latency"]),
            duration(row["packet"]) if row["packet"] is not None else "none",
            *(
                _counted(row[kind], row[f"{kind}_ns"])
                for kind in ("switches", "netlink", "processes", "asks", "programs")
            ),
        )
        for row in side_by_side(analysis).iter_rows(named=True)
    ]


_BRIEF = {EndPoint.FIRST_PACKET: ("packet back", "of it")}


def _brief(analysis: Analysis, rows: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The table for a terminal of 80 columns: times below counts, without intervals."""
    end, packet = _BRIEF.get(analysis.end_point, ("ADD", "packet"))
    yield ("CNI", end, "P99", packet, "switches", "netlink", "processes", "asks", "eBPF")
    for name, latency, tail, packet, *counted in rows:
        yield (
            name,
            latency.partition(" (")[0],
            tail.replace(" (", "\n("),
            packet,
            *(count.replace(": ", "\n").replace("none", "–") for count in counted),
        )


def _tables(analysis: Analysis) -> Iterator[Table]:
    if analysis.lead:
        rows = cells(analysis)
        brief, *brief_rows = _brief(analysis, rows)
        yield Table(
            "the CNIs side by side", headings(analysis), tuple(rows), advice(analysis),
            (brief, tuple(brief_rows)),
        )  # fmt: skip


def _tail(p99: float, median: float) -> str:
    """A tail, with its multiple of the median if that is large."""
    return f"{duration(p99)} (×{p99 / median:.0f})" if p99 > TAIL * median else duration(p99)


def _counted(count: float | None, ns: float | None) -> str:
    if count is None or ns is None:
        return "–"
    return f"{count:.0f}: {duration(ns)}" if count else "none"


def _packet(samples: Sequence[Sample]) -> float | None:
    took = [
        step.end - step.start
        for sample in samples
        for step in sample.steps
        if step.name == "packet"
    ]
    return float(np.median(took)) if took else None


def _explained(analysis: Analysis, samples: Sequence[Sample]) -> pl.DataFrame:
    """A row per traced start: sample, cni, each count and its time."""
    named = {sample.index: (str(sample.point["cni"]), sample.pid) for sample in samples}
    parts = [
        _counts(part, pid).with_columns(sample=pl.lit(index, pl.UInt32), cni=pl.lit(name))
        for _, spans in analysis.run.span_batches()
        for (key,), part in spans.group_by("sample")
        if (index := int(str(key))) in named
        for name, pid in [named[index]]
    ]
    if not parts:
        return pl.DataFrame(schema={"cni": pl.String, "sample": pl.UInt32})
    counts = pl.concat(parts)
    walls = analysis.breakdown.group_by("sample").agg(
        **{
            f"{kind}_ns": pl.col("wall").filter(pl.col("phase") == phase).sum()
            for kind, phase in _PHASES.items()
        }
    )  # fmt: skip
    return counts.join(walls, on="sample")


def _counts(spans: pl.DataFrame, root: int) -> pl.DataFrame:
    spans = spans.with_columns(pl.col("kind", "name", "detail").cast(pl.String))
    own = pl.col("pid").is_in(
        list(_tree(spans, root) - {root})
    )  # the root is firstlight's runner of plugins
    calls = spans.filter(pl.col("kind") == "call")
    mine = calls.filter(own)
    counts = {
        kind: (calls if kind == "programs" else mine).filter(chosen).height
        for kind, chosen in _COUNTED.items()
    }
    requests = mine.filter(_NETLINK)
    executed = spans.filter((pl.col("kind") == "exec") & own)
    return pl.DataFrame(
        {
            **{kind: [float(count)] for kind, count in counts.items()},
            "asks": [float(_turns(mine))],
            "netlink_ns": [float((requests["end"] - requests["start"]).sum())],
            "processes": [float(executed.height)],
        }
    )


def _turns(calls: pl.DataFrame) -> int:
    """The number of requests to daemons: sends of a process that has received, or not yet sent.

    HTTP/2 frames without a request (settings, acknowledgements) are no longer than _ACKNOWLEDGED; a
    process that uses HTTP/2 sends its preface first.
    """
    moves = calls.filter(_MOVES & (_SAYS | _HEARS)).sort("pid", "start").with_columns(says=_SAYS)
    before = pl.col("says").shift(1, fill_value=False).over("pid")
    turns = (
        moves.with_columns(turn=(pl.col("says") & ~before).cum_sum().over("pid"))
        .filter("says")
        .group_by("pid", "turn", maintain_order=True)
        .agg(first=pl.col("result").first(), sent=pl.col("result").sum())
        .with_columns(http2=pl.col("first").first().over("pid") == _PREFACE)
    )
    return turns.filter(~pl.col("http2") | (pl.col("sent") > _ACKNOWLEDGED)).height


def _tree(spans: pl.DataFrame, root: int) -> set[int]:
    """The processes of a start, without the daemon's."""
    forks = spans.filter((pl.col("kind") == "fork") & (pl.col("name") == "process")).sort("start")
    tree = {root}
    for parent, child in forks.select("pid", "peer").iter_rows():
        if parent in tree:
            tree.add(child)
    return tree


VIEW = View(tables=_tables)
