"""Runs an instance or a program on this process's streams, for ``start`` and ``exec``."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from firstlight.cli.output import say

if TYPE_CHECKING:
    from firstlight.agile.client import Client, Started
    from firstlight.agile.function import Ended


def attach(
    client: "Client", begin: "Callable[[tuple[int, int, int]], Started]", terminal: bool,
    interactive: bool, on_start: "Callable[[Started], None]" = lambda _: None,
    words: "Callable[[Ended], str]" = str,
) -> int:  # fmt: skip
    """Start something with our streams, or a terminal, and wait for its end; returns its exit
    status.
    """
    from firstlight.agile import attached

    if terminal:
        with attached.Terminal(interactive) as screen, _ending(client):
            started = begin(screen.streams)
            on_start(started)
            screen.begin()
            ended = client.wait(started.id)
    else:
        with (
            attached.copied(interactive) as (streams, release),
            _ending(client),
            _forwarded(client) as begun,
        ):
            started = begin(streams)
            release()
            on_start(started)
            begun(started)
            ended = client.wait(started.id)
    if ended.signal:
        say(f"firstlight: {started.id}: {words(ended)}")
    return status(ended)


@contextmanager
def _ending(client: "Client") -> Iterator[None]:
    """End what was started if we have to leave early, after its output is written."""
    try:
        yield
    except BaseException:
        client.close()
        raise


@contextmanager
def _forwarded(client: "Client") -> "Iterator[Callable[[Started], None]]":
    """Pass on signals that would end us, if the instance handles them; a second one ends us.

    Signals that arrive before the start are sent after it.
    """
    from firstlight.agile.verify import handles

    known: list[Started] = []
    early: list[int] = []

    def forward(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        if not known:
            early.append(number)
        elif handles(known[0].pid, number):
            client.signal(known[0].id, number)
        else:
            raise SystemExit(128 + number)

    def begun(started: "Started") -> None:
        known.append(started)
        for number in early:
            forward(number, None)

    ours = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in ours}
    try:
        yield begun
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status(ended: "Ended") -> int:
    """The exit status as a shell has it."""
    return 128 + ended.signal if ended.signal else ended.status or 0
