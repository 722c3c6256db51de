"""The programs and functions that the tests of the agile runtime start."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.agile_host import HERE

from firstlight.agile import Function


@pytest.fixture(scope="session")
def escape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system that holds only the program that tries to get out."""
    root = tmp_path_factory.mktemp("agile") / "root"
    (root / "bin").mkdir(parents=True)
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-static"]
    done = subprocess.run(
        ["gcc", *flags, "-o", root / "bin/escape", HERE / "escape.c"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (root / "bin/text").write_text("not a program")
    (root / "bin/text").chmod(0o755)
    root.parent.chmod(0o755)
    return root


@pytest.fixture
def function(escape: Path) -> Callable[..., Function]:
    """A function that runs the escape program with these words."""

    def make(*words: str, **more: object) -> Function:
        usual = {"rootfs": str(escape), "command": ("/bin/escape", *words)}
        return Function(**usual | more)  # type: ignore[arg-type]

    return make


@pytest.fixture(autouse=True)
def nothing_left() -> object:
    """Every test of this directory needs root, and leaves no cgroup behind."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    yield
    left = list(Path("/sys/fs/cgroup").glob("*/firstlight.agile.t*"))
    assert not left
