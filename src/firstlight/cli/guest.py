"""The verbs of the guest catalogue: ``firstlight guest …``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from firstlight.cli.output import Json, completion, examples, print_json, say

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Manage guests of your own that VMs boot: OSv, Linux, any other.",
)


def _kinds() -> Sequence[str]:
    from firstlight.lab.guests.catalogue import KINDS

    return KINDS


def _names() -> list[str]:
    from firstlight.lab.guests import catalogue

    return [entry.name for entry in catalogue.entries()]


@app.command(
    epilog=examples(
        "guest add osv --kernel loader-stripped.elf --image usr.img",
        "guest add osv --image usr.img --name mine --program '/java.so -jar /app.jar'",
        "guest add linux --kernel vmlinux --name mainline",
        "guest add generic --kernel unikernel.elf --ready 'listening on'",
        "guest add generic --kernel bzImage --initrd initrd.img --ready 'login:'",
    )
)  # fmt: skip
def add(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="osv, linux or generic.",
            autocompletion=completion(_kinds),
        ),
    ],
    *,
    kernel: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The kernel: ELF or bzImage, may be gzipped."),
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The initramfs of a generic kernel.")
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR", help="A disk image (raw or qcow2), or OSv's root as a directory."
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="The guest's name.  [default: its kind]")
    ] = "",
    filesystem: Annotated[
        str,
        typer.Option(metavar="NAME", help="File system of the root.  [default: that of the image]"),
    ] = "",
    program: Annotated[
        str,
        typer.Option(
            metavar="COMMAND", help="The program that OSv runs.  [default: the image's own]"
        ),
    ] = "",
    arguments: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Command line of a generic kernel; {ip} and {gateway} are replaced.",
        ),
    ] = "",
    ready: Annotated[
        str,
        typer.Option(
            metavar="REGEX", help="The console line that ends a start of a generic guest."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Check a guest's files and copy them to the catalogue."""
    from firstlight.lab.guests import catalogue

    entry = catalogue.Entry(
        name=name or kind, kind=kind, filesystem=filesystem, program=program,
        arguments=arguments, ready=ready,
    )  # fmt: skip
    shared = image is not None and image.is_dir()
    given = {"kernel": kernel, "initrd": initrd, "root" if shared else "disk.img": image}
    added = catalogue.add(entry, {part: file for part, file in given.items() if file})
    if as_json:
        print_json(added)
    else:
        say(f"added guest {added.name} to {catalogue.directory()}")


@app.command("list", epilog=examples("guest list", "guest list --json"))
def list_guests(*, as_json: Json = False) -> None:
    """List the guests in the catalogue."""
    from rich.console import Console
    from rich.table import Table

    from firstlight.lab.guests import catalogue

    entries = catalogue.entries()
    if as_json:
        print_json(entries)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("guest", "kind", "file system", "from"):
        table.add_column(column)
    for entry in entries:
        table.add_row(entry.name, entry.kind, entry.filesystem, ", ".join(entry.sources.values()))
    Console(highlight=False).print(table)


@app.command(epilog=examples("guest remove osv"))
def remove(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="The guest's name.", autocompletion=completion(_names)),
    ],
) -> None:
    """Remove a guest and its files from the catalogue."""
    from firstlight.lab.guests import catalogue

    catalogue.remove(name)
