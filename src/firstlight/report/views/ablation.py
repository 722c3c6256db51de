"""What each prepared part gains."""

from collections.abc import Iterator

from firstlight.analysis import Analysis
from firstlight.report.points import find, long, median
from firstlight.report.records import Picture, Table, View
from firstlight.report.worth import BASES, worth
from firstlight.units import duration, ratio_interval


def _answer(analysis: Analysis) -> str | None:
    whole = find(analysis, without="nothing", instances=min(p.instances for p in analysis.points))
    if not whole:
        return None
    end = str(analysis.end_point)
    every = [
        gain for gain in worth(analysis) if (gain.instances, gain.end) == (whole.instances, end)
    ]
    by = {gain.part: gain for gain in every}
    sentence = (
        f"On this machine an agile start from a whole sandbox takes {median(whole)} to its {end}"
    )
    for part, words in (("sandboxes", "from parts"), ("everything", "with nothing prepared")):
        if part in by:
            sentence += f"; {words} {long(by[part].longer, by[part].batches)}"
    parts = [gain for gain in every if gain.part not in BASES]
    gains = sorted((gain for gain in parts if gain.is_certain), key=lambda gain: -gain.extra)
    if gains:
        listed = (f"{g.part} {duration(g.extra)}, {ratio_interval(g.longer)}" for g in gains)
        sentence += f". The measured gains are {'; '.join(listed)}"
    rest = [gain.part for gain in parts if gain not in gains]
    if rest:
        sentence += f". No gain is certain for {', '.join(rest)}"
    return sentence + "."


def _tables(analysis: Analysis) -> Iterator[Table]:
    every = worth(analysis)
    ends = list(dict.fromkeys((gain.end, gain.instances) for gain in every))
    by = {(gain.part, gain.end, gain.instances): gain for gain in every}
    rows = [
        (
            part,
            *(
                f"{_signed(gain.extra)}, {ratio_interval(gain.longer)}"
                if (gain := by.get((part, *end)))
                else "–"
                for end in ends
            ),
        )
        for part in dict.fromkeys(gain.part for gain in every)
    ]
    headings = ("left out", *(f"{end}, {many} at once" for end, many in ends))
    if rows:
        yield Table("what each part gains for a start", headings, tuple(rows))


def _signed(ns: float) -> str:
    return f"{'+' if ns >= 0 else '−'}{duration(abs(ns))}"  # noqa: RUF001 - a minus sign


def _pictures(analysis: Analysis) -> Iterator[Picture]:
    from firstlight.report.plots.ablation import ablation

    if any(point.untraced_samples for point in analysis.lead) and (every := worth(analysis)):
        yield Picture(
            "worth",
            "What each prepared part gains",
            "Median of starts without it over that of starts with it, with 95 % intervals; "
            "grey where leaving it out may cost nothing. Untraced starts only.",
            {"": ablation(every)},
        )


VIEW = View(answer=_answer, tables=_tables, pictures=_pictures)
