"""The first process of a node's namespaces: starts the components, which end with it.

    python -m firstlight.lab.cluster.node SETTINGS [DESCRIPTOR]

SETTINGS is a file of ``Settings``. On the descriptor it writes a line of JSON, an ``Event``, for
each step, the last ``ready`` or ``failed``. Then it runs until it is killed or its standard input
ends.

A further node is a component of the first, without a descriptor. Its namespaces are made in those
of the first, whose end ends all, and its last output says what failed.
"""

import ctypes
import errno
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from firstlight.errors import Failed, longer
from firstlight.host.workspace import unshare
from firstlight.lab.cluster import forward, image, links, mounts
from firstlight.lab.cluster.files import write, write_kubeconfigs
from firstlight.lab.cluster.settings import (
    ANNOTATIONS,
    API_PORT,
    PAUSE,
    PAYLOAD,
    Component,
    Health,
    Settings,
    components,
)

_NAMESPACES = 0x00020000 | 0x40000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x02000000
"""CLONE_NEW of mount, net, uts, ipc, pid and cgroup."""
_PR_SET_PDEATHSIG = 1
_DEADLINE_SECONDS = longer(120.0)  # for each component, on a busy machine
_ASK_SECONDS = longer(2.0)
_POLL_SECONDS = 0.05
_LAST_WORDS = 400


class Event(msgspec.Struct, frozen=True):
    """A step: ``up``, ``ready`` or ``failed``; or ``pid``, that of the first process."""

    kind: str
    name: str = ""
    pid: int = 0
    seconds: float = 0.0
    message: str = ""


