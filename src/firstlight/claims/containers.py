"""The paper's claims C7 to C11, on container creation and network set-up."""

from collections.abc import Callable, Iterable, Iterator

import polars as pl

from firstlight.analysis import Analysis
from firstlight.analysis.causes import QUEUED
from firstlight.analysis.stats import (
    Floats,
    growth_exponent,
    interval,
    quantile_interval,
    ratio_interval,
    resampled_quantiles,
)
from firstlight.claims.engine import (
    MANY,
    REPETITIONS,
    SAME,
    Claim,
    Finding,
    Judgement,
    compare_to_bound,
    complete_batches,
    typical,
    verdict,
)
from firstlight.model import Interval, Sample
from firstlight.units import digits, percent_interval
from firstlight.units import ratio_interval as ratio_text

HEAVY_PHASES = ("cgroup", "security", "mount")

_Points = dict[str, dict[int, list[list[Sample]]]]
"""Complete batches by order and number of requests."""


def heavy_phases_are_constant(analysis: Analysis) -> Judgement:
    """C7: cgroup, security and mount take a large part, and do not grow with instances.

    Large: over a quarter of the median traced start of one container; three of the paper's eleven
    equal phases would have 27 %. Do not grow: the median time in them, per container and without
    waiting for a CPU, is less than 1.25 times as long with the most at once as with one. Waiting
    for a CPU is left out because it depends on the number of cores, not on these phases; the growth
    including it, and that of the whole creation, are shown as well.
    """

    def examine(runtime: str, alone: pl.DataFrame, many: pl.DataFrame, size: int) -> Finding | str:
        if alone["heavy_own"].median() == 0:
            return f"{runtime} does no cgroup, security or mount work"
        part = _share(alone, "heavy")
        own, wall, total = (_growth(alone, many, name) for name in ("heavy_own", "heavy", "total"))
        return Finding(
            [compare_to_bound(part, above=0.25), compare_to_bound(own, below=SAME[1])],
            f"{runtime}: {percent_interval(part)} of one; {size} at once: {ratio_text(own)} without"
            f" waiting for a CPU, {ratio_text(wall)} with it, whole creation {ratio_text(total)}",
        )

    return _by_runtime(analysis, examine)


def network_namespace_grows(analysis: Analysis) -> Judgement:
    """C8: making the network namespace is short for one and grows unusually with many.

    Short: under a tenth of the median traced start of one container, about an equal share of the
    paper's eleven phases. Unusually: from one to the most at once its median time grows more than
    that of the rest of the creation.
    """

    def examine(runtime: str, alone: pl.DataFrame, many: pl.DataFrame, size: int) -> Finding | str:
        if alone["net"].median() == 0:
            return f"{runtime} creates no network namespace"
        part, net, rest = _share(alone, "net"), *(_growth(alone, many, n) for n in ("net", "rest"))
        few, lots = (_resampled(side, "net", "rest") for side in (alone, many))
        unusual = interval(
            net.value / rest.value,
            (lots[:, 0] / few[:, 0]) / (lots[:, 1] / few[:, 1]),
            batches=min(side["batch"].n_unique() for side in (alone, many)),
        )
        return Finding(
            [compare_to_bound(part, below=0.10), compare_to_bound(unusual, above=1)],
            f"{runtime}: {percent_interval(part)} of one; {size} at once: {ratio_text(net)}, the"
            f" rest {ratio_text(rest)}, one over the other {ratio_text(unusual)}",
        )

    return _by_runtime(analysis, examine)


def moving_dominates(analysis: Analysis) -> Judgement:
    """C9: in parallel set-up, moving the veth is over 90 % of a request's latency.

    The median, over the requests of the largest bursts, of the step ``move`` as a part of the
    request's latency from its intended arrival.
    """

    def examine(method: str, points: _Points) -> Finding | str:
        parallel = points["parallel"]
        size = max(parallel)
        if size < MANY:
            return f"{method}: needs {MANY} or more requests at once"
        starts = [sample for batch in parallel[size] for sample in batch]
        shares = [_steps_ns([each], "move") / (each.latency or 1) for each in starts]
        part = quantile_interval(shares, 0.5, groups=[each.batch for each in starts])
        return Finding(
            [compare_to_bound(part, above=0.9)],
            f"{method}: {percent_interval(part)} with {size} at once",
        )

    return _by_method(analysis, examine, ("parallel",))


