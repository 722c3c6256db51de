"""The verbs for instances: ``firstlight agile ps``, ``stop``, ``exec``, ``logs``, ``events``."""

import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli import attach
from firstlight.cli.agile import ConfigFile, Env, connect, pairs
from firstlight.cli.output import Json, completion, examples, print_json, print_table, to_line
from firstlight.errors import FirstlightError, printable

if TYPE_CHECKING:
    from firstlight.agile.client import Started
    from firstlight.agile.function import Ended, Happened
    from firstlight.agile.logs import Line

_AGE = ((86400, "d"), (3600, "h"), (60, "m"))

app = typer.Typer(rich_markup_mode=None)


def _signals() -> list[str]:
    return [number.name for number in signal.Signals]


Id = Annotated[str, typer.Argument(metavar="ID", help="The instance, as agile ps shows it.")]
Terminal = Annotated[
    bool, typer.Option("--terminal", "-t", help="Allocate a terminal, connected to this one.")
]
Interactive = Annotated[
    bool, typer.Option("--interactive", "-i", help="Connect this terminal's input.")
]
Workdir = Annotated[str, typer.Option("--workdir", metavar="DIR", help="Its working directory.")]


@app.command(epilog=examples("agile ps", "agile ps --all", "agile ps --json"))
def ps(
    *,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Include instances that ended recently.")
    ] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """List instances. Their environment is never shown."""
    with connect(config) as client:
        instances = [*(client.running(ended=True) if every else ()), *client.running()]
    if as_json:
        print_json(instances)
        return
    print_table(
        ("id", "state", "started", "pid", "address", "function", "command"),
        [(each.id, each.state, f"{_age(each.age)} ago", "–" if each.ended else str(each.pid),
          each.address or "–", printable(each.function.name) or "–",
          printable(" ".join(each.function.command) or each.function.handler))
         for each in instances],
    )  # fmt: skip


@app.command(
    epilog=examples("agile stop 17", "agile stop 17 18", "agile stop 17 --signal INT --grace 30")
)
def stop(
    identities: Annotated[list[str], typer.Argument(metavar="ID...")],
    *,
    by: Annotated[
        str,
        typer.Option("--signal", metavar="NAME", help="The signal to send first.",
                     autocompletion=completion(_signals)),
    ] = "TERM",
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", help="Kill after this time; 0 kills at once.")
    ] = 5.0,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Stop instances by a signal, then by SIGKILL.

    An instance whose first process does not handle the signal is killed at once.
    """
    number = _number(by)
    ended: dict[str, Ended] = {}
    with connect(config) as client:
        for identity in dict.fromkeys(identities):
            ended[identity] = client.stop(identity, grace, number)
    if as_json:
        print_json(ended)


@app.command(
    name="exec",
    epilog=examples("agile exec 17 -- ls -l /tmp", "agile exec -it 17 -- sh"),
)
def execute(
    identity: Id,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...")],
    *,
    terminal: Terminal = False,
    interactive: Interactive = False,
    env: Env = None,
    workdir: Workdir = "/",
    config: ConfigFile = None,
) -> None:
    """Run a program in a running instance. Exit status is the program's.

    It has the instance's namespaces, user, filters, limits and environment.
    """
    variables = dict(pairs(env, "=", "--env", "NAME=VALUE"))
    with connect(config) as client:

        def begin(streams: tuple[int, int, int]) -> "Started":
            return client.execute(identity, tuple(command), variables, workdir, streams, terminal)

        raise typer.Exit(attach.attach(client, begin, terminal, interactive))


@app.command(
    epilog=examples("agile logs 17", "agile logs -f 17", "agile logs hello --tail 10 --json")
)
def logs(
    identity: Annotated[
        str,
        typer.Argument(
            metavar="ID|NAME", help="The instance's id, or the name of a registered function."
        ),
    ],
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow until the instance ends.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Begin with the last N lines.")
    ] = None,
    timestamps: Annotated[bool, typer.Option(help="Begin each line with its time.")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Show the output of a detached instance or a function."""
    with connect(config) as client:
        left_out = 0 if tail is None else max(0, sum(1 for _ in client.logs(identity)) - tail)
        for number, line in enumerate(client.logs(identity, follow)):
            if number >= left_out:
                _show(line, timestamps, as_json)


def _show(line: "Line", timestamps: bool, as_json: bool) -> None:
    stream = sys.stderr if line.stream == "stderr" else sys.stdout
    if as_json:
        sys.stdout.write(to_line(line))
        sys.stdout.flush()
        return
    head = f"{line.time} " if timestamps else ""
    text = (head + line.text).encode(errors="surrogateescape") + (b"\n" if line.whole else b"")
    stream.buffer.write(text)
    stream.buffer.flush()


@app.command(epilog=examples("agile events", "agile events --json", "agile events --no-follow"))
def events(
    *,
    follow: Annotated[bool, typer.Option(help="Keep printing new events.")] = True,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Show starts and ends of instances, and why they ended."""
    with connect(config) as client:
        for event in client.events(0, follow):
            sys.stdout.write(to_line(event) if as_json else _line(event))
            sys.stdout.flush()


def _line(event: "Happened") -> str:
    when = datetime.fromtimestamp(event.time / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    command = printable(" ".join(event.command) or event.handler)
    words = f" ({event.words})" if event.words else ""
    name = f" of {printable(event.name)}" if event.name else ""
    return f"{when} {event.kind} {event.id}{name}{words}: {command}\n"


def _number(name: str) -> int:
    if name.isdecimal() and 0 < int(name) < signal.NSIG:
        return int(name)
    try:
        return signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"].value
    except KeyError:
        raise FirstlightError(f"{name!r} is not a signal", "such as TERM, INT, HUP or 9") from None


def _age(seconds: float) -> str:
    for unit, name in _AGE:
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{seconds:.0f} s"
