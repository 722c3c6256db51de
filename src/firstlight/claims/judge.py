"""The paper's claims as functions of runs: ``judge`` says which hold on this machine.

A claim holds when the whole 95 % interval of its figure is on the claim's side of a bound, does
not hold when the whole interval is on the other, and is otherwise not measured well enough. The
bounds stand in the docstring of each claim's function. Only complete batches count (every start
of the burst ready), and a point needs ``REPETITIONS`` of them. Where several runtimes or methods
were measured, the paper's own (runc, ip) decides and the others' figures stand beside it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from firstlight.analysis.breakdown import breakdown
from firstlight.analysis.causes import QUEUED
from firstlight.analysis.stats import (
    Floats,
    growth_exponent,
    interval,
    quantile_interval,
    ratio_interval,
    resampled_quantiles,
)
from firstlight.claims import agile as claims_agile
from firstlight.claims import boot as claims_boot
from firstlight.claims import cni as claims_cni
from firstlight.claims.evidence import (
    MANY,
    REPETITIONS,
    SAME,
    Finding,
    Outcome,
    complete_batches,
    joined,
    side,
    typical,
)
from firstlight.model import EndPoint, Interval, Sample
from firstlight.store import Run
from firstlight.units import digits, percent_interval
from firstlight.units import ratio_interval as times

HEAVY_PHASES = ("cgroup", "security", "mount")


@dataclass(frozen=True)
class Verdict:
    """What the runs say of one claim. ``figure`` has the numbers, or why there are none."""

    id: str
    claim: str
    paper: str
    verdict: Outcome
    figure: str


@dataclass(frozen=True)
class Evidence:
    """One run of the claim's experiment, with its breakdown when a claim asks for it."""

    run: Run

    @cached_property
    def phases(self) -> pl.DataFrame:
        """One row a traced start: batch, runtime, instances, and ns of wall time.

        Columns: total; heavy and heavy_own (cgroup, security and mount, and the same without
        waiting for a CPU); net (making the network namespace); rest (total without net).
        """
        heavy = pl.col("phase").is_in(HEAVY_PHASES)
        parts = (
            breakdown(self.run)
            .group_by("sample")
            .agg(
                total=pl.col("wall").sum(),
                heavy=pl.col("wall").filter(heavy).sum(),
                heavy_own=pl.col("wall").filter(heavy, pl.col("cause") != QUEUED).sum(),
                net=pl.col("wall").filter(pl.col("phase") == "ns.net").sum(),
            )
        )
        whole = [batch[0].batch for _, batch in complete_batches(self.run, traced=True)]
        starts = self.run.frame.filter(pl.col("batch").is_in(whole)).select(
            "batch", "runtime", "instances", sample=pl.col("index").cast(pl.UInt32)
        )
        return starts.join(parts, on="sample").with_columns(rest=pl.col("total") - pl.col("net"))


@dataclass(frozen=True)
class Claim:
    """A row of the table: the experiment that can tell, and how.

    ``also`` are other experiments whose runs can tell as well.
    """

    id: str
    claim: str
    paper: str
    experiment: str
    found: Callable[[Evidence], tuple[Outcome, str]]
    also: tuple[str, ...] = ()

    @property
    def experiments(self) -> tuple[str, ...]:
        """All experiments whose runs can tell."""
        return self.experiment, *self.also

    def can_tell(self, run: Run) -> bool:
        """Whether a run is evidence: of CNIs only their ADD is, not the first packet after it."""
        header = run.header
        is_of_packet = header.end_point is EndPoint.FIRST_PACKET
        is_of_cni = header.experiment.startswith("cni-")
        return header.experiment in self.experiments and not (is_of_cni and is_of_packet)


_Points = dict[str, dict[int, list[list[Sample]]]]
"""Complete batches by order and number of requests."""


def judge(runs: Sequence[Run]) -> list[Verdict]:
    """All claims in the paper's order; each by the newest run that can tell."""
    return [Verdict(claim.id, claim.claim, claim.paper, *_outcome(claim, runs)) for claim in CLAIMS]


