"""How ``clean`` knows the processes of dead runs, and directories whose owners have ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firstlight.host import workspace
from firstlight.host.ownership import SCRATCH
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


SCRATCH_OF_A_PROCESS = """
import sys, time
from pathlib import Path
from firstlight.host.ownership import scratch
with scratch(Path(sys.argv[1])) as work:
    (work / "batch.events").touch()
    print(work, flush=True)
    time.sleep(600)
"""


def test_scratch_is_removed_once_its_owner_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, mode, file in (("foreign", 0o700, "thesis.tex"), ("open", 0o755, "owner")):
        (tmp_path / f"{SCRATCH}{name}").mkdir(mode)
        (tmp_path / f"{SCRATCH}{name}" / file).touch()
    with subprocess.Popen(
        [sys.executable, "-c", SCRATCH_OF_A_PROCESS, str(tmp_path)], stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout
        work = Path(owner.stdout.readline().decode().strip())
        try:
            (tmp_path / f"{SCRATCH}link").symlink_to(work.parent)
            assert list(clean._scratch()) == []
        finally:
            owner.send_signal(signal.SIGKILL)
    (left,) = clean._scratch()
    assert (left.kind, left.name) == ("directory", str(work.parent))
    left.remove()
    assert not work.parent.exists()


def test_clean_keeps_young_ownerless_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"{SCRATCH}new").mkdir(0o700)
    assert list(clean._scratch()) == []
    now = time.time()
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: now - 3600)  # set back meanwhile
        assert len(list(clean._scratch())) == 1
    monkeypatch.setattr(clean, "_STARTING_SECONDS", 0)
    assert [left.name for left in clean._scratch()] == [str(tmp_path / f"{SCRATCH}new")]


def test_the_directory_of_all_runs_is_removed_with_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STATE", "DISK"):
        monkeypatch.setattr(workspace, name, tmp_path / name)
        workspace.make_directory(tmp_path / name / "one", 0o700)
    workspace.make_directory(tmp_path / "STATE/other", 0o700)
    (tmp_path / "STATE/one").rmdir()
    (tmp_path / "DISK/one").rmdir()
    workspace.remove_empty()
    assert [path.name for path in tmp_path.iterdir()] == ["STATE"]
    (tmp_path / "STATE/other").rmdir()
    workspace.remove_empty()
    assert not list(tmp_path.iterdir())


def test_a_run_is_made_while_another_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent, removed between its own making and that of its child, is made again."""
    mkdir = os.mkdir
    removed: list[Path] = []

    def racing(path: Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        if path.name == "runs" and not removed:
            path.rmdir()
            removed.append(path)

    monkeypatch.setattr(os, "mkdir", racing)
    workspace.make_directory(tmp_path / "runs/one", 0o755)
    assert removed
    assert (tmp_path / "runs/one").is_dir()
