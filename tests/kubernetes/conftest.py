"""Tests on a real control plane: what ``make kubernetes`` builds, in namespaces of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.errors import Unsupported
from firstlight.lab.cluster import programs, running, standing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    """Skips where a program is not there, and says which and why."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        running.probe()
        programs.path("kubectl")
    except Unsupported as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture(scope="session")
def agent_image() -> Path:
    """The archive that ``make agent-image`` makes."""
    return _image("agent")


@pytest.fixture(scope="session")
def functions_image() -> Path:
    """The archive that ``make functions-image`` makes."""
    return _image("functions")


@pytest.fixture(scope="session")
def lab_image() -> Path:
    """The archive that ``make lab-image`` makes."""
    return _image("lab")


@pytest.fixture(scope="session")
def watch_image() -> Path:
    """The archive that ``make watch-image`` makes."""
    return _image("watch")


def _image(name: str) -> Path:
    script = str(ROOT / "mk" / "image.py")
    subprocess.run([sys.executable, script, name], check=True, cwd=ROOT, timeout=300)
    return ROOT / "build" / f"{name}.tar"


@pytest.fixture
def standing_cluster() -> Iterator[standing.Record]:
    """One that ``firstlight cluster up`` leaves."""
    record = standing.up(("runc",), ("bridge", "ptp"), lambda _: None)
    yield record
    standing.down()
