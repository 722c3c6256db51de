"""The CRI's conformance suite against our containerd: the cases that pass here go on passing.

Left out are those that pull images, need AppArmor or user namespaces, or a tool that busybox's
image lacks, as ``execSync with timeout`` asks for pgrep. With "firstlight" for "runc" all pass too.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.kubernetes import conformance

from firstlight.errors import Unsupported
from firstlight.lab.cluster import programs

FOCUS = (
    "basic operations on", "returning runtime info", "support log", "set hostname",
    "support sysctls", "RunAsUser ", "RunAsGroup ", "ReadOnlyRootfs", "HostNetwork",
)  # fmt: skip
FAILS = {"runtime should support execSync with timeout [Conformance]"}
PASS = 27


@pytest.fixture
def cases(tmp_path: Path) -> dict[str, str]:
    """How each case ended, by its name."""
    try:
        programs.path("critest")
    except Unsupported as error:
        pytest.skip(f"{error.message}: {error.hint}")
    done = subprocess.run(
        [sys.executable, conformance.__file__, tmp_path, "runc", *FOCUS],
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    report = tmp_path / "report.json"
    assert report.exists(), done.stderr
    specs = json.loads(report.read_text())[0]["SpecReports"]
    return {
        " ".join((*(spec["ContainerHierarchyTexts"] or ()), spec["LeafNodeText"])): spec["State"]
        for spec in specs
        if spec["LeafNodeType"] == "It" and spec["State"] != "skipped"
    }


def test_the_cases_of_the_list_pass(cases: dict[str, str]) -> None:
    failed = {name for name, state in cases.items() if state != "passed"}
    assert all(any(name.endswith(known) for known in FAILS) for name in failed), failed
    assert len(cases) - len(failed) >= PASS
