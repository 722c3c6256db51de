"""Watched starts are kept as runs, and old runs are removed."""

import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from firstlight import store
from firstlight.analysis import Analysis, compare
from firstlight.lab.watch.follow import Window
from firstlight.lab.watch.keep import Keeper, Limits
from firstlight.lab.watch.programs import Program
from firstlight.lab.watch.starts import Start
from firstlight.store import SPAN_SCHEMA


def window(*containers: str, namespace: str = "web") -> Window:
    starts = [
        Start(
            name,
            [Program(1, 1, 10, "/usr/bin/runc", ("runc", "run", name), {})],
            {"runtime": "runc", "namespace": namespace},
            ready=50,
            traced=True,
        )
        for name in containers
    ]
    return Window(starts, 0, pl.DataFrame(schema=SPAN_SCHEMA), ())


def runs(directory: Path) -> list[Path]:
    return sorted(directory.glob("watch-*"))


def test_a_run_ends_when_it_is_long_and_the_next_begins(tmp_path: Path) -> None:
    with Keeper(tmp_path, Limits(starts=2)) as keeper:
        for name in "abcde":
            keeper.add(window(name))
    kept = [[sample.labels["id"] for sample in store.read(run).samples] for run in runs(tmp_path)]
    assert kept == [["a", "b"], ["c", "d"], ["e"]]


def test_all_runs_together_stay_below_the_size(tmp_path: Path) -> None:
    limits = Limits(total=100_000, starts=1)
    with Keeper(tmp_path, limits) as keeper:
        for index in range(100):
            keeper.add(window(f"c{index}"))
    last = [store.read(run).samples[0].labels["id"] for run in runs(tmp_path)]
    assert last[-1] == "c99"
    assert 2 < len(last) < 60
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert size < 1.2 * limits.total


def test_a_run_ends_when_it_is_large(tmp_path: Path) -> None:
    limits = Limits(total=140_000)
    with Keeper(tmp_path, limits) as keeper:
        for index in range(40):
            keeper.add(window(f"c{index}"))
    closed = runs(tmp_path)[:-1]
    assert closed
    for run in closed:
        size = sum(file.stat().st_size for file in (run / "samples.jsonl", *run.glob("spans/*")))
        assert limits.size <= size < 1.5 * limits.size


def test_a_start_is_kept_without_a_look_at_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Keeper(tmp_path, Limits()) as keeper, monkeypatch.context() as patched:
        patched.setattr(Path, "rglob", lambda *_: pytest.fail("it walks the run"))
        for index in range(3):
            keeper.add(window(f"c{index}"))


def test_the_figures_are_of_all_starts(tmp_path: Path) -> None:
    """On a busy node few starts are traced, but each total is known."""
    with Keeper(tmp_path, Limits(1 << 20, 1)) as keeper:
        for name, traced in (("a", True), ("b", False)):
            seen = window(name)
            seen.starts[0].traced = traced
            list(keeper.add(seen))
    [run] = map(store.read, runs(tmp_path))
    [point] = Analysis(run).points
    assert point.latency is not None
    assert point.latency.count == 2
    assert [len(starts) for starts in compare._by_point(run).values()] == [2]


def test_runs_that_are_too_old_are_removed(tmp_path: Path) -> None:
    with Keeper(tmp_path, Limits(starts=1)) as keeper:
        keeper.add(window("old"))
        keeper.add(window("new"))
        old = runs(tmp_path)[0]
        os.utime(old, (0, 0))
    assert old not in runs(tmp_path)
    assert len(runs(tmp_path)) == 1


@pytest.mark.parametrize("namespaces", [1, 40])
def test_namespaces_beyond_the_first_are_one(tmp_path: Path, namespaces: int) -> None:
    with Keeper(tmp_path, Limits()) as keeper:
        for index in range(namespaces):
            [(sample, _)] = keeper.add(window(f"c{index}", namespace=f"n{index}"))
        assert sample.point["namespace"] == ("other" if namespaces > 20 else "n0")


def test_names_that_others_chose_cannot_write_to_a_terminal(tmp_path: Path) -> None:
    with Keeper(tmp_path, Limits()) as keeper:
        seen = window("a\x1b[31m\udcff", namespace="n\n\u202e" + 300 * "x")
        seen.starts[0].labels |= {"runtime": "r\n", "engine": "e\udcff\n"}
        keeper.add(seen)
        path = keeper.path
    [sample] = store.read(path).samples
    assert sample.labels["id"] == "a\ufffd[31m\ufffd"
    assert sample.point["namespace"] == sample.labels["namespace"]
    assert (sample.point["runtime"], sample.point["engine"]) == ("r\ufffd", "e\ufffd\ufffd")
    assert sample.labels["namespace"] == "n\ufffd\ufffd" + 252 * "x" + "…"


def test_what_others_keep_beside_the_runs_stays(tmp_path: Path) -> None:
    notes, link = tmp_path / "watch-notes", tmp_path / "watch-link"
    notes.mkdir()
    (notes / "mine").write_bytes(bytes(200_000))
    link.symlink_to(notes)
    os.utime(notes, (0, 0))
    with Keeper(tmp_path, Limits(total=100_000, starts=1)) as keeper:
        keeper.add(window("a"))
        keeper.add(window("b"))
    kept = {path.name for path in runs(tmp_path)}
    assert {"watch-notes", "watch-link"} < kept
    assert len(kept) == 4


def test_a_run_that_somebody_removes_is_followed_by_another(tmp_path: Path) -> None:
    with Keeper(tmp_path, Limits()) as keeper:
        for name in "ab":
            keeper.add(window(name))
            shutil.rmtree(keeper.path)
        keeper.add(window("c"))
    [run] = map(store.read, runs(tmp_path))
    assert [sample.labels["id"] for sample in run.samples] == ["c"]


def test_a_run_that_vanishes_while_old_ones_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size(run: Path) -> int:
        shutil.rmtree(run)
        return run.stat().st_size

    with Keeper(tmp_path, Limits(starts=1)) as keeper:
        keeper.add(window("a"))
        monkeypatch.setattr("firstlight.lab.watch.keep._size", size)
        keeper.add(window("b"))
