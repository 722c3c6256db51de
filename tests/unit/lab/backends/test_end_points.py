"""Where starts end: a backend's own end point, or the first packet where it has one."""

import json
from pathlib import Path
from typing import Any

import pytest

from firstlight.errors import Unsupported
from firstlight.lab.backends import Backend, ending_at, oci_spec
from firstlight.lab.backends.agile import GATEWAY, Agile, payload_arguments
from firstlight.lab.backends.agile_floor import Floor
from firstlight.lab.backends.agile_parts import Ablated, Churn, Crowd
from firstlight.lab.backends.cni import Cni
from firstlight.lab.backends.functions import Invoked, Program
from firstlight.lab.backends.network import NetworkSetup
from firstlight.lab.backends.oci import Oci
from firstlight.lab.backends.oci_spec import PAYLOAD
from firstlight.lab.backends.oci_spec import Process as Pid1
from firstlight.lab.backends.pod import NO_NETWORK, POOLED, Pod
from firstlight.lab.backends.process import Process
from firstlight.lab.experiments import Options
from firstlight.lab.experiments.agile import AGILE
from firstlight.lab.experiments.pod import POD
from firstlight.model import EndPoint

PACKET = EndPoint.FIRST_PACKET


@pytest.mark.parametrize(
    "backend",
    [Agile("agile"), Agile("agile", "client"), Program(), Crowd(10), Churn("full"),
     Ablated("networks"), Cni("bridge"), Pod("runc", "bridge"), Pod("runc", POOLED)],
    ids=lambda backend: f"{type(backend).__name__} {backend.name}",
)  # fmt: skip
def test_a_networked_start_can_end_at_its_first_packet(backend: Backend) -> None:
    reaching = ending_at(backend, PACKET)
    assert reaching.end_point is PACKET
    assert (type(reaching), reaching.name) == (type(backend), backend.name)
    assert ending_at(backend, None) is backend
    assert ending_at(reaching, PACKET) is reaching


@pytest.mark.parametrize(
    "backend",
    [Oci("runc"), Process(), NetworkSetup(), Floor(), Invoked("wasm"), Pod("runc", NO_NETWORK),
     Pod("runsc", "bridge"), Pod("runsc", POOLED)],
    ids=lambda backend: f"{type(backend).__name__} {backend.name}",
)  # fmt: skip
def test_a_start_without_a_network_of_its_own_says_so(backend: Backend) -> None:
    with pytest.raises(Unsupported, match="first packet") as caught:
        ending_at(backend, PACKET)
    assert caught.value.hint


def test_an_add_has_a_first_packet_and_a_del_has_none() -> None:
    for operation in ("ADD", "ADD beside DEL"):
        assert ending_at(Cni("bridge", operation), PACKET).end_point is PACKET
    with pytest.raises(Unsupported, match="DEL"):
        ending_at(Cni("bridge", "DEL"), PACKET)


def test_the_payload_gets_the_end_point() -> None:
    assert payload_arguments(EndPoint.FIRST_INSTRUCTION) == ("ready",)
    assert payload_arguments(PACKET) == ("reach", GATEWAY)


def spec(process: Pid1 = PAYLOAD, network: Path | None = None) -> dict[str, Any]:
    return oci_spec.make(process, Path("/root"), {}, network=network)


def kinds(of: dict[str, Any]) -> dict[str, str | None]:
    return {each["type"]: each.get("path") for each in of["linux"]["namespaces"]}


def test_a_container_joins_a_network_or_gets_its_own() -> None:
    joined = spec(network=Path("/run/netns/fl0"))
    assert kinds(joined) == kinds(spec()) | {"network": "/run/netns/fl0"}
    assert joined["process"]["args"] == ["/bin/payload", "ready"]
    assert set(kinds(spec()).values()) == {None}


def test_the_gateways_place_in_a_configuration_is_there_once() -> None:
    """cnirun puts the gateway there, which it knows only when ADD has returned."""
    text = json.dumps(spec(Pid1(("/bin/payload", "reach", "@GATEWAY@"))))
    assert text.count("@GATEWAY@") == 1
    filled = json.loads(text.replace("@GATEWAY@", "fe80::ffff:ffff:ffff:ffff%eth0"))
    assert filled["process"]["args"][2] == "fe80::ffff:ffff:ffff:ffff%eth0"


def test_a_pool_has_no_plugins_and_says_what_it_spares() -> None:
    pod = Pod("runc", POOLED)
    assert pod.name == "runc + pooled"
    assert "made in advance" in (pod.note or "")
    assert Pod("runc", NO_NETWORK).note is None


def test_the_pool_stands_beside_the_plugins_in_both_experiments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("firstlight.lab.experiments.pod.present", list)
    names = [case.point["backend"] for case in AGILE.cases(Options((1,), ("runc",)))]
    assert names[:3] == ["runc + bridge", "runc + pooled", "agile"]
    [path] = [
        case for case in AGILE.cases(Options((1,), ("/opt/a + b/runc",)))
        if str(case.point["backend"]).endswith("pooled")
    ]  # fmt: skip
    assert path.backend == Pod("/opt/a + b/runc", POOLED)
    networks = [case.point["network"] for case in POD.cases(Options((1,)))]
    assert networks[:2] == [NO_NETWORK, POOLED]
