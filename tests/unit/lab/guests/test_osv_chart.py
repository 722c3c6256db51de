"""OSv's boot chart, read from the console and from memory: whole, cut short, absent, in rubbish."""

import struct
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from firstlight.lab.guests import Line
from firstlight.lab.guests.osv_chart import MARK, Event, printed, remembered, spans
from firstlight.model import Step

# Printed by OSv v0.57.0-398 booted from a disk of ROFS, whose clock was made to be the counter.
CHART = (
    "OSv v0.57.0-398-g0e34e4dc\r\n"
    "eth0: 10.0.0.2\r\n"
    "\tdisk read (real mode): 53.39ms, (+53.39ms)\r\n"
    "\tuncompress lzloader.elf: 6856.23ms, (+6802.84ms)\r\n"
    "\tTLS initialization: 6858.56ms, (+2.33ms)\r\n"
    "\t.init functions: 6972.07ms, (+113.51ms)\r\n"
    "\tSMP launched: 7032.04ms, (+59.97ms)\r\n"
    "\tVFS initialized: 7096.18ms, (+64.14ms)\r\n"
    "\tNetwork initialized: 7119.84ms, (+23.66ms)\r\n"
    "\tpvpanic done: 7131.51ms, (+11.67ms)\r\n"
    "\tpci enumerated: 7139.74ms, (+8.23ms)\r\n"
    "\tdrivers probe: 7140.23ms, (+0.49ms)\r\n"
    "\tdrivers loaded: 7168.46ms, (+28.23ms)\r\n"
    "\tROFS mounted: 7180.28ms, (+11.82ms)\r\n"
    "\tTotal time: 7180.61ms, (+0.33ms)\r\n"
    "Cmdline: /hello\r\n"
)
EVENTS = [
    Event("", 80_301), Event("disk read (real mode)", 219_112), Event("uncompress", 300_000),
    Event("TLS initialization", 300_000), Event(".init functions", 411_000),
    Event("ROFS mounted", 500_000), Event("Total time", 500_001),
]  # fmt: skip
SHIFTS = pytest.mark.parametrize("shift", [0x4000_0000, 0])


def lines(text: str, begin: int = 1000) -> list[Line]:
    return [Line(begin + at, line) for at, line in enumerate(text.replace("\r", "").split("\n"))]


def test_a_printed_chart_becomes_spans_that_join() -> None:
    chart, anchors = printed(lines(CHART))
    assert chart[0] == Step("disk read (real mode)", 0, 53_390_000)
    assert chart[1] == Step("uncompress lzloader.elf", 53_390_000, 6_856_230_000)
    assert chart[-1] == Step("Total time", 7_180_280_000, 7_180_610_000)
    assert all(before.end == after.start for before, after in pairwise(chart))
    assert len(chart) == 13
    assert anchors == [(1002, 7_180_610_000)], "the chart's end came before its first line"


@given(st.integers(0, len(CHART)))
def test_half_a_chart_gives_the_spans_that_it_has(size: int) -> None:
    whole, _ = printed(lines(CHART))
    chart, _ = printed(lines(CHART[:size]))
    assert chart == whole[: len(chart)]
    assert len(chart) >= CHART[:size].count("ms)\r\n")


@pytest.mark.parametrize(
    "console_text",
    [
        "Booted up in 0.00 ms\nCmdline: /hello",
        "OSv v0.57.0\nCmdline: /hello",
        "\tdisk read (real mode): 0.00ms, (+0.00ms)\n\tTotal time: 0.00ms, (+0.00ms)\n",
        "",
    ],
)
def test_kernel_without_a_clock_gives_no_zero(console_text: str) -> None:
    assert printed(lines(console_text)) == ([], [])


@given(st.lists(st.text(st.characters(exclude_characters="\n"), max_size=60)))
@example(["\tx: 999999999999.99ms, (+1.00ms)"])
@example(["\ta: 2.00ms, (+1.00ms)", "\tb: 1.00ms, (+1.00ms)"])
def test_no_console_is_an_error(console_text: list[str]) -> None:
    chart, _ = printed(lines("\n".join(console_text)))
    assert all(span.start <= span.end for span in chart)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=15))
