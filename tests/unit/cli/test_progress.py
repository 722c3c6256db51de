"""How long a run takes is told from its batches, and again where it turns out otherwise."""

from types import SimpleNamespace
from typing import cast

import pytest

from firstlight.cli import progress
from firstlight.lab.schedule import Batch

BATCH = cast(Batch, SimpleNamespace(traced=False, point={"instances": 1}))


@pytest.mark.parametrize(
    ("set_up", "batches", "told"),
    [
        (4.0, [0.1] * 40, ["10 s"]),
        (4.0, [0.2, 1.0] + [0.1] * 46, ["20 s", "10 s in all, not 20 s"]),
        (1.0, [1.0] * 5 + [2.0] * 20, ["30 s", "40 s in all, not 30 s"]),
        (4.0, [40.0] * 40, ["27 min"]),
    ],
)
def test_a_run_says_how_long_it_takes(
    set_up: float,
    batches: list[float],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    shown = progress.Progress("floor", budget=None)
    now[0] += set_up
    for number, seconds in enumerate(batches):
        shown.begin(BATCH, number / len(batches))
        now[0] += seconds
    assert capsys.readouterr().err == "".join(f"measuring takes about {each}\n" for each in told)


@pytest.mark.parametrize(
    ("all_of_it", "told"),
    [
        (True, ["floor: measuring takes about 75 s"]),
        (False, ["floor: measuring takes at most 75 s", "measuring takes about 50 s"]),
    ],
)
def test_a_budget_is_the_time_or_the_most(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, all_of_it: bool,
    told: list[str],
) -> None:  # fmt: skip
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    shown = progress.Progress("floor", 75.0, all_of_it=all_of_it)
    for number in range(10):
        shown.begin(BATCH, number / 10)
        now[0] += 5.0
    assert capsys.readouterr().err == "".join(f"{each}\n" for each in told)