def moving_is_serial(analysis: Analysis) -> Judgement:
    """C10: moving veths costs the same in parallel as in sequence, and is linear in requests.

    The cost of a batch is the time during which at least one request is in the step ``move``. The
    same: per request, at the largest number that both orders have, parallel over sequential lies
    within 0.8 to 1.25. Linear: in parallel the cost grows as a power of the number of requests with
    an exponent within the same bounds.
    """

    def examine(method: str, points: _Points) -> Finding | str:
        parallel, sequential = points["parallel"], points["sequential"]
        size = max(parallel.keys() & sequential.keys(), default=0)
        if size < MANY or len(parallel) < 2:
            return f"{method}: needs one, and {MANY} or more requests, in both orders"
        at_once, in_order = (
            [_steps_ns(batch, "move") / size for batch in side[size]]
            for side in (parallel, sequential)
        )
        if not all(at_once + in_order):
            return f"{method}: some requests have no step named move"
        ratio = ratio_interval(at_once, in_order)
        sizes = [number for number, batches in parallel.items() for _ in batches]
        costs = [_steps_ns(batch, "move") for batches in parallel.values() for batch in batches]
        exponent = growth_exponent(sizes, costs)
        return Finding(
            [compare_to_bound(each, above=SAME[0], below=SAME[1]) for each in (ratio, exponent)],
            f"{method}: {typical(in_order)} a move in order,"
            f" {typical(at_once)} with {size} at once, ratio {ratio_text(ratio)};"
            f" grows as requests to the power {digits(exponent.value, 2)}"
            f" ({digits(exponent.low, 2)} to {digits(exponent.high, 2)})",
        )

    return _by_method(analysis, examine, ("parallel", "sequential"))


def parallel_beats_sequential(analysis: Analysis) -> Judgement:
    """C11: requests in parallel finish before the same requests in sequence.

    The time from a batch's first intended arrival to the end of its last request, sequential over
    parallel, is above 1: at 50 requests as in the paper, else at the largest number that both
    orders have.
    """

    def examine(method: str, points: _Points) -> Finding | str:
        both = points["parallel"].keys() & points["sequential"].keys()
        size = 50 if 50 in both else max(both, default=0)
        if size < MANY:
            return f"{method}: needs {MANY} or more requests in both orders"
        in_order, at_once = (
            [_makespan(batch) for batch in points[order][size]]
            for order in ("sequential", "parallel")
        )
        ratio = ratio_interval(in_order, at_once)
        return Finding(
            [compare_to_bound(ratio, above=1)],
            f"{method}: {size} requests {typical(in_order)} in order,"
            f" {typical(at_once)} at once, one over the other {ratio_text(ratio)}",
        )

    return _by_method(analysis, examine, ("parallel", "sequential"))


def _by_runtime(
    analysis: Analysis, examine: Callable[[str, pl.DataFrame, pl.DataFrame, int], Finding | str]
) -> Judgement:
    def findings() -> Iterator[Finding | str]:
        starts = _phases(analysis)
        for runtime in _paper_first(starts["runtime"].unique(), "runc"):
            mine = starts.filter(pl.col("runtime") == runtime)
            enough = mine.group_by("instances").agg(batches=pl.col("batch").n_unique())
            sizes = enough.filter(pl.col("batches") >= REPETITIONS)["instances"].to_list()
            if 1 not in sizes or max(sizes) < MANY:
                yield f"{runtime}: needs {REPETITIONS} complete traced batches of 1 and of {MANY}+"
                continue
            alone, many = (mine.filter(pl.col("instances") == size) for size in (1, max(sizes)))
            yield examine(runtime, alone, many, max(sizes))

    return verdict(findings())


