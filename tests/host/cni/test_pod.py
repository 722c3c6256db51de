"""A whole pod by runc and a CNI network, in a lab of the tests' own."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.support.laboratory import commands_of

from firstlight.errors import Unsupported
from firstlight.lab.backends.cni import Cni
from firstlight.lab.backends.pod import Pod
from firstlight.model import Ending, EndPoint

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("runc"), reason="runc is missing: apt-get install runc"),
]


def links() -> str:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout


def test_container_joins_namespace_of_plugins(bench: Any) -> None:
    try:
        Cni("kube-router").probe()
    except Unsupported as error:
        pytest.skip(f"{error.message}: {error.hint}")
    before = links()
    with commands_of(Pod("runc", "kube-router"), 2, bench.workspace) as commands:
        specs = [
            json.loads((Path(part) / "config.json").read_text())
            for command in commands
            for part in command.argv
            if (Path(part) / "config.json").exists()
        ]
        seen = bench.starts(commands, end_point=EndPoint.FIRST_INSTRUCTION)
    assert links() == before
    paths = [
        each["path"] for spec in specs for each in spec["linux"]["namespaces"] if "path" in each
    ]
    assert paths == ["/run/netns/fl0", "/run/netns/fl1"]
    for sample in seen.run.samples:
        assert sample.ending is Ending.READY
        assert sample.exit_status == 0
        assert [step.name for step in sample.steps] == ["netns", "bridge"]
        assert sample.stamps.ready is not None
        assert sample.steps[1].end < sample.stamps.ready
    phases = set(seen.breakdown().filter(seen.breakdown()["wall"] > 0)["phase"])
    assert {"veth", "ipam", "mount"} <= phases


def test_a_runtime_that_fails_is_a_failed_pod_without_a_network(bench: Any) -> None:
    before = links()
    with commands_of(Pod("runc", "bridge"), 1, bench.workspace) as commands:
        bundle = Path(commands[0].argv[commands[0].argv.index("--bundle") + 1])
        (bundle / "config.json").write_text("{")
        [sample] = bench.starts(commands).run.samples
    assert sample.ending is Ending.FAILED
    assert sample.error == "runc ended with status 1"
    assert links() == before
