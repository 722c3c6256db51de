"""How the verbs speak: figures to stdout, talk to stderr, examples at the end of ``--help``."""

import sys
from collections.abc import Callable, Iterable
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def examples(*lines: str) -> str:
    """The end of a verb's help."""
    return "\b\nExamples:\n" + "\n".join(f"  firstlight {line}" for line in lines)


def completion(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What a shell completes a word to."""

    def complete(begun: str) -> list[str]:
        return [name for name in names() if name.startswith(begun)]

    return complete


def to_json(value: object) -> str:
    """A record, or records, as indented JSON with a newline."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value)).decode() + "\n"


def print_json(value: object) -> None:
    """Write JSON to stdout."""
    sys.stdout.write(to_json(value))


def say(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(text + "\n")
