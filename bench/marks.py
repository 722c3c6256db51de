"""A line of the output of ``make bench``, and deadlines for what measures one."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from msgspec import Struct

ROW_SECONDS = 300.0
"""What takes longer is a failure, so that the rows after it are measured."""


class Mark(Struct, frozen=True):
    """A measured value and its mark, both with units, and whether the mark is met."""

    name: str
    measured: str
    mark: str
    met: bool


def failed(name: str, error: BaseException) -> Mark:
    """The mark of what could not be measured."""
    return Mark(f"{name} can be measured", f"{type(error).__name__}: {error}", "", False)


@contextmanager
def deadline(seconds: float = ROW_SECONDS) -> Iterator[None]:
    """Raise TimeoutError in the main thread when the time is over."""

    def end(*_: object) -> None:
        raise TimeoutError(f"not ready in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def rows(made: Iterable[tuple[str, Callable[[], Iterable[Mark]]]]) -> Iterator[Mark]:
    """The marks of several measurements that need not one another, each within its deadline."""
    for name, measure in made:
        try:
            with deadline():
                marks = list(measure())
        except Exception as error:
            marks = [failed(name, error)]
        yield from marks
