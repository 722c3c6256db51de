"""The shim's server as containerd sees it: its keeper is started, and asked by ttrpc."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from firstlight.agile.shim import command
from firstlight.agile.shim.service import LEFTOVERS, SANDBOX, TASK
from firstlight.agile.shim.ttrpc import HEADER, RESPONSE, frame, messages, request

SECONDS = 60.0
NAMESPACE = "default"


class Refusal(Exception):
    def __init__(self, status: Any) -> None:
        super().__init__(status.message)
        self.code = status.code


class Connection:
    """One of containerd's."""

    def __init__(self, path: Path) -> None:
        self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._peer.settimeout(SECONDS)
        self._peer.connect(str(path))
        self._stream = 1

    def send(self, service: str, method: str, message: Any) -> None:
        payload = message.SerializeToString()
        self._peer.sendall(request(self._stream, service, method, payload, NAMESPACE))
        self._stream += 2

    def receive(self, kind: Any) -> Any:
        length, _, _, _ = HEADER.unpack(self._read(HEADER.size))
        answer = messages.Response.FromString(self._read(length))
        if answer.status.code:
            raise Refusal(answer.status)
        return kind.FromString(answer.payload)

    def ask(self, service: str, method: str, message: Any, kind: Any = messages.Empty) -> Any:
        self.send(service, method, message)
        return self.receive(kind)

    def _read(self, size: int) -> bytes:
        read = b""
        while len(read) < size:
            part = self._peer.recv(size - len(read))
            assert part, "the keeper has hung up"
            read += part
        return read

    def close(self) -> None:
        self._peer.close()


class Containerd(threading.Thread):
    """Receives events."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.events: list[tuple[str, bytes]] = []
        self._came = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()

    def run(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with suppress(OSError), peer, peer.makefile("rb") as file:  # it may be killed at any time
            while header := file.read(HEADER.size):
                length, stream, _, _ = HEADER.unpack(header)
                call = messages.Request.FromString(file.read(length))
                envelope = messages.ForwardRequest.FromString(call.payload).envelope
                with self._came:
                    self.events.append((envelope.topic, envelope.event.value))
                    self._came.notify_all()
                peer.sendall(frame(stream, RESPONSE, b""))

    def wait(self, topic: str, count: int = 1) -> list[bytes]:
        def values() -> list[bytes]:
            return [value for name, value in self.events if name == topic]

        with self._came:
            assert self._came.wait_for(lambda: len(values()) >= count, SECONDS), self.events
            return values()

    def close(self) -> None:
        self._listener.close()


class Shim:
    """A keeper with its server."""

    def __init__(
        self, directory: Path, events: Containerd, keeper: subprocess.Popen[bytes]
    ) -> None:
        self.directory, self.events, self.keeper = directory, events, keeper
        self.sandbox, self.task, self.leftovers = SANDBOX, TASK, LEFTOVERS

    def connect(self) -> Connection:
        return Connection(self.directory / "socket")

    def children(self) -> dict[int, str]:
        pids = Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text().split()
        result = {}
        for pid in map(int, pids):
            with suppress(OSError):
                result[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
        return result

    def server(self) -> int:
        """The server's pid, as soon as there is one that answers."""
        connection = self.connect()
        message = messages.TaskRequest(id="no")
        with suppress(Refusal):
            connection.ask(TASK, "Connect", message, messages.ConnectResponse)
        connection.close()
        until = time.monotonic() + SECONDS
        while True:  # a child may be missing in the list while another ends
            for pid, name in self.children().items():
                if name.startswith("python"):
                    return pid
            assert time.monotonic() < until, "the keeper has no server"

    def kill_server(self) -> None:
        os.kill(self.server(), signal.SIGKILL)


@contextmanager
def shim(directory: Path, keeper_program: Path | None = None) -> Iterator[Shim]:
    """One that runs, with the installed keeper or another build of it."""
    home = directory / "shim"
    events = Containerd(directory / "events.sock")
    events.start()
    command.make(home)
    runc = Path("/usr/sbin/runc") if Path("/usr/sbin/runc").exists() else Path("/usr/bin/runc")
    words = command.words(home, str(directory / "events.sock"), runc, 2)
    words[0] = str(keeper_program or words[0])
    words[2] = sys.executable
    keeper = subprocess.Popen(words, umask=0o077)
    try:
        _await(home / "socket")
        yield Shim(home, events, keeper)
    finally:
        keeper.terminate()
        try:
            keeper.wait(SECONDS)
        finally:
            keeper.kill()
            events.close()


def _await(path: Path) -> None:
    """Wait until somebody listens there."""
    until = time.monotonic() + SECONDS
    while True:
        with suppress(OSError):
            Connection(path).close()
            return
        assert time.monotonic() < until, f"nobody listens at {path}"
        time.sleep(0.01)


def bundle(directory: Path, name: str, script: str, sandbox: int = 0, **more: Any) -> Path:
    """A bundle of busybox; in the namespaces of a sandbox's pid, if there is one."""
    made = directory / name
    root = made / "rootfs"
    for each in ("bin", "proc", "dev", "sys", "tmp", "etc"):
        (root / each).mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for each in (
        "sh",
        "cat",
        "sleep",
        "echo",
        "hostname",
        "kill",
        "id",
        "stty",
        "tty",
        "touch",
        "ls",
    ):
        (root / "bin" / each).symlink_to("busybox")
    subprocess.run(["runc", "spec"], cwd=made, check=True, timeout=SECONDS)
    spec = json.loads((made / "config.json").read_text())
    spec["process"] |= {"args": ["/bin/sh", "-c", script], "terminal": False} | more
    spec["root"]["readonly"] = False
    spec["linux"]["cgroupsPath"] = f"/firstlight-shim-{os.getpid()}-{name}"
    if sandbox:
        for space in spec["linux"]["namespaces"]:
            if space["type"] in ("network", "ipc", "uts"):
                kind = {"network": "net"}.get(space["type"], space["type"])
                space["path"] = f"/proc/{sandbox}/ns/{kind}"
        del spec["hostname"]
        (made / "sandbox").write_text("pod")
    (made / "config.json").write_text(json.dumps(spec))
    return made
