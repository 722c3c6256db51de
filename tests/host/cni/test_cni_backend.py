"""Pods' networks by real and by recording plugins, in a lab of the tests' own."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.support.cni_bench import install
from tests.support.laboratory import commands_of

from firstlight.errors import Unsupported
from firstlight.host import mounts
from firstlight.lab.backends.cni import Cni
from firstlight.lab.cni import known
from firstlight.lab.cni.conf import BadConf
from firstlight.model import Ending, Sample

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_bridge = pytest.mark.skipif(
    not any((directory / "bridge").exists() for directory in known.path(known.NetworkInfo())),
    reason="no bridge plugin: apt-get install containernetworking-plugins",
)
BRIDGE = {
    "cniVersion": "1.0.0",
    "name": "test",
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipam": {"type": "host-local", "subnet": "10.99.0.0/16"},
}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with recording plugins, where plugins are looked for."""
    install(tmp_path / "bin", "one", "two")
    monkeypatch.setenv("CNI_PATH", str(tmp_path / "bin"))
    return tmp_path


def write(directory: Path, document: dict[str, Any]) -> Cni:
    file = directory / "10-test.conflist"
    file.write_text(json.dumps(document))
    return Cni(str(file))


def listed(*plugins: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "test", "plugins": list(plugins), **more}


def state() -> set[str]:
    """The host's links, addresses, routes, rules and mounts."""
    commands = ["ip -o link", "ip -o addr", "ip route", "ip rule", "nft list ruleset",
                "cat /proc/self/mountinfo"]  # fmt: skip
    return {
        f"{command}: {line}"
        for command in commands
        for line in subprocess.run(
            command.split(), capture_output=True, text=True
        ).stdout.splitlines()
    }


def measure(
    bench: Any, backend: Cni, instances: int = 1, *, deadline: float = 30, **axes: Any
) -> list[Sample]:
    before = state()
    with commands_of(replace(backend, **axes), instances, bench.workspace) as commands:
        seen = bench.starts(commands, deadline=deadline)
    assert state() == before
    samples: list[Sample] = seen.run.samples
    return samples


def calls(directory: Path) -> list[dict[str, Any]]:
    """What the recording plugins were given, but for the pod that warms up."""
    lines = (directory / "record").read_text().splitlines()
    every: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [call for call in every if not call["env"]["CNI_NETNS"].endswith("/warm0")]


@pytest.fixture
def recording(plugins: Path, bench: Any) -> Iterator[Path]:
    bench.workspace.environment["RECORD"] = str(plugins / "record")
    yield plugins
    del bench.workspace.environment["RECORD"]


@needs_bridge
def test_pods_get_a_network_and_leave_nothing(bench: Any, tmp_path: Path) -> None:
    samples = measure(bench, write(tmp_path, BRIDGE), 5)
    assert [sample.ending for sample in samples] == 5 * [Ending.READY]
    for sample in samples:
        assert [step.name for step in sample.steps] == ["bridge", "packet"]
        ready = sample.stamps.ready
        assert ready is not None
        assert sample.stamps.spawned <= sample.steps[0].start < sample.steps[0].end <= ready
        assert ready <= sample.steps[1].start < sample.steps[1].end
        assert sample.exit_status == 0


@needs_bridge
def test_pods_in_the_background_are_up_during_the_start(bench: Any, tmp_path: Path) -> None:
    backend = write(tmp_path, BRIDGE)
    with commands_of(replace(backend, background=3), 1, bench.workspace) as commands:
        ports = subprocess.run(
            ["ip", "-o", "link", "show", "master", "cni0"], capture_output=True, text=True
        )
        assert len(ports.stdout.splitlines()) == 3
        [sample] = bench.starts(commands).run.samples
        assert sample.ending is Ending.READY


@needs_bridge
@pytest.mark.parametrize("operation", ["DEL", "ADD beside DEL"])
def test_a_teardown_is_measured_like_a_start(bench: Any, tmp_path: Path, operation: str) -> None:
    samples = measure(bench, write(tmp_path, BRIDGE), 3, operation=operation)
    assert [sample.ending for sample in samples] == 3 * [Ending.READY]
    assert all(sample.exit_status == 0 for sample in samples)


@needs_bridge
def test_an_exhausted_range_fails_in_the_plugins_words(bench: Any, tmp_path: Path) -> None:
    ipam = {"type": "host-local", "subnet": "10.99.0.0/30"}
    samples = measure(bench, write(tmp_path, {**BRIDGE, "ipam": ipam}), 3)
    failed = [each for each in samples if each.ending is Ending.FAILED]
    assert len(failed) == 2
    for each in failed:
        assert "no IP addresses available" in (each.error or "")
        assert (each.error or "").startswith("plugin bridge ADD: ")


