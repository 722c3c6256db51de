"""The queue of asynchronous events: what it holds is bounded, and told to who is refused."""

import asyncio
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from firstlight.agile.config import Events
from firstlight.agile.function import NodeFailed
from firstlight.agile.functions import events as queues
from firstlight.agile.functions import store as stores
from firstlight.agile.functions.errors import DiskFull
from firstlight.agile.functions.events import Queue
from firstlight.agile.functions.records import Event
from firstlight.agile.functions.store import Store
from firstlight.agile.serving import Answer, Throttled

ROOM = 64 << 10


def event(identity: str, name: str = "f", size: int = 1000) -> Event:
    payload = json.dumps("x" * size).encode()
    return Event(id=identity, name=name, qualifier="", payload=payload, accepted=1e12, due=0.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "functions.db")


def test_event_queue_is_bounded_per_function(store: Store, tmp_path: Path) -> None:
    first = [event(f"f{number}") for number in range(100)]
    refused = store.accept(first, ROOM)
    kept = store.waiting()
    assert refused
    assert kept + len(refused) == 100
    assert kept * 2000 <= ROOM
    assert store.accept([event("g", "g")], ROOM) == set()
    assert store.accept([event("more")], ROOM) == {"more"}
    store.close()
    again = Store(tmp_path / "functions.db")  # it is counted when it is opened, too
    assert again.waiting() == kept + 1
    assert again.accept([event("more")], ROOM) == {"more"}
    again.done(each.id for each in first)
    assert again.accept([event("more")], ROOM) == set()
    again.close()


def test_a_change_that_fails_counts_nothing(store: Store) -> None:
    first = event("same")
    assert store.accept([first], ROOM) == set()
    for _ in range(100):
        with pytest.raises(Exception, match="UNIQUE"):
            store.accept([event("other"), first], ROOM)
    assert store.waiting() == 1
    assert store.accept([event("other")], ROOM) == set()
    store.close()


