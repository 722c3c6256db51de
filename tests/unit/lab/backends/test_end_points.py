"""Where starts end: a backend's own end point, or the first packet where it has one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from firstlight.errors import Unsupported
from firstlight.lab.backends import Backend, Command, until
from firstlight.lab.backends.agile import GATEWAY, Agile, told
from firstlight.lab.backends.agile_floor import Floor
from firstlight.lab.backends.agile_parts import Ablated, Churn, Crowd
from firstlight.lab.backends.cni import Cni
from firstlight.lab.backends.functions import Invoked, Program
from firstlight.lab.backends.network import Network
from firstlight.lab.backends.oci import Oci
from firstlight.lab.backends.pod import NO_NETWORK, POOLED, Pod, _rewrite
from firstlight.lab.backends.process import Process
from firstlight.lab.experiments import Options
from firstlight.lab.experiments.agile import AGILE
from firstlight.lab.experiments.pod import POD
from firstlight.model import EndPoint, Point

ONE: Point = {"instances": 1}
PACKET = EndPoint.FIRST_PACKET


@pytest.mark.parametrize(
    "backend",
    [Agile("agile"), Agile("agile", "client"), Program(), Crowd(), Churn("full"),
     Ablated("networks"), Cni("bridge"), Pod("runc", "bridge"), Pod("runc", POOLED)],
    ids=lambda backend: f"{type(backend).__name__} {backend.name}",
)  # fmt: skip
def test_a_networked_start_can_end_at_its_first_packet(backend: Backend) -> None:
    reaching = until(backend, PACKET, ONE)
    assert reaching.end_point is PACKET
    assert (type(reaching), reaching.name) == (type(backend), backend.name)
    assert until(backend, None, ONE) is backend
    assert until(reaching, PACKET, ONE) is reaching


@pytest.mark.parametrize(
    "backend",
    [Oci("runc"), Process(), Network(), Floor(), Invoked("wasm"), Pod("runc", NO_NETWORK),
     Pod("runsc", "bridge"), Pod("runsc", POOLED)],
    ids=lambda backend: f"{type(backend).__name__} {backend.name}",
)  # fmt: skip
def test_a_start_without_a_network_of_its_own_says_so(backend: Backend) -> None:
    with pytest.raises(Unsupported, match="first packet") as caught:
        until(backend, PACKET, ONE)
    assert caught.value.hint


def test_an_add_has_a_first_packet_and_a_del_has_none() -> None:
    for operation in ("ADD", "ADD beside DEL"):
        assert until(Cni("bridge"), PACKET, {**ONE, "operation": operation}).end_point is PACKET
    with pytest.raises(Unsupported, match="DEL"):
        until(Cni("bridge"), PACKET, {**ONE, "operation": "DEL"})


def test_the_payload_is_told_where_its_start_ends() -> None:
    assert told(EndPoint.FIRST_INSTRUCTION) == ("ready",)
    assert told(PACKET) == ("reach", GATEWAY)


def bundled(directory: Path) -> Command:
    spec: dict[str, Any] = {
        "process": {"args": ["/bin/payload", "ready"]},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]},
    }
    (directory / "config.json").write_text(json.dumps(spec))
    return Command(("/usr/sbin/runc", "run", "--bundle", str(directory), "one"))


def test_a_bundle_is_put_into_a_network_and_else_left_as_it_was(tmp_path: Path) -> None:
    command = bundled(tmp_path)
    _rewrite(command, Path("/run/netns/fl0"), None)
    spec = json.loads((tmp_path / "config.json").read_text())
    assert spec["linux"]["namespaces"] == [
        {"type": "pid"},
        {"type": "network", "path": "/run/netns/fl0"},
    ]
    assert spec["process"]["args"] == ["/bin/payload", "ready"]


def test_the_room_for_a_gateway_can_be_written_over_in_place(tmp_path: Path) -> None:
    """As cnirun does, which knows the gateway only when ADD has returned."""
    command, room = bundled(tmp_path), " " * 79
    offset = _rewrite(command, Path("/run/netns/fl0"), room).index(room)
    file = os.open(tmp_path / "config.json", os.O_WRONLY)
    os.pwrite(file, b"fe80::ffff:ffff:ffff:ffff%eth0", offset)
    os.close(file)
    args = json.loads((tmp_path / "config.json").read_text())["process"]["args"]
    assert args[:2] == ["/bin/payload", "reach"]
    assert args[2].rstrip() == "fe80::ffff:ffff:ffff:ffff%eth0"


def test_a_pool_has_no_plugins_and_says_what_it_spares() -> None:
    pod = Pod("runc", POOLED)
    assert pod.name == "runc + pooled"
    assert "made before" in (pod.note or "")
    assert Pod("runc", NO_NETWORK).note is None


def test_the_pool_stands_beside_the_plugins_in_both_experiments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("firstlight.lab.experiments.pod.present", list)
    names = [str(point["backend"]) for point in AGILE.points(Options((1,), ("runc",)))]
    assert names[:3] == ["runc + bridge", "runc + pooled", "agile"]
    [path] = [
        point for point in AGILE.points(Options((1,), ("/opt/a + b/runc",)))
        if str(point["backend"]).endswith("pooled")
    ]  # fmt: skip
    assert AGILE.backend(path) == Pod("/opt/a + b/runc", POOLED)
    networks = [point["network"] for point in POD.points(Options((1,)))]
    assert networks[:2] == [NO_NETWORK, POOLED]
