"""How processes of dead runs are known while they change their program."""

import time
from pathlib import Path

import pytest

from firstlight.lab import clean

MEMORY, NONE = "4096", "0"


def stat(memory: str, environment_end: str) -> str:
    fields = ["S", *["0"] * 49]
    fields[20], fields[48] = memory, environment_end
    return f"7 (a b) {' '.join(fields)}\n"


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/environ").write_bytes(b"")
    monkeypatch.setattr(clean, "_PROC", tmp_path)
    return tmp_path / "7"


def test_a_process_in_execve_is_looked_at_again(
    process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            (process / "stat").write_text(stat(MEMORY, "99"))
            (process / "environ").write_bytes(b"FIRSTLIGHT_RUN=r\0")

    (process / "stat").write_text(stat(MEMORY, NONE))
    monkeypatch.setattr(time, "sleep", sleep)
    assert clean._environment(7) == b"FIRSTLIGHT_RUN=r\0"
    assert len(looks) == 3


def test_one_that_stays_in_execve_is_given_up(
    process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    (process / "stat").write_text(stat(MEMORY, NONE))
    monkeypatch.setattr(time, "sleep", looks.append)
    assert clean._environment(7) == b""
    assert 0 < sum(looks) < 1


@pytest.mark.parametrize("fields", [stat(MEMORY, "99"), stat(NONE, NONE)], ids=["empty", "kernel"])
def test_one_without_variables_is_looked_at_once(
    process: Path, monkeypatch: pytest.MonkeyPatch, fields: str
) -> None:
    (process / "stat").write_text(fields)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    assert clean._environment(7) == b""
