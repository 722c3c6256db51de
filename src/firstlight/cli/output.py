"""Output of all verbs: figures to stdout, messages to stderr, examples, completion."""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.errors import FirstlightError

if TYPE_CHECKING:
    from rich.console import Console

RUNS = Path("runs")
YEAR = 365 * 24 * 3600
"""The longest time in seconds that an option takes."""
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if code != ord("\n")
}
_ASCII = dict(
    zip("\xa0–×÷·→←█▌✓✗µ“”", " -x/.><#|+xu''", strict=True),
    **{"\u2212": "-", "±": "+-", "≤": "<=", "≥": ">=", "…": "..."},
)
"""What stands for our own signs where the locale has none; in a string of JSON, too."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def finite(number: float | None) -> float | None:
    """Refuse NaN and the infinite, which ranges let pass: the callback of an option."""
    if number is not None and not isfinite(number):
        raise typer.BadParameter(f"{number} is not a finite number")
    return number


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

    from firstlight.model import to_json as encode

    return msgspec.json.format(encode(value)).decode() + "\n"


def to_line(value: object) -> str:
    """A record as JSON on one line."""
    from firstlight.model import to_json as encode

    return encode(value).decode() + "\n"


def print_json(value: object) -> None:
    """Write JSON to stdout."""
    sys.stdout.write(to_json(value))


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write aligned columns to stdout. Importing rich would double the time of ``agile ps``."""
    lines = [names, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip().translate(_CONTROLS) + "\n")


def say(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(text.translate(_CONTROLS) + "\n")


def in_any_locale(error: UnicodeError) -> tuple[str | bytes, int]:
    """How a codec writes what the locale lacks: our signs in ASCII, others as JSON does."""
    import json

    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(sign) or json.dumps(sign)[1:-1] for sign in text), error.end


def stdout() -> "Console":
    """The console for figures."""
    return _console()


def stderr() -> "Console":
    """The console for messages and progress."""
    return _console(stderr=True)


def _console(*, stderr: bool = False) -> "Console":
    """A console that shows control characters, such as in file names, instead of executing them."""
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
    from rich.segment import Segment

    class Shown:
        def __init__(self, inner: ConsoleRenderable) -> None:
            self._inner = inner

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for segment in console.render(self._inner, options):
                text, style, control = segment
                yield segment if control else Segment(text.translate(_CONTROLS), style)

    class Hook(RenderHook):
        def process_renderables(
            self, renderables: list[ConsoleRenderable]
        ) -> list[ConsoleRenderable]:
            return [Shown(each) for each in renderables]

    # A terminal of unknown size has no columns; rich would print nothing.
    width = shutil.get_terminal_size().columns if os.environ.get("COLUMNS") == "0" else None
    console = Console(stderr=stderr, highlight=False, width=width)
    console.push_render_hook(Hook())
    return console


@contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """Turn a failed write into an error that names ``option``. Raises FirstlightError."""
    try:
        yield
    except OSError as error:
        raise FirstlightError(
            f"cannot write {error.filename or path}: {error.strerror}",
            f"give {option} another path",
        ) from error
