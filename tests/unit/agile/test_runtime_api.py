"""The Lambda Runtime API against what an instance may send."""

import asyncio
import json
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.agile import partial_answers
from firstlight.agile.function import NodeFailed
from firstlight.agile.serving import runtime_api
from firstlight.agile.serving.answer import PAYLOAD_MAX
from firstlight.agile.serving.runtime_api import Event, Lost, Reply, RuntimeApi
from firstlight.agile.serving.trace import to_xray

NEXT = b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n"
ANSWER = b"POST /2018-06-01/runtime/invocation/r/response HTTP/1.1\r\n"
PIECES = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([
        NEXT, ANSWER, ANSWER + b"Content-Length: 2\r\n\r\n{}",
        b"Content-Length: 99999999999999\r\n",
        b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"5\r\nhello\r\n",
        b"ffffffffffffffff\r\n", b"0\r\n\r\n", b"Expect: 100-continue\r\n", b"POST /x HTTP/1.1\r\n",
        b"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nContent-Length: 1\r\n\r\n{",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"CONNECT x:1 HTTP/1.1\r\n\r\n",
        b"X: " + b"y" * 70000 + b"\r\n", b"\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]),
)  # fmt: skip


class Transport(asyncio.Transport):
    """What a connection wrote, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.unread, self.closed = b"", 0, False

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unread

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    abort = close


def connected(api: RuntimeApi) -> tuple[runtime_api._Connection, Transport]:
    connection, transport = runtime_api._Connection(api, httptools), Transport()
    connection.connection_made(transport)
    return connection, transport


async def asked() -> tuple[runtime_api._Connection, Transport, asyncio.Task[Reply]]:
    """A connection that was given an event, and the request that waits for its answer."""
    api = RuntimeApi()
    connection, transport = connected(api)
    connection.data_received(NEXT)
    request = asyncio.ensure_future(api.ask(Event("r", b"{}", 3.0)))
    await asyncio.sleep(0)
    return connection, transport, request


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=12))
def test_no_bytes_break_it_or_are_held_without_bound(pieces: list[bytes]) -> None:
    async def main() -> None:
        api = RuntimeApi()
        connection, transport = connected(api)
        request = asyncio.ensure_future(api.ask(Event("r", b"{}", 1.0)))
        await asyncio.sleep(0)
        for piece in pieces:
            if transport.closed:
                break
            connection.data_received(piece)
        connection.connection_lost(None)
        assert len(connection._headers) <= 64
        assert connection._body is None or len(connection._body) <= PAYLOAD_MAX
        api.end()
        await asyncio.gather(request, return_exceptions=True)
        assert isinstance(request.exception(), Lost) or isinstance(request.result(), Reply)

    asyncio.run(main())


def test_an_event_is_answered_once_and_by_its_id() -> None:
    async def main() -> None:
        api = RuntimeApi()
        connection, transport = connected(api)
        connection.data_received(NEXT)
        assert transport.written == b""
        event = Event("r", b'{"a":1}', 3.0, "arn:x", "t\r\nX-Injected: 1", b'{"custom": 1}')
        request = asyncio.ensure_future(api.ask(event))
        await asyncio.sleep(0)
        head, _, body = transport.written.partition(b"\r\n\r\n")
        assert body == b'{"a":1}'
        assert b"Lambda-Runtime-Aws-Request-Id: r\r\n" in head + b"\r\n"
        assert not any(line.startswith(b"X-Injected") for line in head.split(b"\r\n"))
        transport.written = b""
        connection.data_received(ANSWER.replace(b"/r/", b"/other/") + b"Content-Length: 0\r\n\r\n")
        assert b"400 Bad Request" in transport.written
        transport.written = b""
        connection.data_received(NEXT)
        assert b"403 Forbidden" in transport.written
        connection.data_received(ANSWER + b"Content-Length: 4\r\n\r\nnull")
        assert (await request) == Reply(b"null")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("trailers", "reply"),
    [
        (b"", Reply(b"ok")),
        (b"X-Other: 1\r\n", Reply(b"ok")),
        (
            b"Lambda-Runtime-Function-Error-Type: Custom\r\n"
            b"Lambda-Runtime-Function-Error-Body: eyJlcnJvclR5cGUiOiJDdXN0b20ifQ==\r\n",
            Reply(b'{"errorType":"Custom"}', error=True),
        ),
        (
            b"Lambda-Runtime-Function-Error-Type: Custom\r\n"
            b"Lambda-Runtime-Function-Error-Body: {not base64\r\n",
            Reply(
                b'{"errorType": "Custom", '
                b'"errorMessage": "the function failed while it streamed its answer"}',
                error=True,
            ),
        ),
    ],
)
def test_streamed_answer_that_ends_by_error_is_that_error(trailers: bytes, reply: Reply) -> None:
    async def main() -> None:
        connection, transport, request = await asked()
        connection.data_received(ANSWER + b"Lambda-Runtime-Function-Response-Mode: streaming\r\n")
        connection.data_received(b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n")
        connection.data_received(trailers + b"\r\n")
        assert await request == reply
        assert b"202" in transport.written

    asyncio.run(main())


@pytest.mark.parametrize("endless", [b"X: y", b"X: y\r\n", b"0;"])
def test_answer_whose_trailers_do_not_end_is_cut_off(endless: bytes) -> None:
    async def main() -> None:
        connection, transport, request = await asked()
        connection.data_received(ANSWER + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
        connection.data_received(b"0\r\n" + endless if endless[:1] == b"X" else endless)
        for _ in range(5):
            connection.data_received(endless * (16384 // len(endless)))
        assert transport.closed
        request.cancel()

    asyncio.run(main())


def test_too_long_an_answer_is_refused_and_not_held() -> None:
    async def main() -> None:
        connection, transport, request = await asked()
        connection.data_received(ANSWER + b"Content-Length: %d\r\n\r\n" % (PAYLOAD_MAX + 1))
        connection.data_received(b"x" * (PAYLOAD_MAX + 1))
        assert b"413" in transport.written
        assert (await request).too_large

    asyncio.run(main())


def test_answers_that_are_never_finished_hold_no_more_than_one() -> None:
    """As those of an instance that sends a byte now and then, on all of its connections."""

    async def main() -> None:
        api = RuntimeApi()
        made = [connected(api) for _ in range(16)]
        made[0][0].data_received(NEXT)
        request = asyncio.ensure_future(api.ask(Event("r", b"{}", 3.0)))
        await asyncio.sleep(0)
        part = b"x" * (PAYLOAD_MAX - 1)
        for path in (b"invocation/r/response", b"invocation/other/response", b"init/error", b"x"):
            for connection, transport in made[1:]:
                if transport.closed:
                    continue
                connection._begin()
                connection._parser = httptools.HttpRequestParser(connection)
                head = b"POST /2018-06-01/runtime/%s HTTP/1.1\r\n" % path
                connection.data_received(head + b"Content-Length: %d\r\n\r\n" % PAYLOAD_MAX)
                connection.data_received(part)
            held = [len(each._body or b"") for each, transport in made if not transport.closed]
            assert sum(held) < PAYLOAD_MAX + (1 << 20), path
        last, transport = next(each for each in made if not each[1].closed)
        last.data_received(ANSWER + b"Content-Length: 4\r\n\r\nnull")
        assert (await request) == Reply(b"null")
        assert not last._body

    asyncio.run(main())


def test_too_long_an_error_of_the_initialization_is_refused() -> None:
    async def main() -> None:
        api = RuntimeApi()
        connection, transport = connected(api)
        head = b"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nContent-Length: 70000\r\n\r\n"
        connection.data_received(head)
        connection.data_received(b"x" * 70000)
        assert transport.written.startswith(b"HTTP/1.1 413 ")
        assert await api.initialized == Reply(b"", error=True)

    asyncio.run(main())


def test_answers_may_use_another_connection() -> None:
    async def main() -> None:
        api = RuntimeApi()
        made = [connected(api) for _ in range(2)]
        for connection, _ in made:
            connection.data_received(NEXT)
            request = asyncio.ensure_future(api.ask(Event("r", b"{}", 3.0)))
            await asyncio.sleep(0)
            connection.data_received(ANSWER + b"Content-Length: 4\r\n\r\nnull")
            assert (await request) == Reply(b"null")
        assert not any(transport.closed for _, transport in made)

    asyncio.run(main())


def test_events_that_are_never_read_do_not_pile_up() -> None:
    async def main() -> None:
        api = RuntimeApi()
        first, second = connected(api), connected(api)
        first[0].data_received(NEXT)
        request = asyncio.ensure_future(api.ask(Event("r", b"{}", 3.0)))
        await asyncio.sleep(0)
        first[1].unread = 100
        second[0].data_received(ANSWER + b"Content-Length: 4\r\n\r\nnull")
        await request
        second[0].data_received(NEXT)
        assert first[1].closed
        assert not second[1].closed

    asyncio.run(main())


@pytest.mark.parametrize("at_once", [1, 40, 1 << 10])
@pytest.mark.parametrize(
    "content",
    [b"Content-Length: 4\r\n%snull", b"Transfer-Encoding: chunked\r\n%s4\r\nnull\r\n0\r\n\r\n"],
)
def test_an_offer_of_another_protocol_is_ignored(content: bytes, at_once: int) -> None:
    """Java's client makes it with its requests."""

    async def main() -> None:
        api = RuntimeApi()
        connection, transport = connected(api)
        offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
        for _ in range(3):
            connection.data_received(NEXT.removesuffix(b"\r\n") + offer)
            request = asyncio.ensure_future(api.ask(Event("r", b"{}", 3.0)))
            await asyncio.sleep(0)
            assert b"200 OK" in transport.written
            sent = ANSWER + content % offer
            for at in range(0, len(sent), at_once):
                connection.data_received(sent[at : at + at_once])
            assert (await request) == Reply(b"null")
            assert b"202 Accepted" in transport.written
            transport.written = b""
        connection.data_received(b"CONNECT x:1 HTTP/1.1\r\nContent-Length: 4\r\n\r\nnull")
        assert transport.written.startswith(b"HTTP/1.1 404 ")

    asyncio.run(main())


@pytest.mark.parametrize("offer", [b"", b"Upgrade: h2c\r\n"])
@pytest.mark.parametrize("content", [b"", b"Content-Length: 1\r\n\r\nx"])
@pytest.mark.parametrize("first", [
    b"POST /none HTTP/1.1\r\nConnection: close, Upgrade\r\n",
    b"POST /none HTTP/1.0\r\nConnection: Upgrade\r\n"])  # fmt: skip
def test_connection_is_closed_if_its_request_says_so(
    first: bytes, content: bytes, offer: bytes
) -> None:
    async def main() -> None:
        connection, transport = connected(RuntimeApi())
        connection.data_received(first + offer + (content or b"\r\n"))
        assert transport.written.startswith(b"HTTP/1.1 404 ")
        assert transport.closed

    asyncio.run(main())


def test_who_asks_on_without_reading_is_hung_up_on() -> None:
    async def main() -> None:
        connection, transport = connected(RuntimeApi())
        connection.data_received(b"GET /none HTTP/1.1\r\n\r\n")
        assert b"404" in transport.written
        transport.unread, transport.written = 1, b""
        connection.data_received(b"GET /none HTTP/1.1\r\n\r\n")
        assert transport.closed
        assert not transport.written

    asyncio.run(main())


@pytest.mark.parametrize("offer", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
@pytest.mark.parametrize("gone", [True, False])
def test_many_requests_in_one_read_are_cut_off(gone: bool, offer: bytes) -> None:
    """They would hold the loop; and each answer to one that has gone is a line of the log."""

    async def main() -> None:
        connection, transport = connected(RuntimeApi())
        transport.closed = gone
        request = b"POST /none HTTP/1.1\r\n%bContent-Length: 1\r\n\r\nx" % offer
        connection.data_received(request * 10_000)
        assert transport.closed
        assert transport.written.count(b"HTTP/1.1 404") == (0 if gone else 16)

    asyncio.run(main())


def test_answer_that_gives_way_to_others_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_answers, "MOST", 1000)
    monkeypatch.setattr(partial_answers.Partial, "_all", set())  # other tests lose no connections
    monkeypatch.setattr(partial_answers.Partial, "_total", 0)

    async def main() -> None:
        connection, transport, request = await asked()
        connection.data_received(ANSWER + b"Content-Length: 5000\r\n\r\n" + bytes(999))
        assert not request.done()
        connection.data_received(bytes(2))
        with pytest.raises(NodeFailed, match="was dropped"):
            await request
        assert transport.closed
        connection.connection_lost(None)
        assert partial_answers.Partial._total == 0

    asyncio.run(main())


def test_connections_are_few() -> None:
    async def main() -> None:
        api = RuntimeApi()
        made = [connected(api)[1] for _ in range(17)]
        assert [each.closed for each in made] == [False] * 16 + [True]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
         "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1"),
        ("Root=1-2-3;Sampled=0", "Root=1-2-3;Sampled=0"),
    ],
)  # fmt: skip
def test_a_trace_is_given_as_xray_writes_it(trace: str, expected: str) -> None:
    assert to_xray(trace) == expected


def test_a_client_context_that_is_not_json_is_left_out() -> None:
    assert b"Client-Context: \r\n" in Event("r", b"", 1.0, client_context=b"{\n").head()
    head = Event("r", b"", 1.0, client_context=json.dumps({"ü": 1}).encode()).head()
    assert b'Client-Context: {"\\u00fc":1}\r\n' in head