class _Node:
    """The components that run, and those that have ended, by their names."""

    def __init__(self, settings: Settings, report: int) -> None:
        self._settings, self._report = settings, report
        self._authority = settings.first_home / "certs" / "apiserver.crt"
        self._begun = time.monotonic()
        self._pids: dict[int, str] = {}
        self._ended: dict[str, int] = {}
        self._changed = threading.Condition()

    def say(self, kind: str, name: str = "", message: str = "", pid: int = 0) -> None:
        """Report an event to the process that started the cluster."""
        if self._settings.number:
            return
        seconds = time.monotonic() - self._begun
        line = msgspec.json.encode(Event(kind, name, pid, seconds, message)) + b"\n"
        os.write(self._report, line)

    def bring_up(self) -> None:
        """Start everything and wait for it; the last event has the result."""
        settings = self._settings
        try:
            links.join(settings.switch, settings.name, settings.address)
            write(settings)
            if settings.number:
                write_kubeconfigs(settings, self._authority)
            waiting = list(components(self._settings))
            up: set[str] = set()
            starters = [threading.Thread(target=self._start, args=(each, up), daemon=True)
                        for each in waiting]  # fmt: skip
            for starter in starters:
                starter.start()
            for starter in starters:
                starter.join()
            if failed := self._failure:
                raise failed
            if settings.control_plane and not settings.number:
                self._await_nodes()
        except Exception as error:
            print(f"Error: {error}", file=sys.stderr, flush=True)  # noqa: T201 - its last words
            self.say("failed", message=str(error) or repr(error))
            os._exit(1)
        self.say("ready")

    _failure: Failed | None = None

    def _start(self, component: Component, up: set[str]) -> None:
        """Start a component when those that it needs are up, and wait until it is."""
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._failure or up.issuperset(component.after))
                if self._failure:
                    return
            self._spawn(component)
            self._await(component.name, component.health)
            self._after(component.name)
        except Exception as error:
            with self._changed:
                self._failure = self._failure or Failed(str(error) or repr(error))
                self._changed.notify_all()
            return
        with self._changed:
            up.add(component.name)
            self._changed.notify_all()
        self.say("up", component.name)

    def _spawn(self, component: Component) -> None:
        environment = {**self._settings.environment, **component.environment}
        for path, text in component.files.items():
            path.write_text(text)
        self._execute(component.name, component.argv, environment)

    def _execute(self, name: str, argv: tuple[str, ...], environment: dict[str, str]) -> None:
        """Start a program, whose end ``reap`` will see."""
        with self._settings.log(name).open("wb") as log, self._changed:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                cwd=self._settings.home, pass_fds=[self._settings.switch],
            )  # fmt: skip
            process.returncode = 0  # nothing else must wait for it
            self._pids[process.pid] = name

    def reap(self) -> None:
        """Reap every process, including orphans, until there are none."""
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                time.sleep(_POLL_SECONDS)  # the first is not started yet
                continue
            with self._changed:
                if name := self._pids.pop(pid, None):
                    self._ended[name] = os.waitstatus_to_exitcode(status)

    def _await(self, name: str, health: Health) -> None:
        """Wait until a component says that it is up. Raises Failed with its last words."""
        until = time.monotonic() + _DEADLINE_SECONDS
        while not is_up(health, self._settings.token):
            if name in self._ended:
                raise Failed(
                    f"{name} ended with status {self._ended[name]}: {self._last_words(name)}"
                )
            if time.monotonic() > until:
                raise Failed(f"{name} is not ready after {_DEADLINE_SECONDS:.0f} s: "
                             f"{self._last_words(name)}")  # fmt: skip
            time.sleep(_POLL_SECONDS)

    def _last_words(self, name: str) -> str:
        return last_words(self._settings.log(name))

    def _after(self, name: str) -> None:
        """Do what others need once a component is up."""
        settings = self._settings
        if name == "containerd":
            self._import("payload", PAYLOAD, ["/bin/payload", "ready"])
            self._import("pause", PAUSE, ["/bin/payload", "hold"])
        elif name == "kube-apiserver":
            write_kubeconfigs(settings, self._authority)
            for handler in settings.handlers:
                body = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
                        "metadata": {"name": handler.name}, "handler": handler.name}  # fmt: skip
                self._api("POST", "/apis/node.k8s.io/v1/runtimeclasses", body)
            if settings.forward >= 0:
                forward.serve(settings.forward, ("127.0.0.1", API_PORT))
        elif name == "kubelet" and settings.has_daemons:
            self._await_range()
            path = f"/api/v1/nodes/{settings.name}"
            self._api("PATCH", path, {"metadata": {"annotations": ANNOTATIONS}})

    def _import(self, file: str, image_name: str, entrypoint: list[str]) -> None:
        archive = self._settings.home / f"{file}.tar"
        image.archive(
            archive, image_name, entrypoint, {"bin/payload": Path(self._settings.payload)}
        )
        argv = (self._settings.programs["ctr"], "--address", str(self._settings.socket),
                "--namespace", "k8s.io", "images", "import", str(archive))  # fmt: skip
        step = f"import-{file}"
        self._execute(step, argv, self._settings.environment)
        until = time.monotonic() + _DEADLINE_SECONDS
        while step not in self._ended and time.monotonic() < until:
            time.sleep(_POLL_SECONDS / 5)
        if self._ended.get(step) != 0:
            raise Failed(f"cannot import the image {image_name}: {self._last_words(step)}")

    def _await_range(self) -> None:
        """Wait until the node has a range for its pods, which the networks' daemons ask for."""
        until = time.monotonic() + _DEADLINE_SECONDS
        while True:
            status, body = self._api("GET", f"/api/v1/nodes/{self._settings.name}")
            if status == 200 and msgspec.json.decode(body)["spec"].get("podCIDR"):
                return
            if time.monotonic() > until:
                raise Failed("the node has no range for its pods")
            time.sleep(_POLL_SECONDS)

    def _await_nodes(self) -> None:
        """Wait until pods can be made, on every node. Raises Failed with a node's own reason."""
        until = time.monotonic() + _DEADLINE_SECONDS
        while why := self._unready():
            if "kubelet" in self._ended:
                why = f"the kubelet has exited: {self._last_words('kubelet')}"
            if "kubelet" in self._ended or time.monotonic() > until:
                raise Failed(why)
            time.sleep(_POLL_SECONDS)

    def _unready(self) -> str:
        """Why pods cannot be made yet, or "". Without a network of ours, no node is Ready."""
        for name in (each.name for each in (self._settings, *self._settings.others())):
            status, body = self._api("GET", f"/api/v1/nodes/{name}")
            if status != 200:
                return f"the kubelet has not registered the node {name}"
            conditions = msgspec.json.decode(body)["status"].get("conditions", [])
            ready = next((each for each in conditions if each["type"] == "Ready"), None)
            if self._settings.has_network and (not ready or ready["status"] != "True"):
                return f"the node {name} is not Ready: {ready['message'] if ready else '?'}"
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        return "" if self._api("GET", account)[0] == 200 else "pods have no service account"

    def _api(self, verb: str, path: str, body: object = None) -> tuple[int, bytes]:
        status, answer = ask(f"https://127.0.0.1:{API_PORT}{path}", self._settings.token,
                             verb, None if body is None else msgspec.json.encode(body))  # fmt: skip
        if verb != "GET" and status not in (200, 201):
            raise Failed(f"kube-apiserver refuses {path}: {answer.decode(errors='replace')}")
        return status, answer


