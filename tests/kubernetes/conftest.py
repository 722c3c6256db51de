"""Tests on a real control plane: what ``make kubernetes`` builds, in namespaces of its own."""

import os
from collections.abc import Iterator

import pytest

from firstlight.errors import Unsupported
from firstlight.lab.cluster import running, standing


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    """Skips where a program is not there, and says which and why."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        running.probe()
    except Unsupported as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture
def standing_cluster() -> Iterator[standing.Record]:
    """One that ``firstlight cluster up`` leaves."""
    record = standing.up(("runc",), ("bridge", "ptp"), lambda _: None)
    yield record
    standing.down()
