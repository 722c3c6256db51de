"""Lists that name the host's links and directories are measured on stand-ins of them."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from firstlight import store
from firstlight.errors import Unsupported
from firstlight.lab.backends.cni import Cni

FIRSTLIGHT = Path(".venv/bin/firstlight")


def measure(conf: Path, out: Path) -> store.Run:
    subprocess.run(
        [FIRSTLIGHT, "run", "cni-breakdown", "--cni", conf, "--instances", "1",
         "--repetitions", "1", "--no-trace", "--out", out],
        check=True, capture_output=True,
    )  # fmt: skip
    return store.read(out)


def write(path: Path, plugin: Mapping[str, object]) -> Path:
    path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "mine", "plugins": [plugin]}))
    return path


def test_leases_stay_out_of_the_directory_that_a_list_names(tmp_path: Path) -> None:
    leases = tmp_path / "leases"
    leases.mkdir()
    (leases / "kept").write_text("a pod's")
    ranges = [[{"subnet": "10.97.0.0/24"}]]
    ipam = {"type": "host-local", "dataDir": str(leases), "ranges": ranges}
    plugin = {"type": "bridge", "bridge": "br-mine", "isGateway": True, "ipam": ipam}
    conf = write(tmp_path / "mine.conflist", plugin)
    run = measure(conf, tmp_path / "run")
    assert [sample.error for sample in run.samples] == [None] * len(run.samples)
    assert [file.name for file in leases.iterdir()] == ["kept"]


@pytest.mark.parametrize("master", ["eth0", "a-long.name.7", None])
def test_a_list_on_a_link_of_the_hosts_finds_one_of_its_name(
    tmp_path: Path, master: str | None
) -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.97.0.0/24"}]]}
    plugin = {"type": "macvlan", "mode": "bridge", "ipam": ipam}
    conf = write(tmp_path / "mine.conflist", plugin | ({"master": master} if master else {}))
    try:
        Cni(str(conf)).probe()
    except Unsupported as error:
        pytest.skip(error.message)
    run = measure(conf, tmp_path / "run")
    assert [sample.error for sample in run.samples] == [None] * len(run.samples)
