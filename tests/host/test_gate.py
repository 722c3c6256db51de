"""``firstlight gate`` on real starts: one process more is found, and equal starts are the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from firstlight.errors import Unsupported
from firstlight.trace import bpf

FIRSTLIGHT = Path(sys.executable).parent / "firstlight"
USUAL, MORE, AGAIN = "exec runc", "/bin/true\nexec runc", "exec runc"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs of two runtimes in turn: one that does more than the first, one that does not."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        bpf.probe()
    except Unsupported as error:
        pytest.skip(error.message)
    directory = tmp_path_factory.mktemp("gate")
    found = {}
    for name, script in (("more", MORE), ("same", AGAIN)):
        runtimes = []
        for side, lines in (("old", USUAL), (name, script)):
            program = directory / name / side / "runc"
            program.parent.mkdir(parents=True)
            program.write_text(f'#!/bin/sh\n{lines} "$@"\n')
            program.chmod(0o755)
            runtimes.append(str(program))
        found[name] = directory / name / "run"
        done = subprocess.run(
            [FIRSTLIGHT, "run", "container-creation", "--instances", "1", "--repetitions", "4",
             "--runtime", ",".join(runtimes), "--out", found[name]],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return found


def gate(run: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([FIRSTLIGHT, "gate", run, "--json"], capture_output=True, text=True)


def test_a_process_more_is_found(runs: dict[str, Path]) -> None:
    done = gate(runs["more"])
    assert done.returncode == 1, done.stderr
    [point] = json.loads(done.stdout)["counts"]["points"]
    changes = {change["count"]: change for change in point["changes"]}
    for count in ("processes", "exec true"):
        assert changes[count]["b"]["usual"] == changes[count]["a"]["usual"] + 1


def test_equal_starts_do_the_same(runs: dict[str, Path]) -> None:
    done = gate(runs["same"])
    assert done.returncode == 0, done.stdout
