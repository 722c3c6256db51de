"""Starts that end when their gateway has answered, by real networks in a lab of the tests' own."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.laboratory import commands_of

from firstlight.agile.config import Config
from firstlight.errors import Unsupported
from firstlight.lab.backends import Backend, ending_at, pooled
from firstlight.lab.backends.agile import GATEWAY, Agile
from firstlight.lab.backends.agile_parts import Ablated, Churn, Crowd
from firstlight.lab.backends.cni import Cni
from firstlight.lab.backends.pod import POOLED, Pod
from firstlight.model import Ending, EndPoint, Sample, Step
from firstlight.native import native

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
PACKET = EndPoint.FIRST_PACKET


def usable(backend: Backend) -> Backend:
    """The backend with its starts ending at the first packet."""
    try:
        backend.probe()
    except Unsupported as error:
        pytest.skip(f"{error.message}: {error.hint}")
    return ending_at(backend, PACKET)


def conf(directory: Path, **bridge: Any) -> str:
    file = directory / "10-test.conflist"
    plugin = {"type": "bridge", "bridge": "cni0", **bridge}
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": [plugin]}))
    return str(file)


def local(subnet: str) -> dict[str, Any]:
    return {"type": "host-local", "ranges": [[{"subnet": subnet}]]}


def host(bench: Any) -> str:
    """The host's links, addresses, rules and mounts, and what is in the run's directory."""
    words = ("ip -o link", "ip -o addr", "ip netns", "nft list ruleset",
             "cat /proc/self/mountinfo")  # fmt: skip
    shown = [subprocess.run(word.split(), capture_output=True, text=True).stdout for word in words]
    # The root file system's tree is kept for the next batch of a run.
    files = {path.name for path in bench.workspace.directory.iterdir()} - {"root"}
    return "".join(shown) + " ".join(sorted(files))


@contextmanager
def clean(bench: Any) -> Iterator[None]:
    """A block that leaves the lab as it was."""
    before = host(bench)
    yield
    assert host(bench) == before


def measure(bench: Any, backend: Backend, instances: int) -> list[Sample]:
    with (
        clean(bench),
        commands_of(backend, instances, bench.workspace) as starts,
    ):
        seen = bench.starts(starts, end_point=backend.end_point)
    samples: list[Sample] = seen.run.samples
    return samples


def steps(sample: Sample) -> dict[str, Step]:
    return {step.name: step for step in sample.steps}


def check_answered(samples: list[Sample]) -> None:
    """Each was ready when it had heard the answer, and not before."""
    for sample in samples:
        assert sample.ending is Ending.READY, sample
        assert sample.exit_status == 0
        packet = steps(sample)["packet"]
        assert sample.stamps.intended < packet.start < packet.end == sample.stamps.ready


def test_an_add_ends_when_the_gateway_has_answered(bench: Any, tmp_path: Path) -> None:
    backend = usable(Cni(conf(tmp_path, isGateway=True, ipam=local("10.99.0.0/16"))))
    samples = measure(bench, backend, 3)
    check_answered(samples)
    for sample in samples:
        assert steps(sample)["bridge"].end <= steps(sample)["packet"].start


def test_container_sends_first_packet_to_add_gateway(bench: Any, tmp_path: Path) -> None:
    network = conf(tmp_path, isGateway=True, ipam=local("10.99.0.0/16"))
    samples = measure(bench, usable(Pod("runc", network)), 2)
    check_answered(samples)
    for sample in samples:
        named = steps(sample)
        assert list(named) == ["netns", "bridge", "payload", "packet"]
        assert named["bridge"].end < named["payload"].start < named["payload"].end
        assert named["payload"].end == named["packet"].start


def test_a_network_of_ipv6_alone_has_a_first_packet_too(bench: Any, tmp_path: Path) -> None:
    """Which waits for the address: ADD has returned, and the kernel still looks for duplicates."""
    network = conf(tmp_path, isGateway=True, ipam=local("fd00:99::/64"))
    for backend in (Cni(network), Pod("runc", network)):
        check_answered(measure(bench, usable(backend), 1))


def test_a_link_local_gateway_is_asked_on_the_pods_interface(bench: Any, tmp_path: Path) -> None:
    address = {"address": "fd00:99::2/64", "gateway": "fe80::99"}
    network = conf(tmp_path, ipam={"type": "static", "addresses": [address]})
    backend = usable(Cni(network))
    with clean(bench), commands_of(backend, 1, bench.workspace) as starts:
        subprocess.run(["ip", "address", "add", "fe80::99/64", "dev", "cni0", "nodad"], check=True)
        check_answered(bench.starts(starts, end_point=PACKET).run.samples)


def test_a_gateway_that_is_silent_fails_the_start_by_name(bench: Any, tmp_path: Path) -> None:
    """Nobody has the gateway's address: the bridge is no gateway here."""
    network = conf(tmp_path, ipam=local("10.99.0.0/16"))
    for backend in (Cni(network), Pod("runc", network)):
        [sample] = measure(bench, usable(backend), 1)
        assert sample.ending is Ending.FAILED
        assert sample.error == "first packet: 10.99.0.1 did not answer on eth0 in 10 s"


