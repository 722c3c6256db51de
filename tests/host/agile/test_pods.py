"""The CNI plugin and the node's agent: what becomes of a pod's network, whoever is killed when."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.network_host import CLOSED, CONNECT, OPEN, SERVE
from tests.support.pod_host import CNITOOL, CONF, PLUGIN, PodHost, host, pod_host, until

from firstlight.agile.pods import wire
from firstlight.agile.pods.cluster import ROUTE_PROTOCOL

__all__ = ["host"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def reaches(host: PodHost, pod: str, address: str, port: int, seconds: float = OPEN) -> bool:
    code = [sys.executable, "-c", CONNECT, str(port), str(seconds), address]
    words = host.command(*code, net=pod)
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return bool(done.stdout.strip())


def cannot_reach(host: PodHost, pod: str, address: str, port: int) -> bool:
    return not reaches(host, pod, address, port, CLOSED)


def serving(host: PodHost, pod: str, address: str, port: int) -> "subprocess.Popen[str]":
    words = host.command(sys.executable, "-c", SERVE, address, str(port), net=pod)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    host.agents.append(process)  # type: ignore[arg-type]
    return process


def lose_add(host: PodHost, container: str) -> None:
    """What a plugin does that is killed with the network in its hands."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.connect(str(host.root("/run/firstlight-agile/pods/socket")))
        texts = (b"net", container.encode(), b"eth0", b"", b"", b"")
        peer.send(wire.REQUEST.pack(wire.MAGIC, wire.Verb.ADD, 0, 0, *texts))
        _, [network], _, _ = socket.recv_fds(peer, wire.ANSWER.size, 1)
        os.close(network)


def mounted(host: PodHost, pod: str) -> int:
    return host.sh("cat /proc/self/mountinfo").count(f"/netns/{pod} ")


def test_a_prepared_namespace_takes_the_place_of_the_given(host: PodHost) -> None:
    host.pods("a")
    before = host.sh("stat -Lc %i /run/netns/a")
    answer = host.plugin("ADD", "a")
    assert answer["firstlight"] == {"namespace": "replaced"}
    link, interface = answer["interfaces"]
    assert interface["sandbox"] == "/run/netns/a"
    assert "sandbox" not in link
    assert link["name"] in host.links()
    assert host.sh("stat -Lc %i /run/netns/a") != before
    assert mounted(host, "a") == 2
    shown = json.loads(host.sh("ip -j addr show eth0", net="a"))[0]
    assert shown["address"] == interface["mac"]
    assert shown["addr_info"][0]["local"] + "/32" == answer["ips"][0]["address"]
    for _ in range(2):
        assert host.plugin("DEL", "a") == {}
        assert host.sh("stat -Lc %i /run/netns/a") == before
        assert mounted(host, "a") == 1
    assert not host.leases()
    host.sh("umount /run/netns/a; rm /run/netns/a")


def test_the_path_is_never_without_a_namespace(host: PodHost) -> None:
    """Others enter it meanwhile: containerd runs ``loopback`` at the same time."""
    host.pods("a")
    look = (
        "import os, sys\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists('/run/done'):\n"
        "    assert os.stat('/run/netns/a').st_dev == int(sys.argv[1])\n"
    )
    device = host.sh("stat -Lc %d /run/netns/a")
    words = host.command(sys.executable, "-c", look, device)
    looker = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert looker.stdout
    assert looker.stdout.readline() == "ready\n"
    assert "ips" in host.plugin("ADD", "a")
    host.sh("touch /run/done")
    _, errors = looker.communicate(timeout=60)
    assert looker.returncode == 0, errors


