"""Write a man page for each verb, from its help.

python mk/man.py DIRECTORY
"""

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap
from typing import cast

import typer
from typer.core import TyperCommand, TyperGroup

import firstlight
from firstlight.cli.main import app


def main(directory: Path) -> None:
    """Write the pages as DIRECTORY/firstlight*.1."""
    directory.mkdir(parents=True, exist_ok=True)
    for path, context in _commands(
        ["firstlight"], cast(TyperGroup, typer.main.get_command(app)), None
    ):
        (directory / f"{'-'.join(path)}.1").write_text("\n".join(_page(path, context)) + "\n")


def _commands(
    path: list[str], command: TyperCommand | TyperGroup, parent: typer.Context | None
) -> Iterator[tuple[list[str], typer.Context]]:
    """The contexts of a command and of all below it."""
    context = typer.Context(command, info_name=path[-1], parent=parent)
    yield path, context
    for name, below in _below(command):
        yield from _commands([*path, name], below, context)


def _below(command: TyperCommand | TyperGroup) -> list[tuple[str, TyperCommand]]:
    commands = getattr(command, "commands", {})
    return [(name, below) for name, below in commands.items() if not below.hidden]


def _page(path: list[str], context: typer.Context) -> Iterator[str]:
    """The lines of a page (man(7))."""
    command = context.command
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    name, date = "-".join(path), f"{datetime.now(UTC):%Y-%m-%d}"
    yield f'.TH {name.upper()} 1 "{date}" "firstlight {firstlight.__version__}"'
    yield from (".SH NAME", *_plain(f"{name} - {paragraphs[0].rstrip('.')}"))
    yield from (".SH SYNOPSIS", f".B {_escaped(' '.join(path))}")
    yield from _plain(" ".join(command.collect_usage_pieces(context)))
    yield ".SH DESCRIPTION"
    for place, paragraph in enumerate(paragraphs):
        yield from ([".PP"] if place else []) + _plain(paragraph)
    yield from _parameters(context, "ARGUMENTS", "argument")
    yield from _parameters(context, "OPTIONS", "option")
    commands = _below(cast(TyperCommand, command))
    if commands:
        yield ".SH COMMANDS"
    for name, below in commands:
        page = f".BR {_escaped('-'.join([*path, name]))} (1)"
        yield from (".TP", page, *_plain(below.get_short_help_str(200)))
    if command.epilog:
        yield from (".SH EXAMPLES", ".nf")
        yield from map(_escaped, re.findall(r"^  (.*)$", command.epilog, re.MULTILINE))
        yield ".fi"
    if len(path) > 1:
        yield from (".SH SEE ALSO", f".BR {_escaped('-'.join(path[:-1]))} (1)")


def _parameters(context: typer.Context, title: str, kind: str) -> Iterator[str]:
    parameters = context.command.get_params(context)
    chosen = (each for each in parameters if each.param_type_name == kind)
    rows = [record for each in chosen if (record := each.get_help_record(context))]
    if rows:
        yield f".SH {title}"
    for name, words in rows:
        yield from (".TP", f".B {_escaped(name)}", *_plain(words))


def _plain(text: str) -> list[str]:
    """Text as lines of at most 72 characters, as mandoc's lint asks for."""
    words = _escaped(text)
    return [re.sub(r"^([.'])", r"\&\1", line) for line in wrap(
        words, 72, break_long_words=False, break_on_hyphens=False
    )]  # fmt: skip


def _escaped(text: str) -> str:
    r"""Text whose hyphens, backslashes and leading dots are themselves (groff_char(7))."""
    escaped = " ".join(text.split()).replace("\\", r"\e").replace("-", r"\-")
    return re.sub(r"^([.'])", r"\&\1", escaped)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