def heavy_phases_are_constant(evidence: Evidence) -> tuple[Outcome, str]:
    """C7: cgroup, security and mount take a large part, and do not grow with instances.

    Large: over a quarter of the median traced start of one container; three of the paper's
    eleven phases would have 27 % if all were alike. Do not grow: the median time in them, per
    container and without waiting for a CPU, is less than 1.25 times as long with the most at once
    as with one. Waiting for a CPU is left out because it is the machine's number of cores and not
    these phases; the growth with it, and that of the whole creation, stand beside it.
    """

    def found(runtime: str, one: pl.DataFrame, many: pl.DataFrame, size: int) -> Finding | str:
        if one["heavy_own"].median() == 0:
            return f"{runtime} does no cgroup, security or mount work"
        part = _share(one, "heavy")
        own, wall, total = (_growth(one, many, name) for name in ("heavy_own", "heavy", "total"))
        return Finding(
            [side(part, above=0.25), side(own, below=SAME[1])],
            f"{runtime}: {percent_interval(part)} of one; {size} at once: {times(own)} without"
            f" waiting for a CPU, {times(wall)} with it, whole creation {times(total)}",
        )

    return _by_runtime(evidence, found)


def network_namespace_grows(evidence: Evidence) -> tuple[Outcome, str]:
    """C8: making the network namespace is short for one and grows unusually with many.

    Short: under a tenth of the median traced start of one container, about the even share of
    the paper's eleven phases. Unusually: from one to the most at once its median time grows more
    than that of all the rest of the creation.
    """

    def found(runtime: str, one: pl.DataFrame, many: pl.DataFrame, size: int) -> Finding | str:
        if one["net"].median() == 0:
            return f"{runtime} makes no network namespace"
        part, net, rest = _share(one, "net"), *(_growth(one, many, n) for n in ("net", "rest"))
        few, lots = (_resampled(side, "net", "rest") for side in (one, many))
        unusual = interval(
            net.value / rest.value, (lots[:, 0] / few[:, 0]) / (lots[:, 1] / few[:, 1])
        )
        return Finding(
            [side(part, below=0.10), side(unusual, above=1)],
            f"{runtime}: {percent_interval(part)} of one; {size} at once: {times(net)}, the rest"
            f" {times(rest)}, one over the other {times(unusual)}",
        )

    return _by_runtime(evidence, found)


def moving_dominates(evidence: Evidence) -> tuple[Outcome, str]:
    """C9: in parallel set-up, moving the veth is over 90 % of a request's latency.

    The median, over the requests of the largest bursts, of the step ``move`` as a part of the
    request's latency from its intended arrival.
    """

    def found(method: str, points: _Points) -> Finding | str:
        parallel = points["parallel"]
        size = max(parallel)
        if size < MANY:
            return f"{method}: needs {MANY} or more requests at once"
        starts = [sample for batch in parallel[size] for sample in batch]
        shares = [_steps_ns([each], "move") / (each.latency or 1) for each in starts]
        part = quantile_interval(shares, 0.5, groups=[each.batch for each in starts])
        return Finding(
            [side(part, above=0.9)],
            f"{method}: {percent_interval(part)} with {size} at once",
        )

    return _by_method(evidence, found, ("parallel",))