def _by_method(
    analysis: Analysis,
    examine: Callable[[str, _Points], Finding | str],
    orders: tuple[str, ...],
) -> Judgement:
    def findings() -> Iterator[Finding | str]:
        batches = list(complete_batches(analysis.run, traced=False))
        methods = {str(batch[0].point["method"]) for _, batch in batches}
        for method in _paper_first(methods, "ip"):
            points: _Points = {order: {} for order in orders}
            for size, batch in batches:
                point = batch[0].point
                if point["method"] == method and point["order"] in orders:
                    points[str(point["order"])].setdefault(size, []).append(batch)
            for order, by_size in points.items():
                points[order] = {n: some for n, some in by_size.items() if len(some) >= REPETITIONS}
            if all(points.values()):
                yield examine(method, points)
            else:
                yield f"{method}: needs {REPETITIONS} complete batches {' and '.join(orders)}"

    return verdict(findings())


def _paper_first(names: Iterable[str], own: str) -> list[str]:
    return sorted(names, key=lambda name: (name != own, name))


def _steps_ns(batch: list[Sample], name: str) -> int:
    """How long at least one of the samples is in the step of this name, in ns."""
    covered, reached = 0, 0
    spans = sorted((s.start, s.end) for sample in batch for s in sample.steps if s.name == name)
    for start, end in spans:
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def _makespan(batch: list[Sample]) -> int:
    ready = max(sample.stamps.ready or 0 for sample in batch)
    return ready - min(sample.stamps.intended for sample in batch)


def _share(starts: pl.DataFrame, name: str) -> Interval:
    shares = (starts[name] / starts["total"]).to_numpy()
    return quantile_interval(shares, 0.5, groups=starts["batch"].to_numpy())


def _growth(alone: pl.DataFrame, many: pl.DataFrame, name: str) -> Interval:
    return ratio_interval(
        many[name].to_numpy(),
        alone[name].to_numpy(),
        groups_a=many["batch"].to_numpy(),
        groups_b=alone["batch"].to_numpy(),
    )


def _resampled(starts: pl.DataFrame, *names: str) -> Floats:
    return resampled_quantiles(
        starts.select(names).to_numpy(), 0.5, groups=starts["batch"].to_numpy()
    )


def _phases(analysis: Analysis) -> pl.DataFrame:
    """One row per traced start: batch, runtime, instances, and wall times in ns.

    Columns: total; heavy and heavy_own (cgroup, security and mount, and the same without
    waiting for a CPU); net (making the network namespace); rest (total without net).
    """
    heavy = pl.col("phase").is_in(HEAVY_PHASES)
    parts = analysis.breakdown.group_by("sample").agg(
        total=pl.col("wall").sum(),
        heavy=pl.col("wall").filter(heavy).sum(),
        heavy_own=pl.col("wall").filter(heavy, pl.col("cause") != QUEUED).sum(),
        net=pl.col("wall").filter(pl.col("phase") == "ns.net").sum(),
    )
    whole = [batch[0].batch for _, batch in complete_batches(analysis.run, traced=True)]
    starts = analysis.run.frame.filter(pl.col("batch").is_in(whole)).select(
        "batch", "runtime", "instances", sample=pl.col("index").cast(pl.UInt32)
    )
    return starts.join(parts, on="sample").with_columns(rest=pl.col("total") - pl.col("net"))


C7 = Claim(
    "C7",
    "cgroup, security and mount are a large part of container creation,"
    " and do not grow with instances",
    "Fig. 6",
    ("container-creation",),
    heavy_phases_are_constant,
)


C8 = Claim(
    "C8",
    "Network-namespace creation is short for one and grows unusually with many",
    "Fig. 6",
    ("container-creation",),
    network_namespace_grows,
)


C9 = Claim(
    "C9",
    "In parallel network set-up, moving the veth between namespaces is over 90 % of the latency",
    "Fig. 7",
    ("network-setup",),
    moving_dominates,
)


C10 = Claim(
    "C10",
    "Moving veths costs the same in parallel as in sequence: linear in requests,"
    " one at a time under a global lock",
    "Fig. 7",
    ("network-setup",),
    moving_is_serial,
)


C11 = Claim(
    "C11",
    "Parallel requests still beat sequential",
    "50 requests: 6.5 s → 1.95 s",
    ("network-setup",),
    parallel_beats_sequential,
)