def is_up(health: Health, token: str, root: str = "") -> bool:
    """Whether a component reports itself healthy; ``root`` is the root of its mount namespace."""
    try:
        if health.socket:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_ASK_SECONDS)
                connection.connect(f"{root}{health.socket}")
            return True
        if health.file:
            return Path(f"{root}{health.file}").exists()
        if health.url.startswith("tcp://"):
            where = urlsplit(health.url)
            assert where.hostname
            assert where.port
            socket.create_connection((where.hostname, where.port), _ASK_SECONDS).close()
            return True
        return ask(health.url, token)[0] == 200
    except OSError as error:
        return error.errno == errno.EPROTOTYPE  # it listens, for messages
    except http.client.HTTPException:
        return False


def ask(
    url: str, token: str, verb: str = "GET", body: bytes | None = None,
    seconds: float = _ASK_SECONDS,
) -> tuple[int, bytes]:  # fmt: skip
    """One HTTP request to a component on the loopback of its own namespace: status and answer."""
    where = urlsplit(url)
    assert where.hostname
    if where.scheme == "https":
        # The certificate is made by the component itself; nothing else can be on this loopback.
        context = ssl._create_unverified_context()  # noqa: S323
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            where.hostname, where.port, timeout=seconds, context=context
        )
    else:
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=seconds)
    headers = {"Authorization": f"Bearer {token}"} if where.scheme == "https" else {}
    if body is not None:
        kind = "merge-patch+json" if verb == "PATCH" else "json"
        headers["Content-Type"] = f"application/{kind}"
    try:
        connection.request(verb, where.path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def last_words(log: Path) -> str:
    """The end of what a program printed, on one line."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return "it printed nothing"
    telling = [line for line in lines if line.startswith(("E", "F", "Error", "error"))] or lines
    return (telling[-1].strip()[-_LAST_WORDS:]) if telling else "it printed nothing"


def main(file: Path, report: int) -> None:
    """Enter the namespaces, and be their first process."""
    settings = msgspec.json.decode(file.read_bytes(), type=Settings)
    if not settings.number:
        _end_with_parent()
        settings = msgspec.structs.replace(settings, switch=links.make_switch())
    hierarchies = mounts.hierarchies()
    mounts.enter(settings.cgroup, hierarchies)
    unshare(_NAMESPACES)
    mounts.make_room(settings.cgroup, hierarchies)
    node = _Node(settings, report)
    if first := os.fork():
        node.say("pid", pid=first)
        _, status = os.waitpid(first, 0)
        os._exit(os.waitstatus_to_exitcode(status) != 0)
    _end_with_parent()
    if not settings.number:
        threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        if settings.number:
            mounts.uncover()
        mounts.private(settings.first_home.parent, settings.home / "scratch", hierarchies)
    except (Failed, OSError) as error:
        node.say("failed", message=str(error))
        print(f"Error: {error}", file=sys.stderr, flush=True)  # noqa: T201 - its last words
        os._exit(1)
    threading.Thread(target=node.bring_up, daemon=True).start()
    node.reap()


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else -1)