def test_a_result_without_a_gateway_fails_the_start(bench: Any, tmp_path: Path) -> None:
    network = conf(
        tmp_path, ipam={"type": "static", "addresses": [{"address": "10.99.0.2/16"}]}
    )  # fmt: skip
    for backend in (Cni(network), Pod("runc", network)):
        [sample] = measure(bench, usable(backend), 1)
        assert sample.ending is Ending.FAILED
        assert sample.error == "no first packet: the result of ADD names no gateway"


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_runtime_starts_in_networks_out_of_the_pool(bench: Any, runtime: str) -> None:
    backend = usable(Pod(runtime, POOLED))
    samples = measure(bench, backend, 3)
    check_answered(samples)
    for sample in samples:
        assert list(steps(sample)) == ["pool.take", "payload", "packet"]
        take = steps(sample)["pool.take"]
        assert sample.stamps.intended < take.start < take.end < steps(sample)["payload"].start


def test_each_start_has_a_network_of_its_own_that_no_other_gets(bench: Any) -> None:
    """Seen from inside: the namespace's number and its address, of two batches' worth of takes."""
    with clean(bench), pooled.taking(4, bench.workspace) as pool:
        links = [bench.workspace.directory / f"link{index}" for index in range(5)]
        script = 'readlink $0; nsenter --net=$0 ip -o -4 address show dev eth0; echo "firstlight '
        script += 'ready 1"; read end'
        starts = [
            pool.start(("/bin/sh", "-c", script, str(link)), link, bench.workspace.environment)
            for link in links
        ]
        first = bench.starts(starts[:2]).run.samples
        rest = bench.starts(starts[2:]).run.samples
        assert not any(link.is_symlink() for link in links)
    assert [each.ending for each in (*first, *rest)].count(Ending.READY) == 4
    [refused] = [each for each in rest if each.ending is Ending.FAILED]
    assert refused.error == "take a network: the pool is empty"
    addresses = {each.output.split("inet ")[1].split("/")[0] for each in (*first, *rest[:2])
                 if each.ending is Ending.READY}  # fmt: skip
    assert len(addresses) >= 3
    prefix = Config().network.range.rpartition(".0.0")[0]
    assert all(address.startswith(prefix) for address in addresses)


def test_failed_exec_is_reported_and_network_removed(bench: Any) -> None:
    with clean(bench), pooled.taking(1, bench.workspace) as pool:
        link = bench.workspace.directory / "link"
        start = pool.start(("/nonexistent/runc",), link, bench.workspace.environment)
        [samples] = bench.starts([start]).run.samples
        assert not link.is_symlink()
    assert samples.error == "cannot execute /nonexistent/runc: No such file or directory"


@pytest.mark.parametrize("depth", ["agile", "agile-ready", "agile-cold"])
def test_an_agile_start_ends_when_its_gateway_has_answered(bench: Any, depth: str) -> None:
    check_answered(measure(bench, usable(Agile(depth)), 2))


@pytest.mark.parametrize(
    "backend",
    [Crowd(2), Churn("full"), Ablated("neighbours"), Ablated("everything")],
    ids=lambda each: getattr(each, "name", ""),
)  # fmt: skip
def test_so_do_the_runtimes_under_conditions(bench: Any, backend: Backend) -> None:
    reaching = usable(backend)
    with (
        clean(bench),
        commands_of(reaching, 2, bench.workspace) as starts,
    ):
        check_answered(bench.starts(starts, end_point=PACKET).run.samples)


def test_a_traced_start_to_the_first_packet_has_a_phase_for_it(bench: Any) -> None:
    backend = usable(Pod("runc", POOLED))
    with clean(bench), commands_of(backend, 1, bench.workspace) as starts:
        seen = bench.starts(starts, end_point=PACKET)
    packet = steps(seen.sample)["packet"]
    assert seen.wall("packet") == packet.end - packet.start
    assert seen.wall("exec") > 0


def test_ones_own_address_is_no_gateway() -> None:
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f"ip link set lo up; exec {native('payload')} once ::1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "firstlight error first packet: ::1 is the instance's own address\n"
    assert done.returncode == 1


@pytest.mark.skipif(not shutil.which("runc"), reason="runc is missing: apt-get install runc")
def test_the_gateway_of_the_pool_is_the_runtimes(bench: Any) -> None:
    with pooled.taking(1, bench.workspace) as pool:
        assert pool.gateway == GATEWAY
