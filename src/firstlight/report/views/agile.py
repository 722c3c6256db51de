"""What prepared parts gain over a runtime with a plugin."""

from firstlight.analysis import Analysis
from firstlight.report.points import faster, find, last_faster, median
from firstlight.report.records import View
from firstlight.units import duration_interval

_OURS = {"agile", "agile-ready", "agile-cold", "agile by client", "floor"}


def _answer(analysis: Analysis) -> str | None:
    runtime, *others = [name for name in analysis.series if name not in _OURS] or [""]
    alone, slow = (
        find(analysis, backend="agile", instances=1),
        find(analysis, backend=runtime, instances=1),
    )
    if not (alone and slow):
        return None
    sentence = (
        f"On this machine an agile start takes {median(alone)} to its {analysis.end_point}, "
        f"{faster(slow, alone, runtime)}"
    )
    if whole := find(analysis, backend="agile-ready", instances=1):
        sentence += f"; from a whole sandbox {median(whole)}, {faster(slow, whole)}"
    for name in others:
        if other := find(analysis, backend=name, instances=1):
            sentence += f"; {name}, {median(other)}, {faster(slow, other)}"
    most = max(p.instances for p in analysis.of("agile"))
    many, slow = (find(analysis, backend=name, instances=most) for name in ("agile", runtime))
    if most > 1 and many and slow and many.all_ready and slow.all_ready:
        sentence += (
            f". With {most} at once the last is ready after "
            f"{duration_interval(many.all_ready)}, {last_faster(slow, many)}"
        )
        whole = find(analysis, backend="agile-ready", instances=most)
        if whole and whole.all_ready:
            sentence += (
                f"; from whole sandboxes after {duration_interval(whole.all_ready)}, "
                f"{last_faster(slow, whole)}"
            )
    return sentence + "."


VIEW = View(answer=_answer)
