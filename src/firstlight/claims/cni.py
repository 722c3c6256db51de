"""The paper's claims C12 to C17, on the cost of CNI plugins, as functions of runs.

Each of the paper's five is judged by the network of conf/cni that is closest to what the paper
measured (for flannel and kube-router the sets of 2021); if a newer one was measured, a second
finding is shown as well. A profile that stands in for a product is named as such. Runs of a
cluster's pods decide, where there are any; the verdict of the plugins alone is shown beside it.
"""

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

import numpy as np
import polars as pl

from firstlight.analysis.stats import (
    Floats,
    difference_interval,
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
    Source,
    compare_to_bound,
    verdict,
)
from firstlight.claims.networks import Evidence, Plugins, Pods
from firstlight.model import EndPoint, Interval
from firstlight.units import digits, duration_interval, percent_interval

PAYS = 0.25
"""A CNI "pays for" what takes over a quarter of its ADD; C12 itself says "about half"."""

HALF = (0.5 * SAME[0], 0.5 * SAME[1])

_FAMILIES = {
    "kube-router": (("kube-router-2021", "kube-router"), ("kube-router",)),
    "flannel": (("flannel-2021", "flannel"), ("flannel",)),
    "weave": (("weave", "weave-profile"), ()),
    "calico": (("calico-profile", "calico"), ("calico",)),
    "cilium": (("cilium", "cilium-profile", "cilium-whole-profile"), ()),
}
"""The networks of each of the paper's five: as it was then, the closest first, and as it is now."""

_Five = dict[str, str]
"""The measured network for each of the paper's five."""


def quickest_by_garp(evidence: Evidence) -> Judgement:
    """C12: flannel and kube-router are faster than the rest; half of their time is gratuitous ARP.

    Faster: the median untraced ADD of each other CNI, over that of each of the two, is above 1.
    Half: the median share of ``garp`` in traced ADDs of the two lies within 0.4 and 0.625.
    """
    latencies, shares = _alone(evidence), _shares(evidence, ("garp",))

    def examine(five: _Five) -> Finding | str:
        two = [five[name] for name in ("kube-router", "flannel") if name in five]
        rest = [name for name in five.values() if name not in two]
        if len(two) < 2 or not rest:
            return "needs kube-router, flannel and another CNI"
        quicker = [_ratio(latencies[slow], latencies[quick]) for slow in rest for quick in two]
        garp = {name: _interval(shares[name]) for name in two}
        return Finding(
            [compare_to_bound(each, above=1) for each in quicker]
            + [compare_to_bound(share, above=HALF[0], below=HALF[1]) for share in garp.values()],
            ", ".join(f"{name} {_typical(latencies[name])}" for name in (*two, *rest))
            + "; gratuitous ARP "
            + ", ".join(f"{percent_interval(share)} of {name}" for name, share in garp.items()),
        )

    return _judged(examine, latencies.keys() & shares.keys())


def weave_pays_for_switches(evidence: Evidence) -> Judgement:
    """C13: entering network namespaces is over a quarter of weave's ADD, more than any other's."""
    return _pays(evidence, "weave", ("netns.switch",), "switching network namespaces")


def calico_pays_for_its_datastore(evidence: Evidence) -> Judgement:
    """C14: datastore and address plugin are over a quarter of calico's ADD, more than others'."""
    return _pays(evidence, "calico", ("datastore", "ipam"), "datastore and address plugin")


def cilium_pays_for_ebpf(evidence: Evidence) -> Judgement:
    """C15: compiling and loading eBPF is over a quarter of cilium's ADD, more than any other's."""
    return _pays(evidence, "cilium", ("ebpf",), "eBPF")


