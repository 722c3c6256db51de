"""The two sides of a comparison: two runs, or two settings measured in one run."""

import msgspec

from firstlight.errors import FirstlightError
from firstlight.model import Point, Setting
from firstlight.store import Run


def of_runs(a: Run, b: Run) -> tuple[Run, Run]:
    """Two runs, without the axes that have a single but different setting in each: runs of
    ``old/crun`` and of ``new/crun`` then have the same points.
    """
    each_side = settings(a), settings(b)
    named = [
        axis
        for axis, each in each_side[0].items()
        if len(each) == 1 and len(other := each_side[1].get(axis, [])) == 1 and each != other
    ]
    return _without(a, named), _without(b, named)


def of_run(run: Run) -> tuple[Run, Run]:
    """The halves of a run whose axis has two settings, such as two runtimes; the first is A.

    Raises FirstlightError unless exactly one axis, besides ``instances``, has several settings.
    """
    several = {axis: each for axis, each in settings(run).items() if len(each) > 1}
    if len(several) != 1 or len(next(iter(several.values()))) != 2:
        raise FirstlightError(
            f"{run.path} has no two runtimes to compare",
            "give two runs, or one of two runtimes: run container-creation --runtime OLD,NEW",
        )
    [(axis, two)] = several.items()
    first, second = (_without(_only(run, axis, setting), [axis]) for setting in two)
    return first, second


def settings(run: Run) -> dict[str, list[Setting]]:
    """The settings of each axis but ``instances``, in order."""
    return {
        axis: list(dict.fromkeys(point[axis] for point in run.header.points if axis in point))
        for axis in run.header.axes
        if axis != "instances"
    }


def _only(run: Run, axis: str, setting: Setting) -> Run:
    points = tuple(point for point in run.header.points if point.get(axis) == setting)
    samples = [sample for sample in run.samples if sample.point.get(axis) == setting]
    return Run(run.path, msgspec.structs.replace(run.header, points=points), samples, run.footer)


def _without(run: Run, axes: list[str]) -> Run:
    def cut(point: Point) -> Point:
        return {axis: setting for axis, setting in point.items() if axis not in axes}

    header = msgspec.structs.replace(
        run.header,
        axes=tuple(axis for axis in run.header.axes if axis not in axes),
        points=tuple(cut(point) for point in run.header.points),
    )
    samples = [msgspec.structs.replace(each, point=cut(each.point)) for each in run.samples]
    return Run(run.path, header, samples, run.footer)