@pytest.mark.parametrize("way", ["path", "conf", "name", "link"])
def test_where_it_cannot_be_replaced_the_link_is_made_in_it(host: PodHost, way: str) -> None:
    host.pods("a")
    before = host.sh("stat -Lc %i /run/netns/a")
    conf, env = CONF, {}
    if way == "path":
        host.sh("ln -s /run/netns/a /run/netns/b")
        env["CNI_NETNS"] = "/run/netns/b"
    elif way == "conf":
        conf = {**CONF, "namespace": "fill"}
    elif way == "name":
        env["CNI_IFNAME"] = "net1"
    else:
        host.sh("ip link add other type veth peer end; ip link set other up", net="a")
    if way != "conf":
        refused = host.plugin("ADD", "a", {**CONF, "namespace": "replace"}, **env)
        assert refused["code"] == 100
    answer = host.plugin("ADD", "a", conf, **env)
    assert answer["firstlight"]["namespace"] == "filled", answer
    assert host.sh("stat -Lc %i /run/netns/a") == before
    name = env.get("CNI_IFNAME", "eth0")
    assert answer["ips"][0]["address"] in host.sh(f"ip -br addr show {name}", net="a")
    assert host.plugin("CHECK", "a", {**conf, "prevResult": answer}, **env) == {}
    assert host.plugin("DEL", "a", conf, **env) == {}
    assert name not in host.sh("ip -br link", net="a")


def test_sysctls_that_pinns_has_set_are_carried_over(host: PodHost) -> None:
    """CRI-O sets a pod's nowhere else; other runtimes set them in each container."""
    paths = " ".join(
        f"/proc/sys/net/{name}" for name in ("core/somaxconn", "ipv4/conf/all/log_martians")
    )
    host.sh("mkdir /run/utsns; touch /run/utsns/a")
    seen = {}
    for pod in ("a", "b"):
        host.pods(pod)
        before = host.sh(f"cat {paths}; for f in {paths}; do echo 1 > $f; done", net=pod)
        assert host.plugin("ADD", pod)["firstlight"] == {"namespace": "replaced"}
        seen[pod] = host.sh(f"cat {paths}", net=pod)
    assert seen == {"a": "1\n1", "b": before}


def test_a_namespace_of_another_user_namespace_is_filled(host: PodHost) -> None:
    """Its root could do nothing in one of ours, not even mount /sys."""
    host.sh("touch /run/netns/u")
    host.sh(
        "unshare --user --map-root-user --net sleep infinity & "
        "until [ $(readlink /proc/$!/ns/user) != $(readlink /proc/self/ns/user) ]; do :; done; "
        "until [ $(readlink /proc/$!/ns/net) != $(readlink /proc/self/ns/net) ]; do :; done; "
        "mount --bind /proc/$!/ns/net /run/netns/u; kill $!"
    )
    answer = host.plugin("ADD", "u")
    assert "user namespace" in answer["firstlight"]["because"]
    assert host.plugin("DEL", "u") == {}


def test_pods_reach_what_they_should(tmp_path: Path) -> None:
    with pod_host(tmp_path) as host:
        host.configure(more='node_services = ["tcp/81"]')
        host.sh(
            "ip link add world type veth peer far; ip netns add far; ip link set far netns far; "
            "ip addr add 198.51.100.1/24 dev world; ip link set world up; "
            "ip addr add 169.254.169.254/32 dev lo"
        )
        host.sh("ip addr add 198.51.100.2/24 dev far; ip link set far up", net="far")
        host.start()
        first, second = host.add("one"), host.add("two")
        serving(host, "two", second, 80)
        serving(host, "far", "198.51.100.2", 80)
        for port in (80, 81):
            serving(host, "", "0.0.0.0", port)
        assert reaches(host, "one", second, 80)
        assert reaches(host, "", second, 80)
        assert reaches(host, "one", "198.51.100.2", 80)  # which has no route to pods: masqueraded
        assert reaches(host, "one", "10.244.0.1", 81)
        assert cannot_reach(host, "one", "10.244.0.1", 80)
        assert cannot_reach(host, "one", "198.51.100.1", 80)
        assert cannot_reach(host, "one", "169.254.169.254", 81)
        host.sh(f"ip addr add 10.244.0.99/32 dev eth0; ip addr del {first}/32 dev eth0", net="one")
        host.sh(
            "ip route replace default via 10.244.0.1 dev eth0 onlink src 10.244.0.99", net="one"
        )
        assert cannot_reach(host, "one", second, 80)  # as another


