"""Makes a runtime's functions match a cluster's Function objects: ``agile function follow``.

It watches metadata alone, and fetches an object when the runtime has another generation of it.
Failures are retried with growing delays, while the runtime serves what it had before. The runtime's
own tags record what it has, so no state is kept here.

A node that has left the cluster cannot report that its failure is over: others look for such nodes.
"""

import logging
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from firstlight.agile import protocol
from firstlight.agile.apiserver import METADATA, TABLE, Object, Refused, Server
from firstlight.agile.client import Client
from firstlight.agile.functions import objects
from firstlight.agile.functions.objects import State
from firstlight.errors import Failed, FirstlightError

API = "/apis/firstlight.dev/v1alpha1"
_AT_ONCE = 4
_AWAY_SECONDS = 1.0
_RETRY_LEAST, _RETRY_MOST = 10.0, 300.0
_CONFLICTS = 8
_LOOK_LEAST, _LOOK_MOST = 120.0, 600.0
_NODES = "/api/v1/nodes"
_log = logging.getLogger(__name__)


@dataclass
class _Failure:
    state: State
    wait: float
    until: float

    @classmethod
    def again(cls, state: State, before: "_Failure | None") -> "_Failure":
        """The next failure, with a longer delay if the state is the same."""
        is_again = before and before.state == state
        wait = min(2 * before.wait, _RETRY_MOST) if before and is_again else _RETRY_LEAST
        return cls(state, wait, time.monotonic() + wait)