def test_a_full_disk_removes_by_its_reserve(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, reserve = tmp_path / "functions.db-wal", tmp_path / "functions.reserve"
    assert [each.stat().st_size for each in (log, reserve)] == [stores._RESERVE] * 2
    assert store.accept([event("one")], ROOM) == set()
    transaction, was_there = store._transaction, []

    @contextmanager
    def full() -> Iterator[sqlite3.Connection]:
        was_there.append(reserve.exists())
        if reserve.exists():
            raise DiskFull("no room", "free space there")
        with transaction() as base:
            yield base

    with monkeypatch.context() as on_full_disk:
        on_full_disk.setattr(store, "_transaction", full)
        store.done(["one"])
    assert was_there == [True, False]
    assert store.waiting() == 0
    assert store.accept([event("two")], ROOM) == set()
    assert reserve.stat().st_blocks * 512 >= stores._RESERVE
    store.close()


def with_queue(
    store: Store, letters: Path, config: Events,
    answer: Callable[[Event], Awaitable[Answer]], main: Callable[[Queue], Awaitable[None]],
) -> None:  # fmt: skip
    async def run() -> None:
        queue = Queue(config, store, letters, answer)
        try:
            await asyncio.wait_for(main(queue), 60)
        finally:
            await queue.close()
            store.close()

    asyncio.run(run())


async def fails(_: Event) -> Answer:
    return Answer(payload=b'"no"', error="Unhandled")


def test_a_refusal_names_the_function(store: Store, tmp_path: Path) -> None:
    async def never(_: Event) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    async def main(queue: Queue) -> None:
        calls = [queue.accept(event(str(number), size=900_000)) for number in range(8)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [outcome for outcome in outcomes if outcome is not None]
        assert 0 < len(refused) < len(outcomes)
        for error in refused:
            assert isinstance(error, Throttled)
            assert "no room for an event of f" in error.message
        assert await queue.waiting() == len(outcomes) - len(refused)

    config = Events(queue_bytes=4 << 20)
    with_queue(store, tmp_path / "dead.jsonl", config, never, main)


def test_of_dead_letters_the_oldest_go(store: Store, tmp_path: Path) -> None:
    letters = tmp_path / "dead.jsonl"

    async def main(queue: Queue) -> None:
        for number in range(16):
            await queue.accept(event(str(number), size=900_000))
            while await queue.waiting():
                await asyncio.sleep(0.01)

    with_queue(store, letters, Events(retries=0, dead_bytes=4 << 20), fails, main)
    files = [tmp_path / "dead.1.jsonl", letters]
    assert sorted(tmp_path.glob("dead*")) == sorted(path for path in files if path.exists())
    lines = [line for path in files if path.exists() for line in path.read_text().splitlines()]
    kept = [json.loads(line)["request"] for line in lines]
    assert kept == [str(number) for number in range(16)][-len(kept) :]
    assert 5 <= len(kept) < 16


def test_unwritable_dead_letter_has_bounded_retries(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "_BUSY_SECONDS", 3600.0)
    tried: list[str] = []

    async def answer(queued: Event) -> Answer:
        tried.append(queued.id)
        return await fails(queued) if queued.id == "bad" else Answer(payload=b"1")

    async def main(queue: Queue) -> None:
        await queue.accept(event("bad"))
        for number in range(20):
            await queue.accept(event(str(number)))
            while await queue.waiting() > 1:
                await asyncio.sleep(0.01)
        assert tried.count("bad") == 1

    with_queue(store, tmp_path / "none" / "dead.jsonl", Events(retries=0), answer, main)


def test_event_of_ended_node_is_retried(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not without end: an event may be what ends the node."""
    monkeypatch.setattr(queues, "_BUSY_SECONDS", 0.001)
    tried: Counter[str] = Counter()

    async def answer(queued: Event) -> Answer:
        tried[queued.id] += 1
        if queued.id == "ends it" or tried[queued.id] < 3:
            raise NodeFailed("the instance was killed by SIGKILL")
        return Answer(payload=b"1")

    async def main(queue: Queue) -> None:
        await queue.accept(event("good"))
        await queue.accept(event("ends it"))
        while await queue.waiting():
            await asyncio.sleep(0.01)

    letters = tmp_path / "dead.jsonl"
    with_queue(store, letters, Events(retries=0), answer, main)
    assert tried == {"good": 3, "ends it": 5}
    assert [json.loads(line)["request"] for line in letters.read_text().splitlines()] == ["ends it"]


def test_a_full_disk_is_logged_in_a_line(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queues, "_BUSY_SECONDS", 0.01)
    postpone, full = store.postpone, [True]

    def fails_once(identity: str, attempts: int, due: float) -> None:
        if full:
            full.pop()
            raise DiskFull("cannot write it", "free space there")
        postpone(identity, attempts, due)

    monkeypatch.setattr(store, "postpone", fails_once)

    async def answer(_: Event) -> Answer:
        return Answer(payload=b"1")

    async def main(queue: Queue) -> None:
        await queue.accept(event("one"))
        while await queue.waiting():
            await asyncio.sleep(0.01)

    with_queue(store, tmp_path / "dead.jsonl", Events(), answer, main)
    [logged] = [each for each in caplog.records if "one" in each.getMessage()]
    assert logged.getMessage() == "the event one of f: cannot write it"
    assert not logged.exc_info


def test_half_a_dead_letter_is_taken_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters, write = tmp_path / "dead.jsonl", os.write
    letters.write_text('{"request": "before"}\n')
    monkeypatch.setattr(queues, "_BUSY_SECONDS", 0.01)
    full = iter([True, True, False])

    def some(descriptor: int, text: bytes) -> int:
        short = text.startswith(b'{"time"') and next(full)
        return write(descriptor, text[:7] if short else text)

    monkeypatch.setattr(os, "write", some)

    async def main(queue: Queue) -> None:
        await queue.accept(event("a"))
        while await queue.waiting():
            await asyncio.sleep(0.01)

    with_queue(store, letters, Events(retries=0), fails, main)
    lines = [json.loads(line) for line in letters.read_text().splitlines()]
    assert [each["request"] for each in lines] == ["before", "a"]


def test_dead_letters_of_many_threads_are_all_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = tmp_path / "dead.jsonl"
    texts = [b"%d" % number * 100_000 + b"\n" for number in range(100, 120)]
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.002))  # as a slow disk does

    async def main(queue: Queue) -> None:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(queue._append, texts))

    with_queue(store, letters, Events(dead_bytes=4 << 20), fails, main)
    first, second = (path.read_bytes() for path in (tmp_path / "dead.1.jsonl", letters))
    assert len(first) == 14 * len(texts[0])
    assert sorted((first + second).splitlines(keepends=True)) == texts


def test_next_event_skips_full_functions(
    store: Store,
) -> None:
    def steps() -> int:
        """How much work of the database the search is, in its own instructions."""
        done = 0

        def one_more() -> int:
            nonlocal done
            done += 1
            return 0

        store._base.set_progress_handler(one_more, 1)
        result = store.due(1.0, 64, (["f0"], ["f"]))
        store.next_due((["f0"], ["f"]))
        store._base.set_progress_handler(None, 1)
        assert [each.name for each in result] == ["g"]
        return done

    store.accept([event("g", "g")], 1 << 30)
    store.accept([event(f"f{number}", size=1) for number in range(10)], 1 << 30)
    few = steps()
    store.accept([event(f"f{number}", size=1) for number in range(10, 2000)], 1 << 30)
    assert steps() == few
    store.close()


@pytest.mark.parametrize("step", [-86400.0, 86400.0], ids=["back", "forward"])
def test_a_clock_that_is_set_neither_delays_nor_buries(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    usual, tries, letters = time.time, list[str](), tmp_path / "dead.jsonl"
    now = queues.clock()
    early = msgspec.structs.replace(event("early"), due=now + 1e6)  # by a clock that was ahead
    store.accept([early], ROOM)

    async def answer(each: Event) -> Answer:
        tries.append(each.id)
        if tries.count(each.id) > 1:
            return Answer(payload=b"1")
        monkeypatch.setattr(time, "time", lambda: usual() + step)
        return await fails(each)

    async def main(queue: Queue) -> None:
        await queue.accept(msgspec.structs.replace(event("one"), accepted=now, due=now))
        while await queue.waiting():
            await asyncio.sleep(0.01)
        assert sorted(tries) == ["early", "early", "one", "one"]
        assert not letters.exists()

    with_queue(store, letters, Events(retries=1, retry_seconds=0.1), answer, main)
