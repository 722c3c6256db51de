"""The verbs of the agile runtime, beside those of the lab in ``cli``."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from firstlight.cli.output import Json, completion, examples, print_json, say, to_json
from firstlight.errors import FirstlightError, UnknownName

if TYPE_CHECKING:
    from firstlight.agile.client import Client
    from firstlight.agile.config import Config
    from firstlight.agile.function import Ended, Function

_UNIT = """\
[Unit]
Description=firstlight, the agile runtime
After=network.target

[Service]
Type=notify
ExecStart={program} up{options}
KillMode=mixed
Restart=on-failure
Delegate=yes
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

Configuration = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The runtime's TOML file.")
]


def up(
    *,
    config: Configuration = None,
    unit: Annotated[
        bool, typer.Option("--unit", help="Print a systemd unit that does so, and end.")
    ] = False,
) -> None:
    """Run the resident runtime until SIGTERM or Ctrl-C.

    Then nothing of it is left.
    """
    if unit:
        options = f" --config {config.absolute()}" if config else ""
        sys.stdout.write(_UNIT.format(program=Path(sys.argv[0]).absolute(), options=options))
        return
    from firstlight.agile import daemon

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the daemon handles it itself
    loaded = _configuration(config)
    daemon.serve(loaded, lambda: say(f"ready: {loaded.socket}"))


def start(
    command: Annotated[list[str] | None, typer.Argument(metavar="COMMAND")] = None,
    *,
    rootfs: Annotated[
        str,
        typer.Option(metavar="DIR|FILE", help="What is shown read-only, or a WebAssembly module."),
    ],
    handler: Annotated[
        str, typer.Option(metavar="MODULE:NAME", help="A Python handler, by a warm interpreter.")
    ] = "",
    event: Annotated[str, typer.Option(metavar="JSON", help="What the handler is given.")] = "null",
    wasm: Annotated[
        str, typer.Option(metavar="EXPORT", help="Call an export of a WebAssembly module.")
    ] = "",
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="In its environment.")
    ] = None,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="At most, such as 64M.")] = "128M",
    cpus: Annotated[float, typer.Option(metavar="N", help="At most.")] = 1.0,
    pids: Annotated[int, typer.Option(metavar="N", help="Processes and threads at most.")] = 64,
    network: Annotated[
        str,
        typer.Option(
            metavar="outbound|internal|none",
            help="What it reaches.",
            autocompletion=completion(lambda: ("outbound", "internal", "none")),
        ),
    ] = "outbound",
    port: Annotated[
        list[str] | None, typer.Option(metavar="HOST:INSTANCE", help="Publish a TCP port.")
    ] = None,
    user_namespace: Annotated[
        bool, typer.Option("--user-namespace", help="Give it a user namespace of its own.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Print its id and leave it.")] = False,
    config: Configuration = None,
    as_json: Json = False,
) -> None:
    """Start an instance of a function. Exit status is the instance's own."""
    from firstlight.agile.function import Reach

    if network not in get_args(Reach):
        raise UnknownName("network", network, get_args(Reach))
    function = _function(
        command=tuple(command or ()),
        rootfs=str(Path(rootfs).absolute()),
        kind="python" if handler else "wasm" if wasm else "command",
        handler=handler or wasm,
        env=dict(_pair(word, "=", "--env", "NAME=VALUE") for word in env or ()),
        memory=_bytes(memory),
        cpus=cpus,
        pids=pids,
        network=network,
        ports={
            int(a): int(b)
            for a, b in (_pair(w, ":", "--port", "HOST:INSTANCE") for w in port or ())
        },
        user_namespace=user_namespace,
    )
    with _client(config) as client:
        if function.kind != "command":
            print_json(client.invoke(function, _event(event)))
            return
        streams = (_null(), _null(), _null()) if detach else (0, 1, 2)
        started = client.start(function, streams, detached=detach)
        if as_json:
            sys.stderr.write(to_json(started))
        elif detach:
            sys.stdout.write(started.id + "\n")
        if not detach:
            raise typer.Exit(_status(client.wait(started.id)))


def ps(*, config: Configuration = None, as_json: Json = False) -> None:
    """List the running instances."""
    with _client(config) as client:
        running = client.running()
    if as_json:
        print_json(running)
        return
    _table(
        ("id", "pid", "address", "command"),
        [(one.id, str(one.pid), one.address or "–",
          " ".join(one.function.command) or one.function.handler) for one in running],
    )  # fmt: skip


def stop(
    identities: Annotated[list[str], typer.Argument(metavar="ID")],
    *,
    config: Configuration = None,
) -> None:
    """End instances, by their ids."""
    with _client(config) as client:
        for identity in identities:
            client.stop(identity)


def pool(*, config: Configuration = None, as_json: Json = False) -> None:
    """Show the pools: sizes, hits, misses, and how fast they fill."""
    with _client(config) as client:
        pools = client.pools()
    if as_json:
        print_json(pools)
        return
    _table(
        ("pool", "ready", "low", "high", "hits", "misses", "made", "returned", "failed", "fill/s"),
        [(one.name, *(str(getattr(one, name)) for name in
          ("ready", "low", "high", "hits", "misses", "made", "returned", "failed")),
          f"{one.fill_rate:.0f}") for one in pools],
    )  # fmt: skip


def add(app: typer.Typer) -> None:
    """Add the verbs to those of the lab."""
    app.command(epilog=examples("up", "up --config /etc/firstlight.toml", "up --unit"))(up)
    app.command(
        epilog=examples(
            "start --rootfs /srv/root -- /bin/hello", "start --rootfs /srv/f --handler app:main",
            "start --rootfs /srv/f.wasm --wasm add --event '[1, 2]'",
            "start --rootfs /srv/root --port 8080:80 --detach -- /bin/server",
        )
    )(start)  # fmt: skip
    app.command(epilog=examples("ps", "ps --json"))(ps)
    app.command(epilog=examples("stop 17"))(stop)
    app.command(epilog=examples("pool"))(pool)


def _configuration(file: Path | None) -> "Config":
    from firstlight.agile.config import Config, load

    return load(file) if file else Config()


def _client(file: Path | None) -> "Client":
    from firstlight.agile.client import Client

    return Client(_configuration(file).socket)


def _function(**fields: object) -> "Function":
    import msgspec

    from firstlight.agile.function import Function

    function = msgspec.convert(fields, Function)
    function.check()
    return function


def _pair(word: str, separator: str, option: str, form: str) -> tuple[str, str]:
    left, found, right = word.partition(separator)
    if not found or (separator == ":" and not (left.isdigit() and right.isdigit())):
        raise FirstlightError(f"{option} {word!r} is not understood", f"write it {form}")
    return left, right


def _bytes(words: str) -> int:
    number, unit = (words[:-1], words[-1].upper()) if words[-1:].isalpha() else (words, "")
    if not number.isdigit() or unit not in _UNITS:
        raise FirstlightError(f"--memory {words!r} is not understood", "such as 64M or 1G")
    return int(number) * _UNITS[unit]


def _event(words: str) -> object:
    try:
        return json.loads(words)
    except ValueError as error:
        raise FirstlightError(f"--event is not JSON: {error}", "quote it for the shell") from error


def _null() -> int:
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _status(ended: "Ended") -> int:
    return 128 + ended.signal if ended.signal else ended.status or 0


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
