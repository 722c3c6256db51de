"""What the root of a function has for its volumes and secrets."""

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from firstlight.agile.functions import mounts as module
from firstlight.agile.functions.mounts import Mounts, _name
from firstlight.agile.functions.records import Code
from firstlight.errors import Failed


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    return Mounts(tmp_path, cast("Any", None))


@pytest.mark.parametrize("points", [("/a", "/a/b/"), ("/a", "/a/"), ("/a/", "/a"), ("/a", "/a/b")])
def test_points_that_exclude_each_other_are_refused_by_name(
    mounts: Mounts, points: tuple[str, ...]
) -> None:
    with pytest.raises(Failed, match=f"cannot make {points[1]} below the code's root"):
        mounts._below(points)


def test_every_user_reaches_the_points_whatever_the_umask(mounts: Mounts) -> None:
    before = os.umask(0o077)
    try:
        made = [mounts._below(("/a/b/c/", "/d/e")) for _ in range(2)][-1]
    finally:
        os.umask(before)
    for name in (".", "a", "a/b", "a/b/c", "d"):
        assert stat.S_IMODE((made / name).stat().st_mode) == 0o755
    assert (made / "d/e").is_file()


def test_root_name_of_many_layers_is_bounded() -> None:
    first, second = (
        Code(source="oci:x", digest="", size=1, trees=tuple(range(start, start + 127)))
        for start in (100_000, 100_001)
    )
    assert len(_name(first, ("/a/",))) <= 255
    assert _name(first, ()) != _name(second, ())


def test_nothing_is_left_of_a_root_that_cannot_be_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Failed("no overlay")

    place, trees = tmp_path / "place", tmp_path / "trees"
    for each in (place, trees):
        each.mkdir()
    content = SimpleNamespace(path=lambda number: trees / str(number))
    monkeypatch.setattr(module, "_mount", fail)
    code = Code(source="oci:x", digest="", size=1, trees=(1, 2))
    with pytest.raises(Failed, match="no overlay"):
        Mounts(place, cast("Any", content)).root(code, ("/a/",))
    assert not (place / _name(code, ("/a/",))).exists()