def moving_is_serial(evidence: Evidence) -> tuple[Outcome, str]:
    """C10: moving veths costs the same in parallel as in order, and is linear in requests.

    The cost of a batch is the time during which at least one of its requests is in the step
    ``move``. The same: per request, and at the largest number that both orders have, parallel
    over sequential lies within 0.8 to 1.25. Linear: in parallel it grows as a power of the number
    of requests whose exponent lies within the same bounds.
    """

    def found(method: str, points: _Points) -> Finding | str:
        parallel, sequential = points["parallel"], points["sequential"]
        size = max(parallel.keys() & sequential.keys(), default=0)
        if size < MANY or len(parallel) < 2:
            return f"{method}: needs one, and {MANY} or more requests, in both orders"
        at_once, in_order = (
            [_steps_ns(batch, "move") / size for batch in side[size]]
            for side in (parallel, sequential)
        )
        ratio = ratio_interval(at_once, in_order)
        sizes = [number for number, batches in parallel.items() for _ in batches]
        costs = [_steps_ns(batch, "move") for batches in parallel.values() for batch in batches]
        exponent = growth_exponent(sizes, costs)
        return Finding(
            [side(each, above=SAME[0], below=SAME[1]) for each in (ratio, exponent)],
            f"{method}: {typical(in_order)} a move in order,"
            f" {typical(at_once)} with {size} at once, ratio {times(ratio)};"
            f" grows as requests to the power {digits(exponent.value, 2)}"
            f" ({digits(exponent.low, 2)} to {digits(exponent.high, 2)})",
        )

    return _by_method(evidence, found, ("parallel", "sequential"))


def parallel_beats_sequential(evidence: Evidence) -> tuple[Outcome, str]:
    """C11: requests in parallel are done before the same requests in order.

    The time from the first intended arrival of a batch to its last request's end, sequential over
    parallel, is above 1: at 50 requests as in the paper, or else at the largest number that both
    orders have.
    """

    def found(method: str, points: _Points) -> Finding | str:
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
            [side(ratio, above=1)],
            f"{method}: {size} requests {typical(in_order)} in order,"
            f" {typical(at_once)} at once, {times(ratio)} faster",
        )

    return _by_method(evidence, found, ("parallel", "sequential"))


CLAIMS = (
    Claim(
        "C1",
        "Hypervisor init depends on the hypervisor and not on the guest's other components",
        "Fig. 3(a)",
        "unikernel-boot",
        claims_boot.hypervisor_decides_its_init,
    ),
    Claim(
        "C2",
        "A hypervisor that enters the kernel directly skips disk read and decompression",
        "QEMU pays both, Firecracker neither",
        "boot-protocol",
        claims_boot.direct_entry_skips_loading,
    ),
    Claim(
        "C3",
        "QEMU's init grows with the features built in, because of dynamic linking",
        "Fig. 3(b)",
        "hypervisor-builds",
        claims_boot.features_slow_init,
    ),
    Claim(
        "C4",
        "The VGA console dominates driver loading; serial does not",
        "157 ms → 6 ms",
        "driver-loading",
        claims_boot.vga_dominates_drivers,
    ),
    Claim(
        "C5",
        "A read-write file system dominates mounting; a read-only one does not",
        "ZFS 175 ms, read-only 0.7 ms",
        "unikernel-boot",
        claims_boot.writable_file_systems_dominate,
    ),
    Claim(
        "C6",
        "With many at once, hypervisor init and the VGA driver grow;"
        " network init and the block driver hardly do",
        "Fig. 5, Fig. 4",
        "unikernel-scale",
        claims_boot.hypervisor_and_vga_grow,
    ),
    Claim(
        "C7",
        "cgroup, security and mount are a large part of container creation,"
        " and do not grow with instances",
        "Fig. 6",
        "container-creation",
        heavy_phases_are_constant,
    ),
    Claim(
        "C8",
        "Network-namespace creation is short for one and grows unusually with many",
        "Fig. 6",
        "container-creation",
        network_namespace_grows,
    ),
    Claim(
        "C9",
        "In parallel network set-up, moving the veth between namespaces is over 90 %"
        " of the latency",
        "Fig. 7",
        "network-setup",
        moving_dominates,
    ),
    Claim(
        "C10",
        "Moving veths costs the same in parallel as in order: linear in requests,"
        " one at a time under a global lock",
        "Fig. 7",
        "network-setup",
        moving_is_serial,
    ),
    Claim(
        "C11",
        "Parallel requests still beat sequential",
        "50 requests: 6.5 s → 1.95 s",
        "network-setup",
        parallel_beats_sequential,
    ),
    Claim(
        "C12",
        "Flannel and Kube-router are the quickest; gratuitous ARP is about half of theirs",
        "~70 ms, of which ~35 ms",
        "cni-breakdown",
        claims_cni.quickest_by_garp,
    ),
    Claim(
        "C13",
        "Weave pays for extra namespace switches",
        "~200 ms",
        "cni-breakdown",
        claims_cni.weave_pays_for_switches,
    ),
    Claim(
        "C14",
        "Calico pays for its datastore: IP assignment over REST",
        "~80 ms of it",
        "cni-breakdown",
        claims_cni.calico_pays_for_its_datastore,
    ),
    Claim(
        "C15",
        "Cilium pays for eBPF generation and loading",
        "~150 ms",
        "cni-breakdown",
        claims_cni.cilium_pays_for_ebpf,
    ),
    Claim(
        "C16",
        "Background pods do not slow a new pod (pattern A)",
        "Fig. 9(a)",
        "cni-background",
        claims_cni.background_is_free,
    ),
    Claim(
        "C17",
        "Starting together, Cilium degrades fastest, Flannel and Kube-router least (pattern B)",
        "Fig. 9(b)",
        "cni-burst",
        claims_cni.cilium_degrades_fastest,
    ),
    Claim(
        "C18",
        "A pool of prepared network namespaces relieves network set-up",
        "proposed, not measured there; related work says up to 80 %",
        "agile",
        claims_agile.pool_relieves,
        also=("ablation",),
    ),
)
"""The paper's claims, in its order."""


