"""``firstlight gate`` on real starts: one process more is found, on a machine however busy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FIRSTLIGHT = Path(sys.executable).parent / "firstlight"


@pytest.fixture(scope="module")
def run(can_trace: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two runtimes in turn, of which the second executes one program more."""
    directory = tmp_path_factory.mktemp("gate")
    runtimes = []
    for side, more in (("old", ""), ("new", "/bin/true\n")):
        program = directory / side / "runc"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\n{more}exec runc "$@"\n')
        program.chmod(0o755)
        runtimes.append(str(program))
    done = subprocess.run(
        [FIRSTLIGHT, "run", "container-creation", "--instances", "1", "--repetitions", "4",
         "--runtime", ",".join(runtimes), "--out", directory / "run"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory / "run"


def gate(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [FIRSTLIGHT, "gate", *map(str, words), "--json"], capture_output=True, text=True
    )


def test_a_process_more_is_found(run: Path) -> None:
    done = gate(run)
    assert done.returncode == 1, done.stderr
    [point] = json.loads(done.stdout)["counts"]["points"]
    changes = {change["count"]: change for change in point["changes"]}
    for count in ("processes", "exec true"):
        assert changes[count]["b"]["usual"] == changes[count]["a"]["usual"] + 1


def test_what_is_allowed_is_no_failure(run: Path) -> None:
    """All that the shell does for its program, and nothing else, has become more."""
    allowed = ("processes", "exec true", "call *", "bytes *")
    done = gate(run, *(word for name in allowed for word in ("--allow", name)))
    assert done.returncode == 0, done.stdout
