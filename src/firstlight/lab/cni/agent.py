"""The agent of the cilium profile: answers cilium's plugin on its unix socket.

It is not Cilium's agent. It does the real eBPF work of an endpoint in the same order: it writes the
endpoint's header, compiles its programs with clang, loads them, attaches them to the pod's link and
sets its route. Like Cilium's it builds few endpoints at a time and limits their rate::

    GET /v1/config            the node's configuration, for the plugin
    POST /v1/ipam             an address
    PUT /v1/endpoint/ID       creates an endpoint; answers when its programs are attached
    DELETE /v1/endpoint       removes it, by its container
    DELETE /v1/ipam/ADDRESS   frees an address
"""

import argparse
import json
import shutil
import socketserver
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

NETWORK = IPv4Network("10.96.0.0/16")
GATEWAY = NETWORK.network_address + 1
SOCKET = Path("/run/cilium/cilium.sock")
_MTU = 1450
_PARALLEL = 4  # Cilium's limits of endpoint creation: at once,
_RATE = 0.5  # per second,
_BURST = 4.0  # after a burst of this many,
_EXPECTED_SECONDS = 2.0  # faster by as much as they are quicker than this,
_LARGEST_FACTOR = 100.0  # up to this factor
_COMPILE = ("clang", "-O2", "-g", "-target", "bpf", "-Wall", "-Werror")


class Limiter:
    """A token bucket that grows when endpoints are quicker than expected."""

    def __init__(self) -> None:
        self._slots = threading.Semaphore(_PARALLEL)
        self._lock = threading.Lock()
        self._tokens, self._filled = _BURST, time.monotonic()
        self._mean = _EXPECTED_SECONDS

    def __enter__(self) -> None:
        self._slots.acquire()
        while (wait := self._take()) > 0:
            time.sleep(wait)

    def __exit__(self, *_: object) -> None:
        self._slots.release()

    def took(self, seconds: float) -> None:
        """Record how long an endpoint took."""
        with self._lock:
            self._mean += 0.25 * (seconds - self._mean)

    def _take(self) -> float:
        """Take a token, or return the seconds to wait for the next."""
        with self._lock:
            factor = min(max(_EXPECTED_SECONDS / self._mean, 1.0), _LARGEST_FACTOR)
            now = time.monotonic()
            grown = self._tokens + (now - self._filled) * _RATE * factor
            self._tokens, self._filled = min(grown, _BURST * factor), now
            if self._tokens >= 1:
                self._tokens -= 1
                return 0.0
            return (1 - self._tokens) / (_RATE * factor)


class Agent:
    """The endpoints of the node. ``template``: compile once, as Cilium does since v1.5."""

    def __init__(self, source: Path, loader: Path, state: Path, *, template: bool) -> None:
        self._source, self._loader, self._state = source, loader, state
        self._template = template
        self._compiled = threading.Lock()
        self._lock = threading.Lock()
        self._endpoints: dict[str, IPv4Address] = {}
        self._free: list[IPv4Address] = []
        self._next = GATEWAY + 1
        self._number = 0
        self.limiter = Limiter()

    def allocate(self) -> IPv4Address:
        """Allocate an address."""
        with self._lock:
            if self._free:
                return self._free.pop()
            self._next += 1
            return self._next - 1

    def free(self, address: IPv4Address) -> None:
        """Free an address."""
        with self._lock:
            self._free.append(address)

    def create(self, request: dict[str, Any]) -> int:
        """Build an endpoint; returns its number. Raises CalledProcessError."""
        link = request["interface-name"]
        address = IPv4Address(request["addressing"]["ipv4"])
        with self._lock:
            self._number += 1
            number = self._number
            self._endpoints[request["container-id"]] = address
        directory = self._state / str(number)
        directory.mkdir(parents=True)
        _run("ip", "route", "replace", f"{address}/32", "dev", link)
        program = self._program(directory, number, address)
        _run(str(self._loader), str(program), link)
        return number

    def remove(self, container: str) -> bool:
        """Remove an endpoint, by its container; its link ends with the pod."""
        with self._lock:
            address = self._endpoints.pop(container, None)
        if address is None:
            return False
        self.free(address)
        return True

    def _program(self, directory: Path, number: int, address: IPv4Address) -> Path:
        if not self._template:
            return self._compile(directory, number, address)
        with self._compiled:
            template = self._state / "template" / "endpoint.o"
            if not template.exists():
                template.parent.mkdir()
                self._compile(template.parent, 0, GATEWAY)
        return Path(shutil.copy(template, directory / "endpoint.o"))

    def _compile(self, directory: Path, number: int, address: IPv4Address) -> Path:
        (directory / "endpoint.h").write_text(
            f"#define ENDPOINT_ID {number}\n"
            f"#define ENDPOINT_IDENTITY {10000 + number}\n"
            f"#define ENDPOINT_ADDRESS {int(address)}u\n"
        )
        target = directory / "endpoint.o"
        _run(*_COMPILE, *_includes(), "-I", str(directory), "-c", str(self._source), "-o",
             str(target))  # fmt: skip
        return target


