"""The profiles: whole plugins, with the operations of what they stand in for."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.support.laboratory import commands_of

from firstlight.errors import Unsupported
from firstlight.lab.backends.cni import Cni, present
from firstlight.lab.cni import known, services
from firstlight.model import Ending
from firstlight.native import native
from firstlight.report.views.cni import _counts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
PROFILES = ("weave-profile", "calico-profile", "cilium-whole-profile")
BINARIES = ("calico-profile", "calico-profile-ipam", "cilium-profile", "weave-profile")
CALL = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/none-such", "CNI_IFNAME": "eth0"}
CONF = {"cniVersion": "1.0.0", "name": "net", "type": "x", "etcd_endpoints": "http://127.0.0.1:1"}


def invoke(binary: str, command: str, text: str, **env: str) -> tuple[int, dict[str, Any]]:
    program = native("cnirun").parent / "profiles" / binary
    done = subprocess.run(
        ["unshare", "-n", program], input=text, capture_output=True, text=True,
        env={"CNI_COMMAND": command, "CNI_PATH": "/none", **env},
    )  # fmt: skip
    answer = json.loads(done.stdout) if done.stdout else {}
    return done.returncode, answer


@pytest.mark.parametrize("binary", BINARIES)
def test_a_profile_answers_as_the_specification_says(binary: str) -> None:
    assert invoke(binary, "VERSION", "{}") == (
        0, {"cniVersion": "1.0.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0"]}
    )  # fmt: skip
    assert invoke(binary, "ADD", json.dumps(CONF))[1]["code"] == 4
    assert invoke(binary, "PLUG", json.dumps(CONF), **CALL)[1]["code"] == 4
    for text in ("", "{", "[]", '{"a": 1} x', '{"a": 1-+e}', '{"a": 01}', '{"a": 1.}'):
        status, answer = invoke(binary, "ADD", text, **CALL)
        assert (status, answer["code"]) == (1, 6)
    status, answer = invoke(binary, "ADD", json.dumps({**CONF, "cniVersion": "9.0"}), **CALL)
    assert (status, answer["code"]) == (1, 1)
    status, answer = invoke(binary, "CHECK", json.dumps(CONF), **CALL)
    assert status == 1
    assert "/run/netns/none-such: No such file" in answer["msg"]
    status, answer = invoke(binary, "ADD", json.dumps(CONF), **CALL)
    assert (status, answer["cniVersion"]) == (1, "1.0.0")
    assert answer["msg"]


def test_profile_configuration_unescapes_json() -> None:
    text = r'{"cniVersion": "1\u002e0.0", "name": "net", "type": "x"}'
    status, answer = invoke("weave-profile", "CHECK", text, **CALL)
    assert (status, answer["cniVersion"]) == (1, "1.0.0")
    assert "/run/netns/none-such: No such file" in answer["msg"]


WEAVER = """
import http.server, subprocess, sys, threading
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
class Weaver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(sys.argv[2])))
        self.end_headers()
        self.wfile.write(sys.argv[2].encode())
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 6784), Weaver)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.exit(subprocess.run([sys.argv[1]], text=True, input=sys.argv[3]).returncode)
"""


@pytest.mark.parametrize("prefix", ["0", "33", "-1", "x"])
def test_weave_profile_refuses_impossible_prefix(prefix: str) -> None:
    program = native("cnirun").parent / "profiles" / "weave-profile"
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", WEAVER, program, f"10.32.0.1/{prefix}",
         json.dumps(CONF)],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "CNI_COMMAND": "ADD", "CNI_PATH": "/none", **CALL},
    )  # fmt: skip
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert f"10.32.0.1 has the prefix {prefix}" in answer["msg"]


def usable(network: str) -> None:
    try:
        Cni(network).probe()
    except Unsupported as error:
        pytest.skip(f"{error.message}: {error.hint}")


def added(bench: Any, network: str) -> Any:
    """One ADD of it alone, traced."""
    with commands_of(Cni(network), 1, bench.workspace) as commands:
        seen = bench.starts(commands)
    assert seen.sample.ending is Ending.READY, seen.sample.error
    assert "packet" in {step.name for step in seen.sample.steps}
    assert seen.sample.exit_status == 0
    return seen


def counted(bench: Any, network: str) -> dict[str, float]:
    """What one ADD of it does, as the report counts it, and that its time has names."""
    usable(network)
    starts = [added(bench, network) for _ in range(3)]
    # the least of three: on a busy machine one may wait for a CPU where nothing names it
    assert min(each.wall("unattributed") / each.sample.latency for each in starts) < 0.05
    return dict(_counts(starts[0].spans, starts[0].sample.pid).row(0, named=True))


def test_weave_profile_makes_calls_of_weave_plugin(bench: Any) -> None:
    ours = counted(bench, "weave-profile")
    assert (ours["switches"], ours["asks"]) == (8, 1)
    real = counted(bench, "weave")
    assert ours["switches"] == real["switches"]
    assert ours["asks"] == real["asks"]
    assert ours["processes"] == real["processes"]
    assert abs(ours["netlink"] - real["netlink"]) <= 0.2 * real["netlink"]


def test_calicos_profile_asks_etcd_fifteen_times(bench: Any) -> None:
    ours = counted(bench, "calico-profile")
    assert (ours["asks"], ours["switches"]) == (15, 2)
    real = counted(bench, "calico")  # of 2025: it also reads reservations
    assert abs(real["asks"] - 16) <= 1  # by how its answers come in, one may be two or none


def test_ciliums_profile_does_what_ciliums_plugin_does(bench: Any) -> None:
    ours = counted(bench, "cilium-whole-profile")
    assert ours["asks"] == 4
    assert ours["programs"] >= 12
    real = counted(bench, "cilium-profile")
    for kind in ("switches", "asks", "programs", "processes"):
        assert ours[kind] == real[kind], kind


@pytest.mark.parametrize("network", PROFILES)
def test_more_pods_than_a_block_of_addresses_come_and_go(bench: Any, network: str) -> None:
    usable(network)
    many = 70 if network == "calico-profile" else 6
    with commands_of(Cni(network), many, bench.workspace) as commands:
        samples = bench.starts(commands, deadline=60).run.samples
    assert [each.error for each in samples] == many * [None]
    assert {each.exit_status for each in samples} == {0}


def test_profile_replaces_only_missing_product(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(known, "BUILT", tmp_path)
    monkeypatch.setattr(known, "_SYSTEM", (Path("/usr/lib/cni"),))
    assert present(["weave", "kube-router"])[:2] == ["weave", "weave-profile"]
    for name in ("calico", "cilium-profile"):
        stand_in = present([name])[-1]
        assert stand_in in PROFILES
        note = Cni(stand_in).note
        assert note is not None
        assert "is a profile, not" in note
    for binary in ("weave-net", "portmap"):
        (tmp_path / "weave").mkdir(exist_ok=True)
        (tmp_path / "weave" / binary).write_text("#!/bin/sh\n")
        (tmp_path / "weave" / binary).chmod(0o755)
    assert present(["weave"]) == ["weave"]


def fill() -> None:
    """Put values into etcd until it has no room."""
    value = base64.b64encode(os.urandom(1 << 20)).decode()
    for number in range(64):
        key = base64.b64encode(f"/filler/{number}".encode()).decode()
        body = json.dumps({"key": key, "value": value}).encode()
        try:
            urllib.request.urlopen(f"{services._ETCD}/v3/kv/put", body, timeout=10).close()
        except urllib.error.HTTPError as error:
            error.close()
            return
    raise AssertionError("etcd was never full")


@pytest.mark.parametrize("network", ["calico", "calico-profile"])
def test_a_full_datastore_is_reported_in_its_own_words(
    bench: Any, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable(network)
    daemon = services._daemon

    def small(argv: tuple[str, ...], *rest: Any) -> Any:
        return daemon((*argv, "--quota-backend-bytes", str(4 << 20)), *rest)

    monkeypatch.setattr(services, "_daemon", small)
    with commands_of(Cni(network), 2, bench.workspace) as commands:
        fill()
        samples = bench.starts(commands).run.samples
    for each in samples:
        assert each.ending is Ending.FAILED
        assert f"plugin {network} ADD: " in (each.error or "")
        assert "mvcc: database space exceeded" in (each.error or "")


def test_datastore_lost_in_burst_fails_with_plugin_message(bench: Any) -> None:
    usable("calico-profile")
    with commands_of(Cni("calico-profile"), 20, bench.workspace) as commands:
        [daemon] = commands[0].daemons
        lock = Path("/run/calico/ipam.lock")
        reaper = subprocess.Popen(
            ["sh", "-c", f"while [ ! -e {lock} ]; do :; done; kill -KILL {daemon}"]
        )
        lock.unlink(missing_ok=True)
        samples = bench.starts(commands, deadline=20).run.samples
        assert reaper.wait(timeout=60) == 0
    failed = [each for each in samples if each.ending is Ending.FAILED]
    assert failed
    for each in failed:
        assert (each.error or "").startswith("plugin calico-profile ADD: ")
        assert "etcd on 127.0.0.1:2379" in (each.error or "")


def test_slow_datastore_delays_start(bench: Any) -> None:
    usable("calico-profile")
    with commands_of(Cni("calico-profile"), 1, bench.workspace) as commands:
        [daemon] = commands[0].daemons
        os.kill(daemon, signal.SIGSTOP)
        began = time.monotonic_ns()
        waker = subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {daemon}"])
        seen = bench.starts(commands)
        assert waker.wait(timeout=60) == 0
    assert seen.sample.ending is Ending.READY
    assert seen.sample.stamps.ready is not None
    assert seen.sample.stamps.ready - began > 2_000_000_000
    table = seen.breakdown().filter(pl.col("phase") == "datastore")
    assert int(table["wall"].sum()) > 500_000_000  # the rest is what it took to get there