class Follower:
    """One runtime, by its socket, and one namespace of Functions.

    ``settled`` is set when each has been tried once.
    """

    def __init__(self, server: Server, namespace: str, runtime: Path) -> None:
        self._server, self._runtime = server, runtime
        self._path = f"{API}/namespaces/{namespace}/functions"
        self.node = os.environ.get("NODE_NAME") or socket.gethostname().lower()
        self._workers = ThreadPoolExecutor(_AT_ONCE, "function")
        self._lock = threading.Lock()
        self.settled = threading.Event()
        self._wanted: dict[str, State] = {}
        self._served: dict[str, State] = {}
        self._written: dict[str, State] = {}
        self._failures: dict[str, _Failure] = {}
        self._busy: set[str] = set()
        self._next_look = _after(0, _LOOK_LEAST)

    def counts(self) -> dict[str, int]:
        """How many functions are declared, served as declared, and refused."""
        with self._lock:
            wanted = self._wanted.items()
            served = {name for name, state in wanted if self._served.get(name) == state}
            return {"wanted": len(wanted), "served": len(served),
                    "refused": len(self._failures.keys() - served)}  # fmt: skip

    def run(self) -> None:
        """Follow for ever."""
        for objects_by_name in self._server.follow(self._path, METADATA):
            wanted = {name: objects.state(each) for name, each in objects_by_name.items()}
            while True:
                try:
                    self._compare(wanted)
                    break
                except FirstlightError as error:
                    _log.warning("the runtime does not answer: %s", error)
                    time.sleep(_AWAY_SECONDS)
            if time.monotonic() >= self._next_look:
                self._next_look = _after(_LOOK_LEAST, _LOOK_MOST)
                self._workers.submit(self._forget_nodes)

    def _compare(self, wanted: dict[str, State]) -> None:
        """Begin the changes that make the runtime serve what is declared. Raises Failed."""
        served = self._read_registered()
        now = time.monotonic()
        with self._lock:
            self._wanted = wanted
            for name in self._served.keys() | served.keys():
                if name not in self._busy:
                    _set(self._served, name, served.get(name))
            for known in (self._written, self._failures):
                for name in known.keys() - wanted.keys():
                    del known[name]
            for name in wanted.keys() | self._served.keys():
                state, failure = wanted.get(name), self._failures.get(name)
                if name in self._busy or state == self._served.get(name) == self._written.get(name):
                    continue
                if failure and failure.state == state and now < failure.until:
                    continue
                self._busy.add(name)
                self._workers.submit(self._keep, name)
        self._look_settled()

    def _look_settled(self) -> None:
        counts = self.counts()
        if counts["served"] + counts["refused"] >= counts["wanted"]:
            self.settled.set()

    def _read_registered(self) -> dict[str, State]:
        with Client(self._runtime) as client:
            return {each.name: objects.kept(each.tags)
                    for each in client.functions(protocol.ListFunctions())
                    if each.owner == objects.OWNER and objects.UID in each.tags}  # fmt: skip

    def _keep(self, name: str) -> None:
        """Apply a function's declaration, which may change meanwhile."""
        while True:
            with self._lock:
                state = self._wanted.get(name)
                failure = self._failures.get(name)
            try:
                self._bring(name, state, failure)
            except Exception as error:  # one of the servers is unreachable; it is retried
                _log.warning("cannot apply %s: %s", name, error)
                if state is not None:
                    with self._lock:
                        self._failures[name] = _Failure.again(state, failure)
            with self._lock:
                if state == self._wanted.get(name):
                    self._busy.discard(name)
                    break
        self._look_settled()

    def _bring(self, name: str, state: State | None, before: _Failure | None) -> None:
        """Add, update or remove a function in the runtime, and report it in the object's status."""
        if state is None:
            with Client(self._runtime) as client:
                client.functions(protocol.RemoveFunction(name))
            with self._lock:
                _set(self._served, name, None)
            _log.info("%s is removed", name)
            return
        try:
            function = self._server.ask("GET", f"{self._path}/{name}")
        except Refused as error:
            if error.status == 404:  # the watch will report it
                return
            raise
        state, problem = objects.state(function), ""
        if self._served.get(name) != state:
            try:
                request = objects.request(function)
                with Client(self._runtime) as client:
                    client.functions(request)
            except Failed as error:
                self._read_registered()  # a failure here is the runtime's, not the function's
                problem = f"{error.message}; {error.hint}" if error.hint else error.message
        with self._lock:
            if problem:
                self._failures[name] = _Failure.again(state, before)
            else:
                self._failures.pop(name, None)
                self._served[name] = state
        _log.info("%s of generation %d: %s", name, state[1], problem or "served")
        self._say(function, problem)
        with self._lock:
            self._written[name] = state

    def _say(self, function: Object, problem: str) -> None:
        """Report this node's result in the object's status, unless the object was replaced."""
        name, state = function["metadata"]["name"], objects.state(function)
        for attempt in range(_CONFLICTS):
            status = objects.status(function, self.node, problem)
            if status == function.get("status"):
                return
            try:
                self._server.ask(
                    "PUT", f"{self._path}/{name}/status", function | {"status": status}
                )
                return
            except Refused as error:
                if error.status == 404:
                    return
                if error.status != 409:
                    raise
            time.sleep(random.uniform(0, 0.1 * 2**attempt))  # noqa: S311 - other nodes do the same
            function = self._server.ask("GET", f"{self._path}/{name}")
            if objects.state(function) != state:
                return
        raise Failed(f"the status of {name} keeps being changed by others")

    def _forget_nodes(self) -> None:
        """Take nodes that the cluster no longer has out of the status of what is not Ready.

        Their turn comes again if another node changes the status meanwhile.
        """
        try:
            table = self._server.ask("GET", self._path, accept=TABLE)
            column = [each["name"] for each in table["columnDefinitions"]].index("Ready")
            for row in table["rows"] or ():
                if row["cells"][column] == "False":
                    name = row["object"]["metadata"]["name"]
                    self._forget_nodes_of(f"{self._path}/{name}")
        except Exception as error:  # no function depends on it
            _log.warning("cannot look for nodes that left the cluster: %s", error)

    def _forget_nodes_of(self, path: str) -> None:
        function = self._server.ask("GET", path)
        gone = {node for node in objects.unready(function) if self._is_gone(node)}
        if not gone:
            return
        status = objects.without(function, gone)
        try:
            self._server.ask("PUT", f"{path}/status", function | {"status": status})
        except Refused as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
        else:
            _log.info("%s: %s left the cluster", path, ", ".join(sorted(gone)))

    def _is_gone(self, node: str) -> bool:
        try:
            self._server.ask("GET", f"{_NODES}/{node}", accept=METADATA.format(""))
        except Refused as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return True
            raise
        return False


def _after(least: float, most: float) -> float:
    return time.monotonic() + random.uniform(least, most)  # noqa: S311 - not all nodes at once


def _set(states: dict[str, State], name: str, state: State | None) -> None:
    if state is None:
        states.pop(name, None)
    else:
        states[name] = state