def test_every_printed_time_is_read_to_its_last_digit(took: list[int]) -> None:
    at = list(accumulate(took))
    message = "\n".join(
        f"\te{number}: {end // 100}.{end % 100:02}ms, (+{own // 100}.{own % 100:02}ms)"
        for number, (end, own) in enumerate(zip(at, took, strict=True))
    )
    chart, _ = printed(lines(message))
    assert [span.end - span.start for span in chart] == [own * 10_000 for own in took]


def memory(events: list[Event], shift: int, place: int, noise: bytes = b"") -> bytes:
    """Physical memory with the table of a kernel that lies at ``place``, a multiple of 8."""
    words, pointers = b"", []
    for event in events:
        text = event.name.encode() + b"\0"
        pointers.append(place + len(words) + shift)
        words += text
    words += bytes(-len(words) % 8)
    pairs = [
        struct.pack("<QQ", pointer, event.ticks)
        for pointer, event in zip(pointers, events, strict=True)
    ]
    table = b"".join(pairs).ljust(256, b"\0")
    return noise.ljust(place, b"\xaa")[:place] + words + noise + bytes(-len(noise) % 8) + table


@SHIFTS
@given(
    place=st.integers(1, 4096).map(lambda number: number * 8),
    noise=st.binary(max_size=200).map(lambda some: MARK + some),
    ticks=st.lists(st.integers(0, 2**40), min_size=7, max_size=7).map(sorted),
)
def test_a_table_is_found_among_rubbish(
    tmp_path: Path, shift: int, place: int, noise: bytes, ticks: list[int]
) -> None:
    events = [Event(event.name, at) for event, at in zip(EVENTS, ticks, strict=True)]
    (tmp_path / "memory").write_bytes(memory(events, shift, place, noise))
    assert remembered(tmp_path / "memory") == events


@given(st.binary(max_size=2000), st.booleans(), st.integers(0, 2**64 - 1))
def test_no_memory_is_an_error(tmp_path: Path, raw: bytes, marked: bool, stray: int) -> None:
    planted = MARK.ljust(24, b"\0") + struct.pack("<QQ", stray, stray)
    planted += struct.pack("<QQ", 0x4000_0000, 1) * marked
    (tmp_path / "memory").write_bytes(planted + raw)
    assert spans(remembered(tmp_path / "memory"), 1e9) == []


@pytest.mark.parametrize("file", ["absent", "."])
def test_a_memory_that_is_not_there_has_no_table(tmp_path: Path, file: str) -> None:
    assert remembered(tmp_path / file) == []


@SHIFTS
def test_a_table_whose_time_runs_backwards_is_none(tmp_path: Path, shift: int) -> None:
    events = [*EVENTS[:5], Event("ROFS mounted", 3)]
    (tmp_path / "memory").write_bytes(memory(events, shift, 4096))
    assert remembered(tmp_path / "memory") == []


def test_memory_that_a_guest_never_touched_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)  # a TiB: to read it would take minutes
        stream.seek(10 << 20)
        stream.write(memory(EVENTS, 0x4000_0000, 8)[8:])
    with file.open("r+b") as stream:  # as it lies, so do its names
        stream.seek(10 << 20)
        stream.write(memory(EVENTS, 0x4000_0000 + (10 << 20) - 8, 8)[8:])
    assert remembered(file) == EVENTS


def test_a_chart_in_memory_begins_with_the_machine() -> None:
    result = spans(EVENTS, 2e9)
    assert result[0] == Step("firmware", 0, 40_150)
    assert result[1] == Step("disk read (real mode)", 40_150, 109_556)
    assert [span.name for span in result[1:]] == [event.name for event in EVENTS[1:]]
    assert all(before.end == after.start for before, after in pairwise(result))


def test_a_name_across_two_reads_is_found(tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(memory(EVENTS, 0, (4 << 20) - 8))
    assert remembered(tmp_path / "memory") == EVENTS