def test_two_stacks(tmp_path: Path) -> None:
    with pod_host(tmp_path) as host:
        host.configure(more='range6 = "fd00:10:244::/112"\nmtu = 1400')
        host.start()
        host.pods("one", "two")
        [_, first] = [ip["address"] for ip in host.plugin("ADD", "one")["ips"]]
        answer = host.plugin("ADD", "two")
        [_, second] = [ip["address"].partition("/")[0] for ip in answer["ips"]]
        assert first.endswith("/128")
        assert answer["interfaces"][1]["mtu"] == 1400
        assert "mtu 1400" in host.sh("ip link show eth0", net="two")
        serving(host, "two", second, 80)
        assert reaches(host, "one", second, 80)
        conf = {**CONF, "prevResult": answer}
        assert host.plugin("CHECK", "two", conf) == {}
        host.sh("ip -6 route add fd00:77::/64 via fd00:10:244::1 dev eth0", net="two")
        host.sh("ip -6 route del default", net="two")
        assert "IPv6 default route" in host.plugin("CHECK", "two", conf)["msg"]
        answer["ips"][1]["address"] = "fd00:10:244::ff/128"
        assert "prevResult" in host.plugin("CHECK", "two", conf)["msg"]


@pytest.mark.parametrize("change", ["link del fppods", "addr flush dev fppods",
                                    "link set fppods down"])  # fmt: skip
def test_removed_gateway_is_made_again(tmp_path: Path, change: str) -> None:
    with pod_host(tmp_path) as host:
        host.configure(more='range6 = "fd00:10:244::/112"', pool=1)
        host.sh("ip link add fppods type bridge; ip addr add 10.9.0.1/32 dev fppods")  # once
        host.start()
        assert "10.9.0.1" not in host.sh("ip -br addr show fppods")
        host.sh(f"ip {change}")
        pods = ["a", "b", "c"]
        addresses = [host.add(pod) for pod in pods]
        shown = host.sh("ip -br addr show fppods")
        assert "10.244.0.1/32" in shown
        assert "fd00:10:244::1/128" in shown
        serving(host, pods[-1], addresses[-1], 80)
        assert reaches(host, "", addresses[-1], 80)


def test_check_sees_what_was_changed(host: PodHost) -> None:
    host.pods("a")
    answer = host.plugin("ADD", "a")
    conf = {**CONF, "prevResult": answer}
    assert host.plugin("CHECK", "a", conf) == {}
    assert host.plugin("CHECK", "a")["code"] == 7
    assert host.plugin("CHECK", "a", conf, CNI_CONTAINERID="other")["code"] == 3
    wrong = json.loads(json.dumps(conf))
    wrong["prevResult"]["ips"][0]["address"] = "10.244.0.250/32"
    assert host.plugin("CHECK", "a", wrong)["code"] == 102
    link = answer["interfaces"][0]["name"]
    host.sh(f"ip link set {link} down")
    until(lambda: "the host's end" in host.plugin("CHECK", "a", conf).get("msg", ""))
    host.sh(f"ip link set {link} up")
    until(lambda: host.plugin("CHECK", "a", conf) == {})
    half = "ip route replace 0.0.0.0/1 via 10.244.0.1 dev eth0 onlink; ip route del default"
    for change in (half, "ip link set eth0 down", "ip link del eth0"):
        host.sh(change, net="a")
        assert host.plugin("CHECK", "a", conf)["code"] == 102
    assert host.plugin("DEL", "a") == {}


def test_a_second_add_is_refused(host: PodHost) -> None:
    host.add("a")
    assert host.plugin("ADD", "a")["code"] == 101
    assert len(host.leases()) == 1
    assert host.plugin("DEL", "a") == {}


def test_delete_succeeds_whatever_is_left(host: PodHost) -> None:
    assert host.plugin("DEL", "never", CNI_NETNS="") == {}
    lose_add(host, "lost")
    assert host.leases()
    assert host.plugin("DEL", "lost", CNI_NETNS="") == {}
    assert not host.leases()
    host.add("a")
    host.sh("umount /run/netns/a; umount /run/netns/a; rm /run/netns/a")
    assert host.plugin("DEL", "a") == {}
    host.add("b")
    host.kill()
    assert host.plugin("DEL", "b") == {}  # by itself: no agent is needed to take a pod down
    assert "eth0" not in host.sh("ip -br link", net="b")
    host.sh("rm -r /run/firstlight-agile")  # as a boot does
    assert host.plugin("DEL", "a") == {}
    host.start()
    assert host.plugin("DEL", "b") == {}
    assert mounted(host, "b") == 1


