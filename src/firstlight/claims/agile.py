"""The paper's last claim, proposed there but not measured: what a pool gains."""

from collections.abc import Iterator
from dataclasses import dataclass

from firstlight.analysis import Analysis
from firstlight.analysis.stats import ratio_interval
from firstlight.claims.engine import (
    MANY,
    REPETITIONS,
    Claim,
    Finding,
    Judgement,
    compare_to_bound,
    complete_batches,
    verdict,
)
from firstlight.model import Interval
from firstlight.units import ratio_interval as ratio_text


@dataclass(frozen=True)
class _Sides:
    """The axis and two settings by which an experiment compares a start with and without a pool."""

    axis: str
    pooled: str
    empty: str
    words: str


_SIDES = {
    "agile": _Sides("backend", "agile", "agile-cold", "empty pools over full pools"),
    "ablation": _Sides("without", "sandboxes", "networks", "a new network over a pooled one"),
}


def pool_relieves(analysis: Analysis) -> Judgement:
    """C18: a pool of prepared network namespaces relieves network set-up.

    The same code starts instances from full and from empty pools; in an ablation only the network
    pool is left out. It holds if the median start is slower without the pool, both alone and with
    the most at once that both have (10 or more).
    """
    sides = _SIDES[analysis.run.header.experiment]
    by_size: dict[str, dict[int, list[tuple[int, int]]]] = {sides.pooled: {}, sides.empty: {}}
    batches: dict[tuple[str, int], int] = {}
    for size, batch in complete_batches(analysis.run, traced=False):
        name = str(batch[0].point[sides.axis])
        if name in by_size:
            batches[name, size] = batches.get((name, size), 0) + 1
            starts = by_size[name].setdefault(size, [])
            starts += [(each.batch, each.latency) for each in batch if each.latency is not None]

    def findings() -> Iterator[Finding | str]:
        sizes = [
            size
            for size in by_size[sides.pooled]
            if min(batches.get((name, size), 0) for name in by_size) >= REPETITIONS
        ]
        if 1 not in sizes or max(sizes) < MANY:
            yield (
                f"needs {REPETITIONS} complete batches of 1 and of {MANY}+, "
                "with and without the pool"
            )
            return
        gains = {
            size: _gain(by_size[sides.pooled][size], by_size[sides.empty][size])
            for size in (1, max(sizes))
        }
        words = ", ".join(f"{size} at once: {ratio_text(gain)}" for size, gain in gains.items())
        yield Finding(
            [compare_to_bound(gain, above=1) for gain in gains.values()],
            f"{sides.words}: {words}",
        )

    return verdict(findings())


def _gain(pooled: list[tuple[int, int]], empty: list[tuple[int, int]]) -> Interval:
    return ratio_interval(
        [latency for _, latency in empty],
        [latency for _, latency in pooled],
        groups_a=[batch for batch, _ in empty],
        groups_b=[batch for batch, _ in pooled],
    )


C18 = Claim(
    "C18",
    "A pool of prepared network namespaces relieves network set-up",
    "proposed, not measured there; related work says up to 80 %",
    ("agile", "ablation"),
    pool_relieves,
)