def background_is_free(evidence: Evidence) -> Judgement:
    """C16: with the most pods, the median untraced ADD is less than 1.25 times that with none.

    The most are 10 or more; it must hold for all measured CNIs.
    """
    by_network = evidence.times("background")

    def examine(five: _Five) -> Finding | str:
        grown = {}
        for name in five.values():
            points = by_network[name]
            if 0 not in points or max(points) < MANY:
                return (
                    f"{name}: needs {REPETITIONS} complete batches with 0 and {MANY}+ pods running"
                )
            grown[name] = (_ratio(points[max(points)], points[0]), max(points))
        return Finding(
            [compare_to_bound(ratio, below=SAME[1]) for ratio, _ in grown.values()],
            ", ".join(
                f"{name} {_times(ratio)} with {most} running"
                for name, (ratio, most) in grown.items()
            ),
        )

    return _judged(examine, by_network.keys())


def cilium_degrades_fastest(evidence: Evidence) -> Judgement:
    """C17: from one to the most at once cilium's median grows by the largest factor.

    Flannel's and kube-router's grow by smaller factors than weave's and calico's. Untraced, at the
    largest number of ADDs at once that all were measured with.
    """
    by_network = evidence.times("instances")

    def examine(five: _Five) -> Finding | str:
        if not {"cilium", "flannel", "kube-router"} <= five.keys():
            return "needs cilium, flannel and kube-router"
        common = set.intersection(*(set(by_network[name]) for name in five.values()))
        if 1 not in common or max(common) < MANY:
            return f"needs {REPETITIONS} complete batches of 1, and of {MANY}+ at once, of each CNI"
        most = max(common)
        grown = {
            family: _grown(by_network[name][most], by_network[name][1])
            for family, name in five.items()
        }
        orders = [("cilium", other) for other in grown if other != "cilium"]
        orders += [
            (slow, quick)
            for slow in ("weave", "calico")
            for quick in ("flannel", "kube-router")
            if slow in grown
        ]
        return Finding(
            [
                compare_to_bound(_bounds(_over(grown[more], grown[less])), above=1)
                for more, less in orders
            ],
            f"{most} at once: "
            + ", ".join(
                f"{five[family]} {_times(_bounds(ratio))}" for family, ratio in grown.items()
            ),
        )

    return _judged(examine, by_network.keys())


_Grown = tuple[float, Floats, int]
"""An estimate, its bootstrap draws, and the batches of the side that has fewer."""


def _judged(examine: Callable[[_Five], Finding | str], measured: AbstractSet[str]) -> Judgement:
    def findings() -> Iterator[Finding | str]:
        then = {
            family: min(measured & set(names), key=names.index)
            for family, (names, _) in _FAMILIES.items()
            if measured & set(names)
        }
        now = then | {
            family: min(measured & set(names), key=names.index)
            for family, (_, names) in _FAMILIES.items()
            if measured & set(names)
        }
        if not then:
            yield f"none of the paper's CNIs has {REPETITIONS} complete batches"
            return
        yield examine(then)
        if now != then:
            yield examine(now)

    return verdict(findings())


def _pays(evidence: Evidence, family: str, phases: tuple[str, ...], what: str) -> Judgement:
    times, shares = evidence.inside(phases), _shares(evidence, phases)

    def examine(five: _Five) -> Finding | str:
        if family not in five or len(five) < 2:
            return f"needs {family} and another CNI"
        own = five[family]
        share = _interval(shares[own])
        others = [name for name in five.values() if name != own]
        more = [_difference(times[own], times[other]) for other in others]
        return Finding(
            [
                compare_to_bound(share, above=PAYS),
                *(compare_to_bound(each, above=0) for each in more),
            ],
            f"{own}: {what} {percent_interval(share)}, {_typical(times[own])}; "
            + ", ".join(f"{other} {_typical(times[other])}" for other in others),
        )

    return _judged(examine, shares.keys())


def _alone(evidence: Evidence) -> dict[str, pl.DataFrame]:
    """Untraced, one pod alone, by network: batch and value, in ns."""
    return {name: points[1] for name, points in evidence.times("instances").items() if 1 in points}