def test_plugins_get_configuration_and_previous_result(bench: Any, recording: Path) -> None:
    backend = write(
        recording,
        listed({"type": "one", "mtu": 1400}, {"type": "two", "capabilities": {"mac": True}}),
    )
    [sample] = measure(bench, backend)
    assert sample.ending is Ending.READY
    given = calls(recording)
    assert [(call["plugin"], call["env"]["CNI_COMMAND"]) for call in given] == [
        ("one", "ADD"), ("two", "ADD"), ("two", "DEL"), ("one", "DEL"),
    ]  # fmt: skip
    head = {"cniVersion": "1.0.0", "name": "test"}
    results = [{"cniVersion": "1.0.0", "dns": {"search": ["one", "two"][:many]}} for many in (1, 2)]
    first, second = {**head, "type": "one", "mtu": 1400}, {**head, "type": "two"}
    assert [call["stdin"] for call in given] == [
        first,
        {**second, "prevResult": results[0]},
        {**second, "prevResult": results[1]},
        {**first, "prevResult": results[1]},
    ]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("fail", "plugin one ADD: try again (code 11): lease is busy"),
        ("crash", "plugin one ADD: killed by signal 6"),
        ("garble", "plugin one ADD: printed what is not a JSON object: Success! { not json"),
        ("old", "plugin one ADD: its result is of CNI version 0.2.0 and not 1.0.0"),
        ("silent", "plugin one ADD: printed no result"),
    ],
)
def test_a_bad_plugin_is_a_failed_sample_and_is_undone(
    bench: Any, recording: Path, how: str, error: str
) -> None:
    backend = write(recording, listed({"type": "one", "does": {"ADD": how}}, {"type": "two"}))
    [sample] = measure(bench, backend)
    assert sample.ending is Ending.FAILED
    assert (sample.error or "").strip() == error
    order = [(call["plugin"], call["env"]["CNI_COMMAND"]) for call in calls(recording)]
    assert order == [("one", "ADD"), ("two", "DEL"), ("one", "DEL")]


def test_a_plugin_that_hangs_is_stopped_and_undone(bench: Any, recording: Path) -> None:
    backend = write(recording, listed({"type": "two"}, {"type": "one"}))
    with commands_of(backend, 1, bench.workspace) as commands:
        backend_now = json.dumps({"ADD": "hang"})
        request = Path(commands[0].argv[2])
        text = request.read_text().replace('"type": "one"', f'"type": "one", "does": {backend_now}')
        request.write_text(text)
        seen = bench.starts(commands, deadline=1)
        request.write_text(text.replace('"hang"', '"well"'))
    assert seen.run.samples[0].ending is Ending.HUNG
    commands_given = [call["env"]["CNI_COMMAND"] for call in calls(recording)]
    assert commands_given == ["ADD", "ADD", "DEL", "DEL"]


def test_a_vanished_namespace_is_the_plugins_to_tell(bench: Any, tmp_path: Path) -> None:
    if not shutil.which("bridge", path="/usr/lib/cni:/opt/cni/bin"):
        pytest.skip("no bridge plugin: apt-get install containernetworking-plugins")
    backend = write(tmp_path, BRIDGE)
    with commands_of(backend, 1, bench.workspace) as commands:
        subprocess.run(["ip", "netns", "del", "fl0"], check=True)
        [sample] = bench.starts(commands).run.samples
    assert sample.ending is Ending.FAILED
    assert "/run/netns/fl0" in (sample.error or "")


def test_an_interface_that_a_delete_left_is_its_error(bench: Any, recording: Path) -> None:
    backend = write(recording, listed({"type": "one"}))
    with commands_of(replace(backend, operation="DEL"), 1, bench.workspace) as commands:
        subprocess.run(
            ["ip", "-n", "fl0", "link", "add", "eth0", "type", "veth", "peer", "left"], check=True
        )
        [sample] = bench.starts(commands).run.samples
    assert sample.error == "DEL left the interface eth0 in /run/netns/fl0"


def test_probe_reports_syntax_line_and_missing_plugin(
    tmp_path: Path,
) -> None:
    file = tmp_path / "10-bad.conflist"
    file.write_text('{"name": "x",\n "plugins": [}')
    with pytest.raises(BadConf, match=r"10-bad\.conflist line 2 column 14"):
        Cni(str(file)).probe()
    with pytest.raises(Unsupported, match="'nothing-like-it' is not in"):
        write(tmp_path, listed({"type": "nothing-like-it"})).probe()


@pytest.mark.parametrize("name", known.names())
def test_built_in_networks_parse_and_have_descriptions(name: str) -> None:
    network, info = known.find(name)
    assert network.plugins
    assert info.about


def test_concurrent_runs_share_mounted_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "STATE", tmp_path / "state")
    monkeypatch.setattr(mounts, "_LIST", tmp_path / "state" / "directories")
    wanted = tmp_path / "a" / "b"
    with mounts.mount_points([wanted]):
        with mounts.mount_points([wanted]):
            assert wanted.is_dir()
        assert wanted.is_dir()
    assert not (tmp_path / "a").exists()


def needs(network: str) -> None:
    try:
        Cni(network).probe()
    except Unsupported as error:
        pytest.skip(f"{error.message}: {error.hint}")


def test_a_plugin_whose_address_server_died_says_so(bench: Any) -> None:
    needs("weave")
    before = state()
    with commands_of(Cni("weave"), 2, bench.workspace) as commands:
        [daemon] = commands[0].daemons
        os.kill(daemon, signal.SIGKILL)
        samples = bench.starts(commands).run.samples
    assert [sample.ending for sample in samples] == 2 * [Ending.FAILED]
    for sample in samples:
        assert (sample.error or "").startswith(
            "plugin weave-net ADD: unable to allocate IP address"
        )
        assert "connection refused" in (sample.error or "")
    assert state() == before


@pytest.mark.parametrize("network", ["weave", "calico", "cilium-profile"])
def test_a_daemon_is_traced_with_the_start_that_it_serves(bench: Any, network: str) -> None:
    needs(network)
    with commands_of(Cni(network), 1, bench.workspace) as commands:
        [daemon] = commands[0].daemons
        seen = bench.starts(commands)
    assert seen.sample.ending is Ending.READY
    assert "packet" in {step.name for step in seen.sample.steps}
    served = seen.spans.filter(pl.col("pid") == daemon)
    assert served.height
    assert seen.wall("unattributed") < 0.05 * seen.sample.latency
    if network == "cilium-profile":
        assert seen.wall("ebpf") > 0
        assert seen.calls("bpf", "PROG_LOAD").height >= 12
