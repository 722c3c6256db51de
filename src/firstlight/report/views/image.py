"""What an image costs by layer, as containerd reports it."""

from collections.abc import Iterator

import numpy as np

from firstlight.analysis import Analysis
from firstlight.model import Sample
from firstlight.report.records import Table, View
from firstlight.units import duration

_STEPS = ("fetchLayer", "unpackLayer")


def _tables(analysis: Analysis) -> Iterator[Table]:
    rows = []
    for point in analysis.points:
        layers = [_layers(sample) for sample in point.traced_samples]
        layers = [each for each in layers if each]
        if not layers:
            continue
        for number in range(min(map(len, layers))):
            times = (
                duration(float(np.median([each[number][step] for each in layers])))
                for step in range(len(_STEPS))
            )
            rows.append((f"{point.series}: layer {number + 1}", *times))
    if rows:
        yield Table("the layers of an image (medians)", ("", "fetched", "unpacked"), tuple(rows))


def _layers(sample: Sample) -> list[tuple[int, ...]]:
    """How long each layer was fetched and unpacked, in ns, in the order of their beginning."""
    spent: dict[str, dict[str, int]] = {}
    for span in sample.telemetry.spans if sample.telemetry else ():
        match span.name.split():
            case ["image", step, layer, *_] if step in _STEPS:
                spent.setdefault(layer, {})[step] = span.end - span.start
    return [tuple(each.get(step, 0) for step in _STEPS) for each in spent.values()]


VIEW = View(tables=_tables)