def _shares(evidence: Evidence, phases: tuple[str, ...]) -> dict[str, pl.DataFrame]:
    return {
        name: part.with_columns(value=pl.col("value") / pl.col("total"))
        for name, part in evidence.inside(phases).items()
    }


def _draws(part: pl.DataFrame) -> Floats:
    return resampled_quantiles(part["value"].to_numpy(), 0.5, groups=part["batch"].to_numpy())


def _median(part: pl.DataFrame) -> float:
    return float(np.median(part["value"].to_numpy()))


def _interval(part: pl.DataFrame) -> Interval:
    return quantile_interval(part["value"].to_numpy(), 0.5, groups=part["batch"].to_numpy())


def _ratio(over: pl.DataFrame, under: pl.DataFrame) -> Interval:
    return ratio_interval(
        over["value"].to_numpy(),
        under["value"].to_numpy(),
        groups_a=over["batch"].to_numpy(),
        groups_b=under["batch"].to_numpy(),
    )


def _grown(over: pl.DataFrame, under: pl.DataFrame) -> _Grown:
    batches = min(side["batch"].n_unique() for side in (over, under))
    return _median(over) / _median(under), _draws(over) / _draws(under), batches


def _over(more: _Grown, less: _Grown) -> _Grown:
    return more[0] / less[0], more[1] / less[1], min(more[2], less[2])


def _difference(more: pl.DataFrame, less: pl.DataFrame) -> Interval:
    return difference_interval(
        more["value"].to_numpy(),
        less["value"].to_numpy(),
        groups_a=more["batch"].to_numpy(),
        groups_b=less["batch"].to_numpy(),
    )


def _bounds(grown: _Grown) -> Interval:
    value, draws, batches = grown
    return interval(value, draws, batches=batches)


def _times(ratio: Interval) -> str:
    return f"{digits(ratio.value, 1)}× ({digits(ratio.low, 1)}–{digits(ratio.high, 1)})"


def _typical(part: pl.DataFrame) -> str:
    return duration_interval(_interval(part))


def _claim(
    name: str, sentence: str, paper: str, experiment: str, pods: str,
    judged: Callable[[Evidence], Judgement],
) -> Claim:  # fmt: skip
    """Judged by an experiment's plugins, and by an experiment's pods."""
    return Claim(
        name,
        sentence,
        paper,
        (experiment,),
        lambda analysis: judged(Plugins(analysis)),
        frozenset(EndPoint) - {EndPoint.FIRST_PACKET},  # evidence is the ADD only
        Source("pods", (pods,), lambda analysis: judged(Pods(analysis))),
    )


C12 = _claim(
    "C12", "Flannel and Kube-router are the fastest; half of their time is gratuitous ARP",
    "~70 ms, of which ~35 ms", "cni-breakdown", "kubernetes-pods", quickest_by_garp,
)  # fmt: skip

C13 = _claim(
    "C13", "Weave pays for extra namespace switches",
    "~200 ms", "cni-breakdown", "kubernetes-pods", weave_pays_for_switches,
)  # fmt: skip

C14 = _claim(
    "C14", "Calico pays for its datastore: IP assignment over REST",
    "~80 ms of it", "cni-breakdown", "kubernetes-pods", calico_pays_for_its_datastore,
)  # fmt: skip

C15 = _claim(
    "C15", "Cilium pays for eBPF generation and loading",
    "~150 ms", "cni-breakdown", "kubernetes-pods", cilium_pays_for_ebpf,
)  # fmt: skip

C16 = _claim(
    "C16", "Background pods do not slow a new pod (pattern A)",
    "Fig. 9(a)", "cni-background", "kubernetes-background", background_is_free,
)  # fmt: skip

C17 = _claim(
    "C17", "Starting together, Cilium degrades fastest, Flannel and Kube-router least (pattern B)",
    "Fig. 9(b)", "cni-burst", "kubernetes-pods", cilium_degrades_fastest,
)  # fmt: skip
