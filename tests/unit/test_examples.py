"""The examples that read a stored run, and that every example has a test."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import synthetic

from firstlight.analysis import Analysis
from firstlight.cli.output import to_json
from firstlight.report import data

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples"


def run(name: str, *words: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *words], input=stdin, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.glob("*.??")))
def test_each_example_is_tested_and_listed(name: str) -> None:
    tests = "".join((TESTS / kind / "test_examples.py").read_text() for kind in ("unit", "host"))
    assert name == "README.md" or f'"{name}"' in tests
    assert name == "README.md" or f"({name})" in (EXAMPLES / "README.md").read_text()


def test_largest_phases(tmp_path: Path) -> None:
    stored = synthetic.container_creation(tmp_path / "run")
    with synthetic.known_phases():
        figures = to_json(data.as_json([Analysis(stored)]))
    first, *points = run("largest_phases.py", stdin=figures).splitlines()
    assert first == "container-creation"
    assert len(points) == len(stored.header.points)
    assert all("%" in point for point in points)


def test_read_samples(tmp_path: Path) -> None:
    stored = synthetic.container_creation(tmp_path / "run")
    lines = run("read_samples.py", str(stored.path)).splitlines()
    assert len(lines) == len(stored.header.points)
    assert all(" ms, " in line for line in lines)
