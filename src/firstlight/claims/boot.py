"""The paper's claims C1 to C6, on how VMs boot, as functions of runs.

All are judged by untraced starts: hypervisor init by its own step, the guest's parts by its log
(``boot.account``). The first guest of a run decides; the figures of the others are shown as well.
Counted instructions are not used.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from firstlight.analysis import Analysis, boot
from firstlight.analysis.stats import (
    Floats,
    interval,
    quantile_interval,
    ratio_interval,
    resampled_quantiles,
)
from firstlight.claims.engine import (
    REPETITIONS,
    SAME,
    Claim,
    Finding,
    Judgement,
    compare_to_bound,
    complete_batches,
    verdict,
)
from firstlight.model import Interval, Point, Sample
from firstlight.store import Run
from firstlight.units import duration, percent_interval
from firstlight.units import ratio_interval as ratio_text

READ_ONLY = frozenset({"rofs", "erofs", "squashfs"})
READ_WRITE = frozenset({"zfs", "ext", "ext4", "btrfs"})
DIRECT = frozenset({"pvh", "direct"})
DOMINATES = 0.5
"""A part dominates if it is more than half of the whole."""

_HYPERVISOR = frozenset({boot.INIT, "firmware"})
_LOADING = ("kernel.load", "kernel.uncompress")
_DRIVERS = ("driver.console", "driver.block", "driver.net", "driver.rng", "driver.other", "pci")


@dataclass(frozen=True)
class _Starts:
    """The starts of one point: the account of each in ns, and its batch."""

    point: Point
    accounts: list[dict[str, int]]
    batches: list[int]

    def times(self, *phases: str) -> Floats:
        """The total time of some phases, shape (starts,)."""
        return np.array([sum(start.get(p, 0) for p in phases) for start in self.accounts], float)

    def own(self) -> Floats:
        """The guest's own time: all except the hypervisor's and the firmware's."""
        return np.array(
            [sum(t for p, t in start.items() if p not in _HYPERVISOR) for start in self.accounts],
            float,
        )

    def median(self, values: Floats) -> Interval:
        return quantile_interval(values, 0.5, groups=self.batches)

    def typical(self, *phases: str) -> str:
        return duration(float(np.median(self.times(*phases))))

    def words(self, *axes: str) -> str:
        return " ".join(str(self.point[axis]) for axis in axes if axis in self.point)


def hypervisor_decides_its_init(analysis: Analysis) -> Judgement:
    """C1: hypervisor init depends on the hypervisor, not on the guest's other components.

    For each hypervisor, the longest median init over the shortest, across file systems and
    consoles, lies within 0.8 to 1.25; across hypervisors the slowest over the fastest is above
    1.25.
    """

    def examine(starts: list[_Starts]) -> Finding | str:
        by: dict[str, list[_Starts]] = {}
        for start in starts:
            by.setdefault(start.words("hypervisor"), []).append(start)
        if len(by) < 2 or max(map(len, by.values())) < 2:
            return "needs two hypervisors, one of them with two file systems or consoles"
        within = {name: _spread(some) for name, some in by.items() if len(some) > 1}
        middle = sorted(by.values(), key=lambda some: float(np.median(_all(some))))
        between = _ratio(middle[-1], middle[0], boot.INIT)
        inits = ", ".join(f"{name} {duration(float(np.median(_all(s))))}" for name, s in by.items())
        return Finding(
            [*(compare_to_bound(each, above=SAME[0], below=SAME[1]) for each in within.values()),
             compare_to_bound(between, above=SAME[1])],
            f"{inits}; between them {ratio_text(between)}, within "
            + ", ".join(f"{name} {ratio_text(each)}" for name, each in within.items()),
        )  # fmt: skip

    return _by_guest(analysis.run, examine)


def direct_entry_skips_loading(analysis: Analysis) -> Judgement:
    """C2: entering the kernel directly skips disk read and decompression.

    The median time that the guest logs for being read or decompressing itself is above 0 for the
    slowest boot sector or packed kernel, and no guest that is entered directly (PVH, or the 64-bit
    entry) logs any. The time of the firmware before it is shown as well.
    """

    def examine(starts: list[_Starts]) -> Finding | str:
        packed = [start for start in starts if start.point["protocol"] not in DIRECT]
        direct = [start for start in starts if start.point["protocol"] in DIRECT]
        if not packed or not direct:
            return "needs a boot from a disk or of a packed kernel, and a direct one"
        paid = max(
            (start.median(start.times(*_LOADING)) for start in packed), key=lambda m: m.value
        )
        each = ", ".join(
            f"{start.words('hypervisor', 'protocol')} {start.typical(*_LOADING)}"
            f" and {start.typical('firmware')} of firmware"
            for start in starts
        )
        return Finding(
            [
                compare_to_bound(paid, above=0),
                not any(start.times(*_LOADING).any() for start in direct),
            ],
            f"reading and decompressing: {each}",
        )

    return _by_guest(analysis.run, examine)


