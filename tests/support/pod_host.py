"""A node of the tests' own: the agent, the CNI plugin, and pods that are namespaces."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from firstlight.agile.pods import daemon
from firstlight.native import native

ROOT = Path(__file__).parents[2]
CNITOOL = ROOT / ".venv" / "libexec" / "cni" / "tools" / "cnitool"
PLUGIN = native("cni/firstlight")
CONF = {"cniVersion": "1.1.0", "name": "net", "type": "firstlight", "seconds": 90}
_DEADLINE = 120.0
_BEGIN = """
ip link set lo up
mount -t tmpfs run /run; mkdir -p /run/netns /run/lock /run/net.d
mount --make-shared /run
mount -t tmpfs var /var/lib
echo ready
exec sleep infinity
"""
CONFIG = """
name = "pods"
[pods]
range = "10.244.0.0/24"
{more}
[pods.pool]
low = {pool}
high = {pool}
rate = 1000.0
dry = "{dry}"
"""


class PodHost:
    """Namespaces that play a node. The agent's files are below the node's own /run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.configuration = directory / "pods.toml"
        self.configure()
        self.agents: list[subprocess.Popen[bytes]] = []
        self.within: tuple[str, ...] = ()
        """A program that executes the plugin, and its arguments."""
        self.holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "bash", "-euc", _BEGIN],
            stdout=subprocess.PIPE,
        )
        assert self.holder.stdout
        assert self.holder.stdout.readline() == b"ready\n"

    def configure(self, more: str = "", pool: int = 8, dry: str = "build") -> None:
        self.configuration.write_text(CONFIG.format(more=more, pool=pool, dry=dry))

    def command(self, *words: str, net: str = "") -> list[str]:
        """A command on the node; ``net`` is a pod that it is inside of."""
        inside = ["ip", "netns", "exec", net] if net else []
        return ["nsenter", "-t", str(self.holder.pid), "--net", "--mount", *inside, *words]

    def sh(self, script: str, net: str = "") -> str:
        done = subprocess.run(
            self.command("bash", "-euc", script, net=net),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not done.returncode, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def root(self, path: str) -> Path:
        return Path(f"/proc/{self.holder.pid}/root{path}")

    def start(self, wait: bool = True) -> subprocess.Popen[bytes]:
        log = (self.directory / "agent.log").open("ab")
        argv = self.command(sys.executable, "-P", daemon.__file__, str(self.configuration))
        process = subprocess.Popen(argv, stdout=log, stderr=log)
        self.agents.append(process)
        end = time.monotonic() + _DEADLINE
        while wait and not self.root("/run/firstlight-agile/pods/socket").is_socket():
            assert process.poll() is None, (self.directory / "agent.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.01)
        return process

    def kill(self, number: int = signal.SIGKILL) -> None:
        process = self.agents.pop()
        process.send_signal(number)
        process.wait(60)
        if number == signal.SIGKILL:
            self.root("/run/firstlight-agile/pods/socket").unlink(missing_ok=True)

    def pods(self, *names: str) -> None:
        """Namespaces by name, as a runtime makes them: one mount each."""
        for name in names:
            path = f"/run/netns/{name}"
            self.sh(f"touch {path}; unshare --net mount --bind /proc/self/ns/net {path}")

    def popen(self, verb: str, pod: str, conf: dict[str, Any] = CONF, /, **env: str) -> Any:
        variables = {
            "CNI_COMMAND": verb, "CNI_CONTAINERID": pod, "CNI_IFNAME": "eth0",
            "CNI_NETNS": f"/run/netns/{pod}", **env,
        }  # fmt: skip
        process = subprocess.Popen(
            self.command(*self.within, str(PLUGIN)), text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, **variables},
        )  # fmt: skip
        assert process.stdin
        process.stdin.write(json.dumps(conf))
        process.stdin.close()
        process.stdin = None
        return process

    def plugin(self, verb: str, pod: str, conf: dict[str, Any] = CONF, /, **env: str) -> Any:
        """What the plugin prints; a failure's has a code."""
        process = self.popen(verb, pod, conf, **env)
        output, _ = process.communicate(timeout=_DEADLINE)
        answer = json.loads(output) if output else {}
        assert (process.returncode != 0) == ("code" in answer), output
        return answer

    def add(self, pod: str, conf: dict[str, Any] = CONF, /, **env: str) -> str:
        """ADD to a new namespace; the pod's address."""
        self.pods(pod)
        answer = self.plugin("ADD", pod, conf, **env)
        assert "ips" in answer, answer
        return str(answer["ips"][0]["address"]).partition("/")[0]

    def leases(self) -> list[list[Any]]:
        text = self.root("/run/firstlight-agile/pods/leases").read_text()
        live: dict[int, list[Any]] = {}
        for event, number, *rest in map(json.loads, text.splitlines()):
            live.pop(number, None)
            if event == "+":
                live[number] = rest
        return list(live.values())

    def links(self) -> list[str]:
        names = self.sh("ip -br link | cut -d' ' -f1")
        return [n.partition("@")[0] for n in names.splitlines() if n.startswith("fppods-")]

    def close(self) -> None:
        for process in [*self.agents, self.holder]:
            process.kill()
            process.wait(60)


@contextmanager
def pod_host(directory: Path) -> Iterator[PodHost]:
    host = PodHost(directory)
    try:
        yield host
    finally:
        host.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PodHost]:
    """A node whose agent runs."""
    with pod_host(tmp_path) as made:
        made.start()
        yield made


def until(check: Any, seconds: float = _DEADLINE) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "the condition does not come true"
        time.sleep(0.02)
