"""What a client, the zygotes and the serving of functions keep, and what they count."""

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from firstlight.agile import Config, Function, client
from firstlight.agile.client import Client
from firstlight.agile.config import Functions
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.node import wire
from firstlight.agile.node.liveness import connect
from firstlight.agile.node.wire import AnswerVerb
from firstlight.agile.python import zygotes
from firstlight.agile.serving.serving import Serving
from firstlight.agile.serving.web import Web
from firstlight.agile.wasm.client import Attached
from firstlight.errors import Failed


def answer(verb: AnswerVerb, instance: int) -> bytes:
    """An answer of the node."""
    return wire._ANSWER.pack(wire.MAGIC, verb, 0, 0, instance, *([0] * 28))


def test_a_client_keeps_so_many_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_ENDED_MOST", 2)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as node:
        node.bind(str(path))
        node.listen()
        with Client(path) as connection:
            connection._node = connect(path)
            node.accept()[0].close()
            peer, _ = node.accept()
            with peer:
                for verb in (AnswerVerb.STARTED, AnswerVerb.ENDED):
                    for number in (1, 2, 3):
                        peer.send(answer(verb, number))
                for _ in range(3):
                    connection._receive()
                assert connection.wait("3").status == 0
                assert connection.wait("2").status == 0
                for forgotten in ("1", "2", "4"):
                    with pytest.raises(Failed, match="is not known"):
                        connection.wait(forgotten)


def test_attached_names_limit_when_disconnected_at_once() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    function = Function(rootfs="/x.wasm", kind="wasm", handler="x")
    with Attached(function, ours) as attached, pytest.raises(Failed) as caught:
        attached.invoke([1])
    assert "takes no more connections" in caught.value.message
    assert "256" in (caught.value.hint or "")


class Slow:
    """A zygote that is made until it is told."""

    def __init__(self, _resources: object, function: Function, _cgroups: object) -> None:
        self.function, self.made, self.is_idle = function, asyncio.Event(), False
        self.used = 0.0

    async def start(self) -> None:
        await self.made.wait()


def test_interpreters_that_are_made_have_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygotes, "Zygote", Slow)

    async def run() -> None:
        config = Config(functions=Functions(most=1))
        resources = SimpleNamespace(config=config, cgroups=SimpleNamespace(remove=None), gate=None)
        kept = zygotes.Zygotes(cast("Any", resources))
        first, second = (Function(rootfs=f"/{name}", kind="python", handler="a:b") for name in "xy")
        making = asyncio.ensure_future(kept._make(first))
        await asyncio.sleep(0)
        with pytest.raises(Failed, match="are made, or up and at work"):
            await kept._make(second)
        making.cancel()

    asyncio.run(run())


class Busy:
    """An instance with a request."""

    def __init__(self) -> None:
        self.requests, self.expiry, self.is_up, self.closed = 1, None, True, False

    async def close(self) -> None:
        self.closed = True


def test_a_server_that_was_replaced_is_counted_and_closed() -> None:
    async def run() -> None:
        runtime = SimpleNamespace(config=Config())
        version = FunctionVersion(name="f", version="1", kind="http", port=80)
        busy = Busy()
        async with Serving(cast("Any", runtime)) as serving:
            server = serving._web(version)
            server._up.append(cast("Any", busy))
            newer = serving._web(msgspec.structs.replace(version, revision=1))
            assert isinstance(newer, Web)
            assert newer is not server
            assert sorted(load.busy for load in serving.loads()) == [0, 1]
        assert busy.closed

    asyncio.run(run())


def test_replaced_server_is_awaited_until_instances_end() -> None:
    async def run() -> None:
        runtime = SimpleNamespace(config=Config())
        version = FunctionVersion(name="f", version="1", kind="http", port=80)
        slow, may_end = Busy(), asyncio.Event()
        slow.requests = 0

        async def close() -> None:
            await may_end.wait()
            slow.closed = True

        slow.close = close  # type: ignore[method-assign]
        serving = Serving(cast("Any", runtime))
        server = serving._web(version)
        server._up.append(cast("Any", slow))
        serving._web(msgspec.structs.replace(version, revision=1))
        leaving = asyncio.ensure_future(serving.__aexit__())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not leaving.done()
        may_end.set()
        await asyncio.wait_for(leaving, 60)
        assert slow.closed
        assert not serving._replaced

    asyncio.run(run())
