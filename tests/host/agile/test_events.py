"""Asynchronous events: answered at least once, tried again, kept when they cannot be answered."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.support.agile_host import on_host
from tests.support.lambda_host import (
    GUARD_SECONDS,
    PORT,
    boto,
    run,
    with_functions,
    zipped,
)

from firstlight.agile.functions import events
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.errors import DiskFull
from firstlight.agile.functions.records import Event, Registration, Settings, ZipSource
from firstlight.agile.functions.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SERVE = f"""
import sys
from firstlight.agile import Config, daemon
from firstlight.agile.config import Events, Http
config = Config(name="t5", store=sys.argv[1], http=Http(listen="127.0.0.1:{PORT}"),
                events=Events(retry_seconds=0.05))
daemon.serve(config, lambda: print("ready", flush=True))
"""
FAILS = """
def main(event):
    print("tried")
    raise ValueError(f"no {event}")
"""
QUICK = Settings(handler="app:main", network="none", timeout=60.0)


def letters(functions: Functions) -> list[dict[str, Any]]:
    path = functions.directory / "dead-letters.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def until_empty(functions: Functions) -> None:
    while await functions.waiting():
        await asyncio.sleep(0.02)


def test_failing_event_is_retried_then_dead_lettered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_BUSY_SECONDS", 60.0)

    async def main(functions: Functions) -> None:
        await functions.add("fails", ZipSource(data=zipped(app=FAILS)), QUICK)
        await functions.add("none", ZipSource(data=zipped(app="main = print\n")), QUICK)
        await functions.accept("fails", b'"cow"', request_id="a", trace="t")
        await functions.accept("none", b"1", request_id="b")
        await until_empty(functions)
        [letter] = letters(functions)
        assert (letter["function"], letter["request"], letter["payload"]) == ("fails", "a", '"cow"')
        assert letter["attempts"] == 3
        assert "no cow" in letter["reason"]
        await functions.reserve("none", 0)  # it is not tried while nothing may run
        await functions.accept("none", b"2", request_id="c")
        await asyncio.sleep(0.2)
        assert await functions.waiting() == 1
        await functions.remove("none")  # another's of that name does not get it
        await functions.add("none", ZipSource(data=zipped(app=FAILS)), QUICK)
        functions._store.hasten(events.clock(), events.clock())
        functions._queue._news.set()
        await until_empty(functions)
        assert [each["request"] for each in letters(functions)] == ["a", "c"]
        assert "none that accepted it was removed" in letters(functions)[1]["reason"]

    with_functions(tmp_path, main)


@asynccontextmanager
async def served(store: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A resident runtime; ended in order unless it has been killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, store, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def dead(store: Path, wanted: set[str]) -> None:
    """Wait until each of these events is a dead letter."""
    while True:
        result = {
            json.loads(line)["request"]
            for path in store.glob("*/dead-letters.jsonl")
            for line in path.read_text().splitlines()
            if line.endswith("}")
        }
        if result >= wanted:
            assert result == wanted
            return
        await asyncio.sleep(0.1)


def test_no_accepted_event_is_lost_when_the_daemon_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        accepted: set[str] = set()
        async with boto() as call:
            for round_ in range(3):
                async with served(tmp_path) as process:
                    if not round_:
                        made = await call(
                            "create_function", FunctionName="f", Runtime="python3.11", Timeout=60,
                            Handler="app:main", Role="arn:aws:iam::000000000000:role/none",
                            Code={"ZipFile": zipped(app=FAILS)},
                        )  # fmt: skip
                        assert made["State"] == "Active"
                    for number in range(12):
                        answer = await call(
                            "invoke", FunctionName="f", InvocationType="Event",
                            Payload=json.dumps([round_, number]).encode(),
                        )  # fmt: skip
                        assert answer["StatusCode"] == 202, answer
                        accepted.add(answer["ResponseMetadata"]["RequestId"])
                    process.kill()
                    await process.wait()
                gone = await call("invoke", FunctionName="f", InvocationType="Event")
                assert gone["$error"] == "connection"
        assert len(accepted) == 36
        async with served(tmp_path):
            await dead(tmp_path, accepted)

    on_host(main, GUARD_SECONDS)


@pytest.mark.parametrize("size", [200, 400_000])
@pytest.mark.parametrize("again", [False, True], ids=["at once", "after a restart"])
def test_full_disk_still_completes_accepted_events(tmp_path: Path, size: int, again: bool) -> None:
    def fill() -> None:
        with suppress(OSError), (tmp_path / "disk/others").open("ab", 0) as others:
            while others.write(bytes(4096)):
                pass

    def accept(store: Store, accepted: list[str]) -> None:
        while len(accepted) < 100_000:
            events = [
                Event(id=f"{len(accepted)}-{number}", name="f", qualifier="", payload=bytes(size),
                      accepted=1e12, due=0.0)
                for number in range(max(1, 20_000 // size))
            ]  # fmt: skip
            store.accept(events, 1 << 30)
            accepted += [event.id for event in events]

    async def main(_: Functions) -> None:
        run("mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", tmp_path / "disk")
        store, accepted = Store(tmp_path / "disk/functions.db"), list[str]()
        store.save(Registration(name="f", revisions={}))
        with pytest.raises(DiskFull, match="no room for events"):
            accept(store, accepted)
        assert len(accepted) > 5
        fill()
        if again:
            store.close()
            store = Store(tmp_path / "disk/functions.db")
            fill()
        for identity in accepted:
            store.postpone(identity, 1, 5.0)
            store.done([identity])
        store.delete("f")
        assert (store.waiting(), store.functions()) == (0, [])
        store.close()

    (tmp_path / "disk").mkdir()
    with_functions(tmp_path / "store", main)
