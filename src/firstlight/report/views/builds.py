"""The contents of each build of a hypervisor, and its init."""

from collections.abc import Iterator

from firstlight.analysis import Analysis, boot
from firstlight.report.records import Table, View
from firstlight.report.views.boots import alone, answer
from firstlight.units import duration, duration_interval

_COUNTED = ("features", "shared objects", "relocations")


def _tables(analysis: Analysis) -> Iterator[Table]:
    """The contents of each build of a hypervisor, and its init: the paper's Fig. 3(b)."""
    facts = analysis.header.environment
    rows = []
    for point in alone(analysis):
        assert point.boot
        init = duration_interval(dict(point.boot.phases)[boot.INIT])
        build = str(point.point["build"])
        known = {name: facts.get(f"{build}: {name}") for name in (*_COUNTED, "linker ns")}
        of = {name: each if isinstance(each, int | float) else 0 for name, each in known.items()}
        linker = duration(of["linker ns"])
        rows.append((build, *(f"{of[name]:,}" for name in _COUNTED), linker, init))
    headings = ("build", "devices", "objects", "relocations", "linker", "hypervisor init")
    if rows:
        yield Table("contents of each build", headings, tuple(rows))


VIEW = View(answer=answer, tables=_tables)
