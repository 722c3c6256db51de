"""What each kind of function costs to start."""

from collections.abc import Iterator

from firstlight.analysis import Analysis
from firstlight.report.points import find, median, over
from firstlight.report.records import Table, View
from firstlight.units import ratio_interval

_HANDLERS = {
    "zygote": "a fork of a warm Python runs its handler's first line after {}",
    "zygote-ready": "a waiting fork after {}",
    "wasm": "a WebAssembly function runs after {}",
}


_CONTAINER = "python3 in runc"


def _answer(analysis: Analysis) -> str | None:
    slow = find(analysis, function=_CONTAINER, instances=1)
    kinds = {name: find(analysis, function=name, instances=1) for name in _HANDLERS}
    if not any(kinds.values()):
        return None
    clauses = []
    for name, words in _HANDLERS.items():
        if point := kinds[name]:
            faster = f", {ratio_interval(over(slow, point))} faster" if slow else ""
            clauses.append(words.format(median(point)) + faster)
    beside = f" than {_CONTAINER} ({median(slow)})" if slow else ""
    return f"On this machine {clauses[0]}{beside}{''.join(f'; {c}' for c in clauses[1:])}."


def _tables(analysis: Analysis) -> Iterator[Table]:
    slow = find(analysis, function=_CONTAINER, instances=1)
    rows = []
    for name in dict.fromkeys(str(point.point["function"]) for point in analysis.points):
        point = find(analysis, function=name, instances=1)
        if point:
            faster = ratio_interval(over(slow, point)) if slow and point is not slow else "–"
            rows.append((name, median(point), faster))
    headings = ("function", "one start", f"faster than {_CONTAINER}")
    if rows:
        yield Table("kinds of functions, one at a time", headings, tuple(rows))


VIEW = View(answer=_answer, tables=_tables)
