"""The words of ``firstlight agile function``: what they name, and what has no effect."""

from pathlib import Path
from typing import get_args

import pytest

from firstlight.agile.function import Reach, Reuse
from firstlight.agile.functions.records import LATEST, Code, Registration, Revision, Settings
from firstlight.agile.functions.version import FunctionVersion, Kind
from firstlight.cli import agile, function
from firstlight.errors import FirstlightError


def test_choices_are_those_of_functions() -> None:
    assert get_args(Reach) == agile.NETWORKS
    assert get_args(Reuse) == agile._REUSES
    assert get_args(Kind) == function._KINDS


@pytest.mark.parametrize(("handler", "name"), [("", "NAME"), ("main", "main"), ("x.main", "main")])
def test_a_file_as_the_source_is_refused_with_its_place(
    tmp_path: Path, handler: str, name: str
) -> None:
    file = tmp_path / "app.py"
    file.touch()
    with pytest.raises(FirstlightError) as refused:
        function._source(str(file), handler)
    assert refused.value.hint is not None
    assert f"--handler {file}:{name}" in refused.value.hint


def test_what_follows_the_dashes_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(*words: str) -> tuple[bool, object]:
        monkeypatch.setattr("sys.argv", ["firstlight", "agile", "function", "update", "f", *words])
        source, *command = (word for word in words if word != "--")
        code, settings = function._given(source, command, "", "", None, None, None, None,
                                         network=None, scratch="2M", pids=7)  # fmt: skip
        assert (settings.scratch, settings.pids) == (2 << 20, 7)
        return code is not None, settings.command

    assert given("--", "serve", "now") == (False, ("serve", "now"))
    assert given(str(tmp_path), "--", "now") == (True, ("now",))


@pytest.mark.parametrize(
    ("kind", "handler", "lines"),
    [
        ("python", "app:main", 2),
        ("python", "app.main", 1),
        ("command", "", 2),
        ("http", "", 0),
        ("wasm", "main", 3),
    ],
)
def test_settings_without_effect_are_named(kind: str, handler: str, lines: int) -> None:
    version = FunctionVersion(name="f", kind=kind, handler=handler)  # type: ignore[arg-type]
    given = Settings(keep_warm=5.0, per_instance=3, pids=7)
    assert len(list(function._without_effect(given, version))) == lines
    assert not list(function._without_effect(Settings(), version))


@pytest.mark.parametrize(
    ("published", "there", "newest"),
    [(0, [], LATEST), (2, ["1", "2"], "2"), (2, ["1"], LATEST)],
)
def test_list_names_newest_version_that_there_is(
    published: int, there: list[str], newest: str
) -> None:
    code = Code(source="/code", digest="sha256:0", size=1, trees=(1,))
    version = FunctionVersion(name="f", kind="command")
    revision = Revision(number=1, version=version, code=code, settings=Settings())
    revisions = dict.fromkeys([LATEST, *there], revision)
    registered = Registration(name="f", revisions=revisions, published=published)
    assert function._newest(registered) == newest
