"""What functions wrote lately: whole lines, bounded, and followed."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from firstlight.agile import logs
from firstlight.agile.serving.recent_output import RecentOutput


async def texts(written: RecentOutput, name: str, at: logs.Position = (0, 0)) -> list[str]:
    text, _ = await written.following(name, at, 0)
    return [line.text for line in logs.lines(text)]


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=20))
def test_lines_are_whole_whatever_the_parts_are(parts: list[bytes]) -> None:
    async def main() -> None:
        written = RecentOutput()
        take = written.sink("f")
        for part in (*parts, b""):
            take(part)
        whole = b"".join(parts)
        expected = whole.removesuffix(b"\n").split(b"\n") if whole else []
        text, _ = await written.following("f", (0, 0), 0)
        result = [line.split(b" ", 3)[3] for line in text.split(b"\n")[:-1]]
        assert result == expected

    asyncio.run(main())


def test_instances_are_not_mixed_and_the_oldest_lines_go() -> None:
    async def main() -> None:
        written = RecentOutput()
        first, other = written.sink("f"), written.sink("f")
        first(b"a")
        other(b"b\n")
        first(b"c\n")
        assert await texts(written, "f") == ["b", "ac"]
        for number in range(5000):
            first(f"line {number}\n".encode())
        kept = await texts(written, "f")
        assert kept[-1] == "line 4999"
        assert 500 < len(kept) < 2000
        assert await texts(written, "g") == []
        written.forget("f")
        written.sink("f")(b"of another function\n")
        first(b"late\n")
        assert await texts(written, "f") == ["of another function"]

    asyncio.run(main())


def test_a_long_line_leaves_what_fits() -> None:
    async def main() -> None:
        written = RecentOutput()
        take = written.sink("f")
        take(b"x" * (15 << 10))
        take(b"y" * (64 << 10) + b"\n")
        assert await texts(written, "f")

    asyncio.run(main())


def test_who_follows_gets_each_line_once() -> None:
    async def main() -> None:
        written = RecentOutput()
        take = written.sink("f")
        take(b"first\n")
        text, at = await written.following("f", (0, 0), 0)
        assert len(logs.lines(text)) == 1
        waits = asyncio.create_task(written.following("f", at, 60))
        await asyncio.sleep(0)
        take(b"second\n")
        text, at = await waits
        assert [line.text for line in logs.lines(text)] == ["second"]
        assert await texts(written, "f", at) == []
        another = RecentOutput()  # of the next manager
        another.sink("f")(b"third\nfourth\n")
        assert await texts(another, "f", at) == ["third", "fourth"]

    asyncio.run(asyncio.wait_for(main(), 60))
