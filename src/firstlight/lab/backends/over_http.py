"""A registered function of the agile runtime, invoked over HTTP by an unmodified boto3.

The client is resident, and its connections are open: what is measured is one call, as a service
makes it, from the message that asks for it to the function's first instruction.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from firstlight.agile import Config, protocol
from firstlight.agile.client import Client
from firstlight.agile.config import Http, Pools, PoolSize
from firstlight.agile.functions.records import DirectorySource, Settings
from firstlight.errors import Failed, UnknownName, Unsupported, install_extra, longer
from firstlight.host import cgroups
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Ask, Prepared, boto_caller
from firstlight.lab.backends.agile import Agile, daemon, payload, processes
from firstlight.lab.backends.functions import probe_python, workplace
from firstlight.model import EndPoint

_PORT = 9400
_FULL_SECONDS, _LOOK_SECONDS = longer(60.0), 0.02
_NAME = "measured"
_HANDLER = "import time\n\n\ndef main(event, context):\n    return time.monotonic_ns()\n"
_RATE = 1e4  # per second: untimed, so as fast as possible
KINDS = {
    "program": "each call starts a program of its own, from whole sandboxes that wait",
    "Python, cold": "each call has an instance of its own, a waiting fork of a warm interpreter, "
    "in which awslambdaric calls the handler; it ends with its handler's first line",
    "Python, warm": "each call finds an instance that waits for it, provisioned by the API; it "
    "ends with its handler's first line",
}


@dataclass(frozen=True)
class OverHttp:
    """``kind`` is one of KINDS."""

    kind: str
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The client, and the kind."""
        return f"boto3: {self.kind}"

    @property
    def note(self) -> str | None:
        """What is done in advance, and what a request is."""
        return (
            f"{self.name}: {KINDS[self.kind]}; a request is a call of Invoke by boto3 on an open "
            "connection, and calls at once share one process of the client"
        )

    def probe(self) -> None:
        """Has the needs of the runtime and its HTTP server; boto3 in some interpreter."""
        if self.kind not in KINDS:
            raise UnknownName("kind of function over HTTP", self.kind, KINDS)
        Agile("agile").probe()
        if not all(map(find_spec, ("httptools", "starlette", "uvicorn"))):
            raise Unsupported("the runtime's HTTP server is not installed",
                              install_extra("http"))  # fmt: skip
        if self.kind != "program":
            probe_python()
            if not find_spec("awslambdaric"):
                raise Unsupported("awslambdaric is not installed", install_extra("lambda"))
        _interpreter()

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A runtime with the function, full pools, and a client with open connections."""
        with workplace(workspace) as base:
            full = PoolSize(low=instances, high=instances, rate=_RATE)
            config = Config(
                name="lab", state=str(base / "state"), store=str(base / "store"),
                instances=max(64, 10 * instances), http=Http(listen=f"127.0.0.1:{_PORT}"),
                pools=Pools(window=0, network=full, cgroup=full, sandbox=full, fork=full),
                cgroup=f"{cgroups.name(workspace.run)}/agile",
            )  # fmt: skip
            with daemon(config, workspace) as pid:
                with Client(config.socket) as client:
                    self._register(client, base)
                    client.prepare(payload(base / "filling", "ready"), instances)
                    _await_full(client)
                provisioned = instances if self.kind == "Python, warm" else 0
                with _caller(base, workspace, provisioned) as (socket, caller):
                    ask = Ask(socket, "hello", "call", (*processes(config, pid), caller))
                    yield Prepared([ask] * instances)

    def _register(self, client: Client, base: Path) -> None:
        code = base / "code"
        if self.kind == "program":
            code = Path(payload(code, "ready").rootfs)
            source = DirectorySource(str(code), root=True)
            settings = Settings(kind="command", command=("/bin/payload", "ready"), timeout=60.0)
        else:
            code.mkdir()
            (code / "app.py").write_text(_HANDLER)
            source = DirectorySource(str(code))
            kept = 0.0 if self.kind == "Python, cold" else 300.0
            settings = Settings(handler="app.main", keep_warm=kept, timeout=60.0)
        client.functions(protocol.AddFunction(_NAME, source, settings))
        if self.kind != "Python, warm":
            client.call(protocol.CallFunction(_NAME, b"{}", "1"))


def _await_full(client: Client) -> None:
    """Wait until what is made ahead is there. Raises Failed."""
    until = time.monotonic() + _FULL_SECONDS
    while short := [pool.name for pool in client.pools() if pool.ready < pool.low]:
        if time.monotonic() > until:
            raise Failed(f"the pools {', '.join(short)} are not full in {_FULL_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS)


def _interpreter() -> str:
    """One that has boto3. Raises Unsupported."""
    own = Path(sys.prefix, "aws/bin/python")
    if own.exists():
        return str(own)
    if find_spec("boto3"):
        return sys.executable
    host = Path("/usr/bin/python3")
    if any(Path("/usr/lib/python3/dist-packages").glob("boto3")) and host.exists():
        return str(host)
    raise Unsupported("boto3 is not installed", "apt-get install python3-boto3")


@contextmanager
def _caller(base: Path, workspace: Workspace, provisioned: int) -> Iterator[tuple[Path, int]]:
    """A resident client; yields its socket and its pid. Raises Failed."""
    socket, log = base / "caller", base / "caller.log"
    argv = [_interpreter(), boto_caller.__file__, str(socket), _NAME, f"http://127.0.0.1:{_PORT}",
            str(provisioned)]  # fmt: skip
    with (
        log.open("w") as errors,
        subprocess.Popen(argv, env=workspace.environment, text=True, stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=errors) as process,
    ):  # fmt: skip
        assert process.stdout
        try:
            if process.stdout.readline() != "ready\n":
                raise Failed(f"boto3 cannot call: {log.read_text().strip()[-500:]}")
            yield socket, process.pid
        finally:
            process.kill()
