"""The report of ``run storms`` names what a remedy ends, and no storm that is left with it."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from firstlight.claims.advice import Advice
from firstlight.model import Interval
from firstlight.report.views import storms


def _advice(storm: str, state: str, milliseconds: int) -> Advice:
    gain = Interval(*[milliseconds * 1e6] * 3)
    return Advice(storm, _point(state), state, "fact", "remedy", gain, 0.5, ())


def _point(state: str) -> dict[str, Any]:
    return {"storm": "seccomp compiled anew", "state": state, "instances": 1}


@pytest.mark.parametrize(
    ("left", "answer"),
    [("cgroup move", "1 are named"), ("many mounts", "0 are named")],
)
def test_a_storm_left_by_the_remedy_is_not_named(
    left: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [
        _advice("cgroup move", "met", 11),
        _advice("seccomp compiled anew", "met", 6),
        _advice(left, "mended", 11),
    ]
    monkeypatch.setattr(storms, "advise", lambda *_: named)
    points = [
        SimpleNamespace(point=_point(state), instances=1, latency=object())
        for state in ("met", "mended")
    ]
    analysis = cast(Any, SimpleNamespace(points=points))
    assert storms.VIEW.answer is not None
    assert answer in str(storms.VIEW.answer(analysis))
