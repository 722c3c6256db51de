"""What the verbs share: figures to stdout, messages to stderr, examples and completion."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.errors import FirstlightError

if TYPE_CHECKING:
    from rich.console import Console

RUNS = Path("runs")
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def examples(*lines: str) -> str:
    """The examples at the end of a verb's help."""
    return "\b\nExamples:\n" + "\n".join(f"  firstlight {line}" for line in lines)


def completion(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """A shell completion from a list of names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def to_json(value: object) -> str:
    """A record, or a list of records, as indented JSON that ends with a newline."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value)).decode() + "\n"


def print_json(value: object) -> None:
    """Write JSON to stdout."""
    sys.stdout.write(to_json(value))


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write aligned columns to stdout. Importing rich would double the time of ``agile ps``."""
    lines = [names, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def say(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(text + "\n")


def stdout() -> "Console":
    """The console for figures."""
    from rich.console import Console

    return Console(highlight=False)


def stderr() -> "Console":
    """The console for messages and progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """Blame ``option`` when a file cannot be written. Raises FirstlightError."""
    try:
        yield
    except OSError as error:
        raise FirstlightError(
            f"cannot write {error.filename or path}: {error.strerror}",
            f"give {option} another path",
        ) from error