def _outcome(claim: Claim, runs: Sequence[Run]) -> tuple[Outcome, str]:
    outcome: tuple[Outcome, str] = (
        "not measured",
        f"needs a run of {claim.experiment}: firstlight run {claim.experiment}",
    )
    fitting = [run for run in runs if claim.can_tell(run)]
    for age, run in enumerate(sorted(fitting, key=lambda run: run.header.started, reverse=True)):
        found = claim.found(Evidence(run))
        if found[0] != "not measured":
            return found
        outcome = found if age == 0 else outcome
    return outcome


def _by_runtime(
    evidence: Evidence, found: Callable[[str, pl.DataFrame, pl.DataFrame, int], Finding | str]
) -> tuple[Outcome, str]:
    def findings() -> Iterator[Finding | str]:
        starts = evidence.phases
        for runtime in _paper_first(starts["runtime"].unique(), "runc"):
            mine = starts.filter(pl.col("runtime") == runtime)
            enough = mine.group_by("instances").agg(batches=pl.col("batch").n_unique())
            sizes = enough.filter(pl.col("batches") >= REPETITIONS)["instances"].to_list()
            if 1 not in sizes or max(sizes) < MANY:
                yield f"{runtime}: needs {REPETITIONS} complete traced batches of 1, of {MANY}+"
                continue
            one, many = (mine.filter(pl.col("instances") == size) for size in (1, max(sizes)))
            yield found(runtime, one, many, max(sizes))

    return joined(findings())


def _by_method(
    evidence: Evidence,
    found: Callable[[str, _Points], Finding | str],
    orders: tuple[str, ...],
) -> tuple[Outcome, str]:
    def findings() -> Iterator[Finding | str]:
        batches = list(complete_batches(evidence.run, traced=False))
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
                yield found(method, points)
            else:
                yield f"{method}: needs {REPETITIONS} complete batches {' and '.join(orders)}"

    return joined(findings())


def _paper_first(names: Iterable[str], own: str) -> list[str]:
    return sorted(names, key=lambda name: (name != own, name))


def _steps_ns(batch: list[Sample], name: str) -> int:
    """For how long, in ns, at least one of the samples is in the step of this name."""
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


def _growth(one: pl.DataFrame, many: pl.DataFrame, name: str) -> Interval:
    return ratio_interval(
        many[name].to_numpy(),
        one[name].to_numpy(),
        groups_a=many["batch"].to_numpy(),
        groups_b=one["batch"].to_numpy(),
    )


def _resampled(starts: pl.DataFrame, *names: str) -> Floats:
    return resampled_quantiles(
        starts.select(names).to_numpy(), 0.5, groups=starts["batch"].to_numpy()
    )
