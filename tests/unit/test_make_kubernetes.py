"""What builds a control plane, without building one."""

import os
import runpy
import time
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "mk" / "kubernetes.py"))


@pytest.mark.parametrize(
    ("limit", "status", "errors"),
    [(None, 3, "no module\n"), (60.0, 3, "no module\n"),
     (0.0, -15, "it takes longer than BUILD_SECONDS allows")],
)  # fmt: skip
def test_build_ends_by_itself_or_at_its_limit(
    limit: float | None, status: int, errors: str
) -> None:
    until = None if limit is None else time.monotonic() + limit
    words = ["sh", "-c", "sleep 0.1; echo no module >&2; exit 3"]
    assert SCRIPT["_run"](words, dict(os.environ), until) == (status, errors)
