"""Whole runs of the CNI experiments in which something goes wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from firstlight import store
from firstlight.model import Ending

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        not Path("/usr/lib/cni/bridge").exists(),
        reason="no bridge plugin: apt-get install containernetworking-plugins",
    ),
]


def test_failed_background_pods_are_recorded(
    tmp_path: Path,
) -> None:
    conf = tmp_path / "10-small.conflist"
    ipam = {"type": "host-local", "subnet": "10.99.0.0/29"}
    conf.write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "small", "type": "bridge", "bridge": "cni0",
                    "isGateway": True, "ipam": ipam})
    )  # fmt: skip
    out = tmp_path / "run"
    subprocess.run(
        [Path(sys.executable).with_name("firstlight"), "run", "cni-background", "--cni", str(conf),
         "--repetitions", "1", "--no-trace", "--out", str(out)],
        check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    run = store.read(out)
    assert run.footer is not None
    assert not run.footer.interrupted
    endings = {(sample.point["background"], sample.ending) for sample in run.samples}
    assert (0, Ending.READY) in endings
    assert (200, Ending.FAILED) in endings
    for sample in run.samples:
        if sample.ending is Ending.FAILED:
            assert (sample.error or "").startswith("not started: cannot prepare the pods: ")
            assert "no IP addresses available" in (sample.error or "")