def features_slow_init(analysis: Analysis) -> Judgement:
    """C3: QEMU's init grows with the features built in, because of dynamic linking.

    The median init of the build with the most devices over that with the fewest is above 1.25, and
    the difference of their times in the dynamic linker, by its own count, is over half of the
    difference of their inits.
    """
    facts = analysis.run.header.environment

    def fact(start: _Starts, name: str) -> float:
        value = facts.get(f"{start.point['build']}: {name}", 0)
        return float(value) if isinstance(value, int | float) else 0.0

    def examine(starts: list[_Starts]) -> Finding | str:
        order = sorted(starts, key=lambda start: fact(start, "features"))
        if len(order) < 2:
            return "needs two builds"
        few, many = order[0], order[-1]
        grown = _ratio([many], [few], boot.INIT)
        each = ", ".join(
            f"{start.point['build']} {fact(start, 'features'):.0f} devices, "
            f"{fact(start, 'shared objects'):.0f} shared objects, "
            f"{duration(fact(start, 'linker ns'))} linking of "
            f"{start.typical(boot.INIT)}"
            for start in order
        )
        if grown.low <= 1:  # without a difference there is no share
            return Finding(
                [compare_to_bound(grown, above=SAME[1])], f"{each}; init {ratio_text(grown)}"
            )
        drawn = [
            resampled_quantiles(start.times(boot.INIT), 0.5, groups=start.batches, seed=seed)[:, 0]
            for seed, start in enumerate((many, few))
        ]
        difference = float(np.median(many.times(boot.INIT)) - np.median(few.times(boot.INIT)))
        linking = fact(many, "linker ns") - fact(few, "linker ns")
        share = interval(
            linking / difference,
            linking / (drawn[0] - drawn[1]),
            batches=min(len(set(start.batches)) for start in (many, few)),
        )
        return Finding(
            [compare_to_bound(grown, above=SAME[1]), compare_to_bound(share, above=DOMINATES)],
            f"{each}; init {ratio_text(grown)}, "
            f"linking {percent_interval(share)} of the difference",
        )

    return _by_guest(analysis.run, examine)


def vga_dominates_drivers(analysis: Analysis) -> Judgement:
    """C4: the VGA console dominates driver loading; serial does not.

    The median share of the console driver in the time of all drivers, alone, is above a half with
    VGA and below it with serial. For a guest whose log does not separate its console driver (OSv),
    all drivers together take more than twice as long with VGA as with serial.
    """

    def examine(starts: list[_Starts]) -> Finding | str:
        alone = {start.words("console"): start for start in starts if start.point["instances"] == 1}
        if not {"vga", "serial"} <= alone.keys():
            return "needs both consoles, one instance"
        vga, serial = alone["vga"], alone["serial"]
        if not (vga.times(*_DRIVERS).all() and serial.times(*_DRIVERS).all()):
            return "logs no drivers"
        growth = _ratio([vga], [serial], *_DRIVERS)
        both = f"all drivers, VGA over serial {ratio_text(growth)}"
        if not (vga.times("driver.console").any() or serial.times("driver.console").any()):
            return Finding(
                [compare_to_bound(growth, above=1 / DOMINATES)],
                f"its log does not separate the console driver; {both}",
            )
        share = {
            name: start.median(start.times("driver.console") / start.times(*_DRIVERS))
            for name, start in alone.items()
        }
        return Finding(
            [
                compare_to_bound(share["vga"], above=DOMINATES),
                compare_to_bound(share["serial"], below=DOMINATES),
            ],
            f"console {percent_interval(share['vga'])} of drivers with VGA, "
            f"{percent_interval(share['serial'])} with serial; {both}",
        )

    return _by_guest(analysis.run, examine)


def writable_file_systems_dominate(analysis: Analysis) -> Judgement:
    """C5: a read-write file system dominates mounting; a read-only one does not.

    The median share of mounting in the guest's own time is above a half with each read-write file
    system, and below it with each read-only one. The ratio of the slowest read-write mount is shown
    as well.
    """

    def examine(starts: list[_Starts]) -> Finding | str:
        serial = [start for start in starts if start.point.get("console", "serial") == "serial"]
        kinds = {
            name: [start for start in serial if start.point.get("filesystem") in kinds]
            for name, kinds in (("read-write", READ_WRITE), ("read-only", READ_ONLY))
        }
        if not all(kinds.values()):
            return "needs a read-only and a read-write file system"
        sides, words = [], []
        for name, some in kinds.items():
            for start in some:
                share = start.median(start.times("mount") / np.maximum(start.own(), 1))
                bound = {"above" if name == "read-write" else "below": DOMINATES}
                sides.append(compare_to_bound(share, **bound))
                words.append(
                    f"{start.words('hypervisor', 'filesystem')} {start.typical('mount')} "
                    f"({percent_interval(share)})"
                )
        return Finding(sides, "mount, of the guest's own time: " + ", ".join(words))

    return _by_guest(analysis.run, examine)


