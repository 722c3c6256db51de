"""What each kind of function costs to start."""

from collections.abc import Iterator

from firstlight.analysis import Analysis
from firstlight.report.points import faster, find, median
from firstlight.report.records import Table, View

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
    clauses: list[str] = []
    for name, words in _HANDLERS.items():
        if point := kinds[name]:
            than = "" if clauses or not slow else f"{_CONTAINER} ({median(slow)})"
            beside = f", {faster(slow, point, than)}" if slow else ""
            clauses.append(words.format(median(point)) + beside)
    return f"On this machine {'; '.join(clauses)}."


def _tables(analysis: Analysis) -> Iterator[Table]:
    slow = find(analysis, function=_CONTAINER, instances=1)
    rows = []
    for name in dict.fromkeys(str(point.point["function"]) for point in analysis.points):
        point = find(analysis, function=name, instances=1)
        if point:
            beside = faster(slow, point) if slow and point is not slow else "–"
            rows.append((name, median(point), beside))
    headings = ("function", "one start", f"beside {_CONTAINER}")
    if rows:
        yield Table("kinds of functions, one at a time", headings, tuple(rows))


VIEW = View(answer=_answer, tables=_tables)