def test_unmount_handles_link_and_odd_characters(host: PodHost) -> None:
    host.sh("ln -s /run/netns /run/other; mkdir '/run/netns/a \\ b'")
    host.sh("ip netns add c; touch '/run/netns/a \\ b/ns'; "
            "mount --bind /run/netns/c '/run/netns/a \\ b/ns'")  # fmt: skip
    for path in ("/run/other/c", "/run/netns/a \\ b/ns"):
        before = host.sh(f"stat -Lc %i '{path}'")
        assert host.plugin("ADD", "c", CNI_NETNS=path)["firstlight"]["namespace"] == "replaced"
        assert host.sh(f"stat -Lc %i '{path}'") != before
        assert host.plugin("DEL", "c", CNI_NETNS=path) == {}
        assert host.sh(f"stat -Lc %i '{path}'") == before


def test_lost_adds_give_their_addresses_back(host: PodHost) -> None:
    for number in range(40):
        lose_add(host, f"lost{number}")
    assert host.leases()
    host.kill()
    host.start()
    until(lambda: not host.leases())  # their links go with their namespaces
    lose_add(host, "again")
    address = host.add("again")
    assert [key[1] for key in host.leases()] == ["again"]
    assert host.plugin("GC", "", {**CONF, "cni.dev/valid-attachments": [
        {"containerID": "again", "ifname": "eth0"}]}) == {}  # fmt: skip
    assert address in host.sh("ip -br addr", net="again")
    other = {**CONF, "name": "other", "cni.dev/valid-attachments": []}
    assert host.plugin("GC", "", other) == {}
    assert host.leases()
    assert host.plugin("GC", "", {**CONF, "cni.dev/valid-attachments": []}) == {}
    assert not host.leases()
    assert "eth0" not in host.sh("ip -br link", net="again")


def test_an_agent_that_is_killed_or_replaced_loses_nothing(host: PodHost) -> None:
    """Pods come and go, ten agents end meanwhile: all succeed, each with an address of its own."""
    total, at_once = 100, 5
    host.pods(*(f"p{number}" for number in range(total)))
    up: dict[str, str] = {}
    waiting = [f"p{number}" for number in range(total)]
    ends = [signal.SIGKILL, signal.SIGTERM] * 5
    while waiting:
        batch, waiting = waiting[:at_once], waiting[at_once:]
        processes = {pod: host.popen("ADD", pod) for pod in batch}
        if ends and len(waiting) % (2 * at_once) == 0:
            host.kill(ends.pop())
            host.start(wait=False)
        for pod, process in processes.items():
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0, output
            up[pod] = json.loads(output)["ips"][0]["address"].partition("/")[0]
        for pod in list(up)[:-10]:
            assert host.plugin("DEL", pod) == {}
            del up[pod]
        assert len(set(up.values())) == len(up)
    assert not ends
    for pod, address in up.items():
        assert address in host.sh("ip -br addr show eth0", net=pod)
    until(lambda: len(host.leases()) == len(up))
    assert {key[1] for key in host.leases()} == set(up)
    for pod in up:
        assert host.plugin("DEL", pod) == {}
    host.kill(signal.SIGTERM)
    until(lambda: not host.links())
    assert not host.leases()


@pytest.mark.parametrize("dry", ["build", "wait", "refuse"])
def test_an_empty_pool_builds_waits_or_refuses(tmp_path: Path, dry: str) -> None:
    with pod_host(tmp_path) as host:
        host.configure(pool=1, dry=dry)
        host.start()
        names = [f"p{number}" for number in range(6)]
        host.pods(*names)
        processes = [host.popen("ADD", name) for name in names]
        answers = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
        refused = [answer for answer in answers if "code" in answer]
        assert all(answer["code"] == 11 for answer in refused)
        assert len(refused) < len(names)
        if dry != "refuse":
            assert not refused


def test_a_full_range_is_reported(tmp_path: Path) -> None:
    with pod_host(tmp_path) as host:
        text = host.configuration.read_text().replace("10.244.0.0/24", "10.244.0.0/28")
        host.configuration.write_text(text)
        host.start()
        for number in range(13):
            host.add(f"p{number}")
        host.pods("more")
        answer = host.plugin("ADD", "more", CONF)
        assert answer["code"] == 11
        assert "pods.range" in answer["msg"]
        assert host.plugin("DEL", "p3") == {}
        assert "ips" in host.plugin("ADD", "more")