def hypervisor_and_vga_grow(analysis: Analysis) -> Judgement:
    """C6: with many at once, hypervisor init and the VGA driver grow; network init and the block
    driver hardly do.

    From one to the most at once, the median hypervisor init and, on VGA, the console driver take
    more than 1.25 times as long; network init and the block driver grow by less than either.
    """

    def examine(starts: list[_Starts]) -> Finding | str:
        vga = [start for start in starts if start.point["console"] == "vga"]
        by_size = {int(start.point["instances"]): start for start in vga}
        most = max(by_size, default=0)
        if 1 not in by_size or most < 2:
            return "needs one VGA instance, and several at once"
        alone, many = by_size[1], by_size[most]
        grown = {
            name: _ratio([many], [alone], *phases)
            for name, phases in (
                ("hypervisor init", (boot.INIT,)), ("VGA driver", ("driver.console",)),
                ("network init", ("net.init", "driver.net")), ("block driver", ("driver.block",)),
            )
            if alone.times(*phases).any() and many.times(*phases).any()
        }  # fmt: skip
        if len(grown) < 4:
            return f"its log has only {', '.join(grown)}"
        (init, console), calm = list(grown.values())[:2], list(grown.values())[2:]
        least = min(init.low, console.low)
        return Finding(
            [compare_to_bound(init, above=SAME[1]), compare_to_bound(console, above=SAME[1]),
             *(compare_to_bound(each, below=least) for each in calm)],
            f"{most} at once: " + ", ".join(f"{name} {ratio_text(g)}" for name, g in grown.items()),
        )  # fmt: skip

    return _by_guest(analysis.run, examine)


def _by_guest(run: Run, examine: Callable[[list[_Starts]], Finding | str]) -> Judgement:
    """Judge each kind of guest of a run separately; the first decides."""

    def findings() -> Iterator[Finding | str]:
        starts = _starts(run)
        for guest in dict.fromkeys(boot.kind(run.header, point) for point in run.header.points):
            mine = [start for start in starts if boot.kind(run.header, start.point) == guest]
            finding: Finding | str = f"needs {REPETITIONS} complete batches of each point"
            if mine:
                finding = examine(mine)
            whose = f"{guest}: " if guest else ""
            if isinstance(finding, str):
                yield f"{whose}{finding}"
            else:
                yield Finding(finding.conditions, f"{whose}{finding.figure}")

    every = list(findings())
    decided = [finding for finding in every if isinstance(finding, Finding)]
    return verdict(decided + [reason for reason in every if isinstance(reason, str)])


def _starts(run: Run) -> list[_Starts]:
    batches: dict[tuple[object, ...], list[list[Sample]]] = {}
    for _, batch in complete_batches(run, traced=False):
        point = batch[0].point
        if point.get("clock", "wall") == "wall":
            batches.setdefault(tuple(sorted(point.items())), []).append(batch)
    measured = []
    for some in batches.values():
        samples = [sample for batch in some for sample in batch]
        accounts = [boot.account(sample) for sample in samples]
        if len(some) >= REPETITIONS and all(accounts):
            measured.append(_Starts(samples[0].point, accounts, [s.batch for s in samples]))
    place = {tuple(sorted(point.items())): at for at, point in enumerate(run.header.points)}
    return sorted(measured, key=lambda start: place.get(tuple(sorted(start.point.items())), 0))


def _all(some: list[_Starts]) -> Floats:
    return np.concatenate([start.times(boot.INIT) for start in some])


def _spread(some: list[_Starts]) -> Interval:
    """The longest median init of some points over the shortest."""
    order = sorted(some, key=lambda start: float(np.median(start.times(boot.INIT))))
    return _ratio([order[-1]], [order[0]], boot.INIT)


def _ratio(above: list[_Starts], below: list[_Starts], *phases: str) -> Interval:
    sides = []
    for some in (above, below):
        values = np.concatenate([start.times(*phases) for start in some])
        sides.append((np.maximum(values, 1), [batch for start in some for batch in start.batches]))
    (a, groups_a), (b, groups_b) = sides
    return ratio_interval(a, b, groups_a=groups_a, groups_b=groups_b)


C1 = Claim(
    "C1",
    "Hypervisor init depends on the hypervisor, not on the guest's other components",
    "Fig. 3(a)",
    ("unikernel-boot",),
    hypervisor_decides_its_init,
)


C2 = Claim(
    "C2",
    "A hypervisor that enters the kernel directly skips disk read and decompression",
    "QEMU pays both, Firecracker neither",
    ("boot-protocol",),
    direct_entry_skips_loading,
)


C3 = Claim(
    "C3",
    "QEMU's init grows with the features built in, because of dynamic linking",
    "Fig. 3(b)",
    ("hypervisor-builds",),
    features_slow_init,
)


C4 = Claim(
    "C4",
    "The VGA console dominates driver loading; serial does not",
    "157 ms → 6 ms",
    ("driver-loading",),
    vga_dominates_drivers,
)


C5 = Claim(
    "C5",
    "A read-write file system dominates mounting; a read-only one does not",
    "ZFS 175 ms, read-only 0.7 ms",
    ("unikernel-boot",),
    writable_file_systems_dominate,
)


C6 = Claim(
    "C6",
    "With many at once, hypervisor init and the VGA driver grow;"
    " network init and the block driver hardly do",
    "Fig. 5, Fig. 4",
    ("unikernel-scale",),
    hypervisor_and_vga_grow,
)