class Handler(BaseHTTPRequestHandler):
    """A plugin's connection."""

    protocol_version = "HTTP/1.1"
    agent: Agent

    def do_GET(self) -> None:  # noqa: D102
        self._answer(200, {"status": _node()})

    def do_POST(self) -> None:  # noqa: D102
        self._body()
        address = str(self.agent.allocate())
        self._answer(
            201,
            {
                "address": {"ipv4": address, "ipv4-pool-name": "default"},
                "host-addressing": _node()["addressing"],
                "ipv4": {"ip": address},
            },
        )

    def do_PUT(self) -> None:  # noqa: D102
        request = self._body()
        try:
            with self.agent.limiter:
                began = time.monotonic()
                number = self.agent.create(request)
                self.agent.limiter.took(time.monotonic() - began)
        except subprocess.CalledProcessError as error:
            reason = (error.stderr or b"").decode(errors="replace").strip()
            self._answer(500, f"{error.cmd[0]} failed: {reason}")
        else:
            self._answer(201, {"id": number})

    def do_DELETE(self) -> None:  # noqa: D102
        request = self._body()
        path = self.path.partition("?")[0]
        if path.startswith("/v1/ipam/"):
            self.agent.free(IPv4Address(path.removeprefix("/v1/ipam/")))
            self._answer(200, None)
        elif self.agent.remove(request.get("container-id", "")):
            self._answer(200, None)
        else:
            self._answer(404, None)

    def log_message(self, *_: object) -> None:
        """Log nothing: standard error belongs to the run."""

    def _body(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        parsed = json.loads(self.rfile.read(length) or b"{}")
        return parsed if isinstance(parsed, dict) else {}

    def _answer(self, status: int, value: object) -> None:
        text = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


class Server(socketserver.ThreadingUnixStreamServer):
    """The server; a burst of plugins queues."""

    request_queue_size = 512
    daemon_threads = True


def _node() -> dict[str, Any]:
    return {
        "addressing": {
            "ipv4": {"enabled": True, "ip": str(GATEWAY), "alloc-range": str(NETWORK)},
        },
        "datapathMode": "veth",
        "deviceMTU": _MTU,
        "routeMTU": _MTU,
        "ipam-mode": "cluster-pool",
        "realized": {},
    }


def _includes() -> tuple[str, ...]:
    """Debian's directory of asm/types.h, which clang does not search for the target bpf."""
    return tuple(
        f"-I{directory.parent}" for directory in Path("/usr/include").glob("*-linux-gnu/asm")
    )


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("loader", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("--template", action="store_true")
    options = parser.parse_args()
    Handler.agent = Agent(options.source, options.loader, options.state, template=options.template)
    Server(str(SOCKET), Handler).serve_forever()


if __name__ == "__main__":
    main()
