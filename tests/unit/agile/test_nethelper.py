"""What becomes of what a network helper is asked when something goes wrong."""

import asyncio
import os
import signal
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from firstlight.agile.network import nethelper
from firstlight.agile.network.nethelper import NetHelper, Request, Unanswered, Verb
from firstlight.errors import Failed


class Quiet:
    """A helper that is asked and never answers by itself."""

    pid = -1

    def __init__(self, _: str, answered: Callable[[bytes, list[int]], None], __: object) -> None:
        self.answered = answered
        self.messages: list[bytes] = []
        self.is_closed = False
        Quiet.latest = self

    latest: "Quiet"

    def send(self, message: bytes, descriptors: list[int]) -> None:
        self.messages.append(message)

    def answer(self, number: int, *descriptors: int) -> None:
        self.answered(nethelper._ANSWER.pack(number, 7, 8, 9, 0, b""), list(descriptors))

    def close(self, wait: bool = True) -> None:
        self.is_closed = True


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nethelper, "Helper", Quiet)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("answered_first", [True, False])
def test_a_cancelled_request_leaves_no_namespace_open(answered_first: bool) -> None:
    async def main() -> int:
        helper = NetHelper()
        asking = asyncio.create_task(helper.ask(Request(Verb.MAKE)))
        await asyncio.sleep(0)
        descriptor = os.open(os.devnull, os.O_RDONLY)
        if answered_first:
            Quiet.latest.answer(1, descriptor)
        asking.cancel()
        if not answered_first:
            Quiet.latest.answer(1, descriptor)
        with pytest.raises(asyncio.CancelledError):
            await asking
        helper.close()
        return descriptor

    descriptor = asyncio.run(main())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.usefixtures("quiet")
def test_helper_answers_are_matched_by_number() -> None:
    async def main() -> None:
        helper = NetHelper()
        first, second = (asyncio.create_task(helper.ask(Request(Verb.CHECK))) for _ in range(2))
        await asyncio.sleep(0)
        for number in (99, 2, 1):
            Quiet.latest.answer(number)
        assert [(await task).id for task in (first, second)] == [1, 2]
        helper.close()

    asyncio.run(main())


@pytest.mark.usefixtures("quiet")
def test_silent_helper_is_replaced_and_requests_fail() -> None:
    async def main() -> None:
        helper = NetHelper(silence=0.01)
        asking = [asyncio.create_task(helper.ask(Request(Verb.CHECK))) for _ in range(2)]
        await asyncio.sleep(0)
        hung = Quiet.latest
        for task in asking:
            with pytest.raises(Failed, match=r"did not answer in 0\.06 s and was killed"):
                await task
        assert hung.is_closed
        again = asyncio.create_task(helper.ask(Request(Verb.CHECK)))
        await asyncio.sleep(0)
        assert Quiet.latest is not hung
        Quiet.latest.answer(3)
        assert (await again).digest == 7
        with pytest.raises(Failed, match=r"did not answer in 0\.01 s"):  # nor load modules again
            await helper.ask(Request(Verb.CHECK))
        helper.close()
        with pytest.raises(Unanswered, match="the network is closed"):
            await helper.ask(Request(Verb.CHECK))

    asyncio.run(main())


def test_a_stopped_helper_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, without a privilege: the process is stopped before it can answer."""

    async def main() -> None:
        helper = NetHelper(silence=0.03)
        asking = asyncio.create_task(helper.ask(Request(Verb.REMOVE, link="fl-none")))
        await asyncio.sleep(0)
        pid = helper.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(Failed, match="did not answer"):
            await asking
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)
        answer = await helper.ask(Request(Verb.REMOVE, link="fl-none"))
        assert answer.error == 0
        helper.close()

    asyncio.run(main())


def test_a_request_too_large_for_a_message_is_refused() -> None:
    with pytest.raises(Failed, match="the rules are too long"):
        nethelper.rules("x" * 70_000).encode(1)
    ranges = [(IPv4Address(1), IPv4Address(2), 3)] * nethelper.RANGES_MAX
    assert len(nethelper.forget(ranges).encode(1)) == 96 + 12 * nethelper.RANGES_MAX