def test_without_an_agent_add_waits_and_says_so(host: PodHost) -> None:
    host.kill()
    host.pods("a")
    answer = host.plugin("ADD", "a", {**CONF, "seconds": 0.3})
    assert answer["code"] == 11
    assert "/run/firstlight-agile/pods/socket" in answer["msg"]
    assert host.plugin("STATUS", "")["code"] == 50
    adding = host.popen("ADD", "a")
    host.start()
    output, _ = adding.communicate(timeout=60)
    assert "ips" in json.loads(output)
    assert host.plugin("STATUS", "") == {}


def test_what_is_removed_leaves_nothing(host: PodHost) -> None:
    host.add("a")
    host.sh("ip addr add 192.0.2.1/24 dev lo")
    host.sh(f"ip route add 10.245.0.0/24 via 192.0.2.2 proto {ROUTE_PROTOCOL}")  # another node's
    host.kill(signal.SIGTERM)
    assert "10.244" in host.sh("ip -br addr show eth0", net="a")
    words = host.command(str(Path(sys.prefix, "bin", "firstlight")), "agile", "agent",
                         "--config", str(host.configuration), "--remove")  # fmt: skip
    subprocess.run(words, check=True, capture_output=True)
    assert host.sh("ip -br link | cut -d' ' -f1").split() == ["lo"]
    assert "firstlight" not in host.sh("nft list ruleset")
    assert "10.2" not in host.sh("ip route")
    assert "firstlight-agile" not in host.sh("ls /run")


def cnitool(host: PodHost, verb: str, pod: str, conflist: dict[str, Any], **env: str) -> str:
    host.root("/run/net.d/10-net.conflist").write_text(json.dumps(conflist))
    path = f"{PLUGIN.parent}:/usr/lib/cni"
    done = subprocess.run(
        host.command(str(CNITOOL), verb, "net", f"/run/netns/{pod}"), text=True,
        capture_output=True,
        env={**os.environ, "NETCONFPATH": "/run/net.d", "CNI_PATH": path, **env},
    )  # fmt: skip
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not CNITOOL.exists(), reason=f"{CNITOOL} is missing: make cni-plugins")
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_the_specification_s_own_tool(host: PodHost, version: str) -> None:
    conflist = {"cniVersion": version, "name": "net", "plugins": [{"type": "firstlight"}]}
    host.pods("a")
    result = json.loads(cnitool(host, "add", "a", conflist))
    assert result["ips"][0]["address"] in host.sh("ip -br addr show eth0", net="a")
    cnitool(host, "check", "a", conflist)
    if version == "1.1.0":
        cnitool(host, "status", "a", conflist)
        lose_add(host, "lost")
        until(lambda: len(host.links()) == 9)  # 8 are prepared
        cnitool(host, "gc", "a", conflist)  # which deletes what it has added, and gives no list
        assert not host.leases()
    cnitool(host, "del", "a", conflist)
    cnitool(host, "del", "a", conflist)
    assert not host.leases()


@pytest.mark.skipif(not CNITOOL.exists(), reason=f"{CNITOOL} is missing: make cni-plugins")
def test_portmap_bandwidth_and_tuning_behind_it(host: PodHost) -> None:
    plugins = [
        {"type": "firstlight"},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "77"}},
        {"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000},
    ]
    conflist = {"cniVersion": "1.0.0", "name": "net", "plugins": plugins}
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    host.pods("a", "b")
    result = json.loads(cnitool(host, "add", "a", conflist, CAP_ARGS=json.dumps(ports)))
    address = result["ips"][0]["address"].partition("/")[0]
    assert host.sh("cat /proc/sys/net/core/somaxconn", net="a") == "77"
    assert "tbf" in host.sh(f"tc qdisc show dev {result['interfaces'][0]['name']}")
    serving(host, "a", address, 80)
    cnitool(host, "add", "b", {**conflist, "plugins": plugins[:1]})
    assert reaches(host, "b", "10.244.0.1", 8080)  # redirected: not the node's own
    assert reaches(host, "", "127.0.0.1", 8080)
    cnitool(host, "del", "a", conflist, CAP_ARGS=json.dumps(ports))
    assert cannot_reach(host, "b", "10.244.0.1", 8080)
