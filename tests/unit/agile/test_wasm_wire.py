"""What is said to a WebAssembly worker and by it, in Python and in C."""

import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.laboratory import compiled

from firstlight.agile.wasm import wire
from firstlight.agile.wasm.wire import WasmOutcome
from firstlight.errors import Failed

NATIVE = Path(__file__).parents[3] / "native/agile"
READER = """
#include "wasm.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Takes the events of each message (a size of 4 bytes, and the message) and adds up their bytes. */
int main(void)
{
	uint32_t size;
	while (fread(&size, sizeof size, 1, stdin) == 1) {
		struct wasm_request request;
		struct wasm_event_view event;
		char *message = malloc(size ? size : 1); /* so that a byte beyond is seen */
		uint64_t sum = 0;
		if (fread(message, 1, size, stdin) != size)
			return 1;
		const char *at = message + sizeof request, *end = message + size;
		int64_t taken = -1;
		if (size >= sizeof request) {
			memcpy(&request, message, sizeof request);
			for (taken = 0; taken < request.count && !wasm_take_event(&at, end, &event); taken++) {
				const unsigned char *bytes = (const unsigned char *)event.arguments;
				for (size_t i = 0; i < event.argument_count * sizeof *event.arguments; i++)
					sum += bytes[i];
				for (size_t i = 0; i < event.input_size; i++)
					sum += (unsigned char)event.input[i];
			}
		}
		printf("%lld %llu\\n", (long long)taken, (unsigned long long)sum);
		free(message);
	}
	return 0;
}
"""
NUMBERS = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False))
EVENTS = st.lists(st.tuples(st.lists(NUMBERS, max_size=5), st.binary(max_size=20)), max_size=5)


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that reads requests as the worker does, under the sanitizers."""
    base = tmp_path_factory.mktemp("reader")
    (base / "reader.c").write_text(READER)
    return compiled(
        base / "reader.c", base / "reader", str(NATIVE / "wasm_message.c"), f"-I{NATIVE}",
        "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    )  # fmt: skip


def read(reader: Path, messages: list[bytes]) -> list[tuple[int, int]]:
    """How many events the program took of each, and the sum of their bytes."""
    stdin = b"".join(struct.pack("=I", len(message)) + message for message in messages)
    done = subprocess.run([reader], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return [(int(a), int(b)) for a, b in (line.split() for line in done.stdout.splitlines())]


@settings(max_examples=25)
@given(requests=st.lists(EVENTS, max_size=20))
def test_the_worker_reads_what_is_written(
    reader: Path, requests: list[list[tuple[list[int | float], bytes]]]
) -> None:
    messages, expected = [], []
    for events in requests:
        encoded = [wire.event(*event) for event in events]
        messages.append(wire.request(1, encoded))
        heads = sum(sum(struct.pack("=II", len(a), len(b))) for a, b in events)
        expected.append((len(events), sum(map(sum, encoded)) - heads))
    assert read(reader, messages) == expected


@settings(max_examples=25)
@given(
    messages=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.builds(
                lambda events, at, byte: _spoiled(
                    wire.request(1, [wire.event(*event) for event in events]), at, byte
                ),
                EVENTS, st.integers(0, 10_000), st.integers(0, 255),
            ),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_the_worker_reads_nothing_beyond_a_message(reader: Path, messages: list[bytes]) -> None:
    assert len(read(reader, messages)) == len(messages)


def _spoiled(message: bytes, at: int, byte: int) -> bytes:
    at %= len(message)
    return message[:at] + bytes([byte]) + message[at + 1 :]


@given(message=st.binary(max_size=300))
def test_what_is_no_answer_raises_nothing_else(message: bytes) -> None:
    with suppress(Failed):
        wire.answer(message)


def test_an_answer() -> None:
    value, text = struct.pack("=IIq", 0, 0, -5), b"words" + b"out" + b"err" + bytes(5)
    head = struct.pack("=IIiIIIqq", 3, 1, 7, 5, 3, 3, 11, 12)
    message = struct.pack("=QII", 9, 4, 2) + 2 * (head + value + text)
    identity, first, replies = wire.answer(message)
    assert (identity, first, len(replies)) == (9, 4, 2)
    assert replies[1] == (WasmOutcome.TRAPPED, (-5,), 7, "words", "out", "err", 11, 12)
    for size in range(len(message)):
        with pytest.raises(Failed):
            wire.answer(message[:size])


def test_what_has_no_place_in_a_message_is_refused() -> None:
    with pytest.raises(Failed, match="64 bits"):
        wire.event([1 << 63])
    with pytest.raises(Failed, match="too long"):
        wire.request(1, [wire.event(stdin=bytes(200_000))])
