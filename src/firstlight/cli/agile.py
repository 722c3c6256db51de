"""The verbs of the agile runtime: ``firstlight agile …``.

``instance.py`` has those for one instance, ``function.py`` those for registered functions, and
``pods.py`` those for the pods of other runtimes.
"""

import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli import programs
from firstlight.cli.output import Json, completion, examples, print_json, print_table, say, to_json
from firstlight.errors import FirstlightError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Iterable

    import msgspec

    from firstlight.agile.client import Client, Started
    from firstlight.agile.config import Config
    from firstlight.agile.function import Ended, Function

_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NUMBER, _PORT = re.compile(r"[0-9]{1,20}"), re.compile(r"[0-9]{1,5}")
NETWORKS = ("outbound", "internal", "none")
_REUSES = ("none", "network", "sandbox")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The agile runtime: start functions from prepared parts.",
)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The runtime's TOML file.")
]
Rootfs = Annotated[
    str,
    typer.Option(
        metavar="DIR|FILE", help="The root file system, read-only; or a WebAssembly module."
    ),
]
Handler = Annotated[
    str, typer.Option(metavar="MODULE:NAME", help="Call this Python function of the root.")
]
Wasm = Annotated[
    str, typer.Option(metavar="EXPORT", help="Call this export of the WebAssembly module.")
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Set an environment variable; NAME alone passes yours. Repeatable.",
    ),
]
Memory = Annotated[str, typer.Option(metavar="SIZE", help="Memory limit, such as 64M.")]
Cpus = Annotated[float, typer.Option(metavar="N", help="CPU limit.")]
Pids = Annotated[int, typer.Option(metavar="N", help="Limit on processes and threads.")]
Reach = Annotated[
    str,
    typer.Option(
        metavar="|".join(NETWORKS),
        help="What the instance can reach.",
        autocompletion=completion(lambda: NETWORKS),
    ),
]
Port = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST:INSTANCE", help="Publish a TCP port. Repeatable."),
]
Reuse = Annotated[
    str,
    typer.Option(
        metavar="|".join(_REUSES),
        help="What the function's next instance may reuse.",
        autocompletion=completion(lambda: _REUSES),
    ),
]
ShareCounters = Annotated[
    bool,
    typer.Option(
        "--share-counters",
        help="Reuse used networks; the next instance sees their packet counters.",
    ),
]
UserNamespace = Annotated[
    bool, typer.Option("--user-namespace", help="Use a user namespace per instance.")
]
NoNetlink = Annotated[
    bool,
    typer.Option(
        "--no-netlink",
        help="Refuse netlink sockets, whose memory no limit counts; programs cannot list network "
        "interfaces.",
    ),
]
QUOTE = "quote it for the shell"
Event = Annotated[str, typer.Option(metavar="JSON", help="The event for the handler, in JSON.")]


@app.command(
    epilog=examples(
        "agile up",
        "agile up --config /etc/firstlight.toml",
        "agile up --keep --replace",
        "agile up --unit",
    )
)
def up(
    *,
    config: ConfigFile = None,
    unit: Annotated[
        bool, typer.Option("--unit", help="Print a systemd unit for this command and exit.")
    ] = False,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="On SIGTERM leave the instances running; the next up takes them over."
        ),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Take over the instances of the running runtime, and end it."
        ),
    ] = False,
) -> None:
    """Run the runtime until SIGTERM or Ctrl-C. Cleans up on exit.

    With --keep, SIGTERM leaves the instances running; "agile down" and Ctrl-C end them.
    """
    if unit:
        sys.stdout.write(_unit(config))
        return
    from firstlight.agile import container_init, daemon

    container_init.leave_first()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the daemon handles it itself
    loaded = _configuration(config)
    if replace:
        daemon.leave(loaded)
    programs.add_system()
    daemon.serve(loaded, lambda: say(f"ready: {loaded.socket}"), keep)


@app.command(epilog=examples("agile down", "agile down --config /etc/firstlight.toml"))
def down(*, config: ConfigFile = None) -> None:
    """End all instances and the runtime, even of a killed one."""
    from firstlight.agile import daemon

    daemon.end(_configuration(config))


@app.command(
    epilog=examples(
        "agile start --rootfs /srv/root -- /bin/hello",
        "agile start --rootfs /srv/root --memory 64M --network none -- /bin/job",
        "agile start --rootfs /srv/root --port 8080:80 --detach --ready listening -- server",
        "agile start --rootfs /srv/root -it -- sh",
        "agile start --rootfs /srv/root --volume ./in:/in:ro --secret key=key.pem -- job",
        "agile start --rootfs /srv/root --reuse sandbox -- /bin/job",
    )
)
def start(
    command: Annotated[list[str] | None, typer.Argument(metavar="COMMAND...")] = None,
    *,
    rootfs: Rootfs,
    handler: Handler = "",
    event: Event = "null",
    wasm: Wasm = "",
    env: Env = None,
    memory: Memory = "128M",
    cpus: Cpus = 1.0,
    pids: Pids = 64,
    network: Reach = "outbound",
    port: Port = None,
    user_namespace: UserNamespace = False,
    reuse: Reuse = "network",
    share_counters: ShareCounters = False,
    no_netlink: NoNetlink = False,
    volume: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SRC:DST[:ro]", help="Mount a file or directory of the host. Repeatable."
        ),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="Provide a file's content as /run/secrets/NAME. Repeatable."
        ),
    ] = None,
    workdir: Annotated[
        str, typer.Option("--workdir", metavar="DIR", help="Its working directory.")
    ] = "/",
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Kill the instance after this time.", show_default=False
        ),
    ] = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", "-t", help="Allocate a terminal, connected to this one.")
    ] = False,
    terminals: Annotated[
        bool, typer.Option("--terminals", help="Allow it to open terminals: /dev/ptmx.")
    ] = False,
    interactive: Annotated[
        bool,
        typer.Option("--interactive", "-i", help="Connect this terminal's input."),
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the instance's id and leave it running.")
    ] = False,
    ready: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="With --detach: return when a line of output begins with TEXT."
        ),
    ] = "",
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Start an instance of a function. Exit status is the instance's own.

    With --handler or --wasm it calls the handler, as invoke does.
    """
    function = _function(
        command=tuple(command or ()), rootfs=rootfs, handler=handler, wasm=wasm, env=env,
        memory=memory, cpus=cpus, pids=pids, network=network, port=port,
        user_namespace=user_namespace, reuse=reuse, directory=workdir, lifetime=timeout,
        terminals=terminals, volumes=[_volume(word) for word in volume or ()],
        secrets=_secrets(secret or ()),
        share_counters=share_counters, netlink=not no_netlink,
    )  # fmt: skip
    if detach and (terminal or interactive):
        raise FirstlightError("a detached instance has no terminal and no input",
                              "leave --detach out, or use agile exec -it")  # fmt: skip
    if ready and not detach:
        raise FirstlightError("--ready is for --detach", "otherwise the output is on your terminal")
    parsed = _event(event)
    with connect(config) as client:
        if function.kind != "command":
            print_json(client.invoke(function, parsed))
            return
        if detach:
            started = client.start(function, (null := _null(), null, null), True, logged=True)
            if ready:
                client.wait_ready(started.id, ready, function.timeout)
            sys.stdout.write(to_json(started) if as_json else started.id + "\n")
            return
        from firstlight.cli import attach

        def begin(streams: tuple[int, int, int]) -> "Started":
            return client.start(function, streams, terminal=terminal)

        def words(ended: "Ended") -> str:
            return ended.words(function.memory, function.lifetime)

        def on_start(started: "Started") -> None:
            if as_json:
                sys.stderr.write(to_json(started))  # stdout is the instance's

        raise typer.Exit(attach.attach(client, begin, terminal, interactive, on_start, words))


@app.command(
    epilog=examples(
        "agile invoke --rootfs /srv/f --handler app:main '{\"a\": 1}'",
        "agile invoke --rootfs /srv/f.wasm --wasm add '[1, 2]'",
    )
)
def invoke(
    event: Annotated[str, typer.Argument(metavar="EVENT", help="JSON.")] = "null",
    *,
    rootfs: Rootfs,
    handler: Handler = "",
    wasm: Wasm = "",
    env: Env = None,
    memory: Memory = "128M",
    cpus: Cpus = 1.0,
    pids: Pids = 64,
    network: Reach = "outbound",
    config: ConfigFile = None,
) -> None:
    """Call a handler with an event and print the answer.

    The handler is a Python function or a WebAssembly export; event and answer are JSON.
    """
    if not handler and not wasm:
        raise FirstlightError("there is no handler to call", "give --handler or --wasm")
    function = _function(
        rootfs=rootfs, handler=handler, wasm=wasm, env=env, memory=memory, cpus=cpus, pids=pids,
        network=network,
    )  # fmt: skip
    parsed = _event(event)
    with connect(config) as client:
        print_json(client.invoke(function, parsed))


@app.command(epilog=examples("agile pools", "agile pools --json"))
def pools(*, config: ConfigFile = None, as_json: Json = False) -> None:
    """Show the pools: sizes, hits, misses, fill rates."""
    with connect(config) as client:
        counts = client.pools()
    if as_json:
        print_json(counts)
        return
    names = ("ready", "low", "high", "hits", "misses", "made", "returned", "failed")
    print_table(
        ("pool", *names, "fill/s"),
        [(pool.name, *(str(getattr(pool, name)) for name in names), f"{pool.fill_rate:.0f}")
         for pool in counts],
    )  # fmt: skip


def _unit(config: Path | None) -> str:
    from importlib.resources import files

    text = (files("firstlight") / "deploy/systemd/firstlight.service").read_text()
    words = [str(Path(sys.argv[0]).absolute()), "agile", "up", "--keep"]
    words += ["--config", str(config.absolute())] if config else []
    line = " ".join(map(_quoted, words))
    return re.sub(r"(?m)^ExecStart=.*$", lambda _: f"ExecStart={line}", text)


def _quoted(word: str) -> str:
    """A word of a systemd unit's command line. Format: systemd.service(5)."""
    if re.fullmatch(r"[\w@+=:,./-]+", word):
        return word
    for special in ("%", "$"):
        word = word.replace(special, 2 * special)
    return '"' + word.replace("\\", r"\\").replace('"', r"\"") + '"'


def _configuration(file: Path | None) -> "Config":
    from firstlight.agile.config import Config, load

    return load(file) if file else Config()


def connect(file: Path | None) -> "Client":
    """Connect to the runtime of a configuration. Raises Failed."""
    from firstlight.agile.client import Client

    return Client(_configuration(file).socket)


def _function(
    *,
    command: tuple[str, ...] = (),
    rootfs: str,
    handler: str,
    wasm: str,
    env: list[str] | None,
    memory: str,
    network: str,
    reuse: str = "network",
    port: list[str] | None = None,
    **limits: object,
) -> "Function":
    import msgspec

    from firstlight.agile import function

    if network not in NETWORKS:
        raise UnknownName("network", network, NETWORKS)
    if reuse not in _REUSES:
        raise UnknownName("reuse", reuse, _REUSES)
    ports = [(int(h), int(i)) for h, i in pairs(port, ":", "--port", "HOST:INSTANCE")]
    hosts = [host for host, _ in ports]
    for host in hosts:
        if hosts.count(host) > 1:
            raise FirstlightError(f"--port publishes the host's port {host} twice",
                                  "give it once, or another port of the host")  # fmt: skip
    fields = {
        "command": command,
        "rootfs": str(Path(rootfs).absolute()) if rootfs else "",
        "kind": "python" if handler else "wasm" if wasm else "command",
        "handler": handler or wasm,
        "env": dict(pairs(env, "=", "--env", "NAME=VALUE")),
        "memory": _bytes(memory),
        "network": network,
        "reuse": reuse,
        "ports": dict(ports),
    }
    converted = msgspec.convert(fields | limits, function.Function)
    converted.check()
    return converted


def pairs(words: list[str] | None, separator: str, option: str, form: str) -> list[tuple[str, str]]:
    """Split values at ``separator``; a variable without a value gets our own.

    Errors name ``form``.
    """
    return [
        (word, os.environ[word]) if separator == "=" and word in os.environ
        else _pair(word, separator, option, form)
        for word in words or ()
    ]  # fmt: skip


def _pair(word: str, separator: str, option: str, form: str) -> tuple[str, str]:
    left, separated, right = word.partition(separator)
    ports = separator != ":" or (_PORT.fullmatch(left) and _PORT.fullmatch(right))
    if not separated or not ports:
        raise FirstlightError(f"{option} {word!r} is malformed", f"write it as {form}")
    return left, right


def _volume(word: str) -> dict[str, object]:
    source, *rest = word.split(":")
    if not source or not rest or not rest[0] or rest[1:] not in ([], ["ro"], ["rw"]):
        raise FirstlightError(
            f"--volume {word!r} is malformed", "write it as SRC:DST or SRC:DST:ro"
        )
    return {
        "source": str(Path(source).absolute()),
        "target": rest[0],
        "read_only": rest[1:] == ["ro"],
    }


def _secrets(words: "Iterable[str]") -> dict[str, str]:
    files: dict[str, str] = {}
    for word in words:
        name, file = _pair(word, "=", "--secret", "NAME=FILE")
        if name in files:
            raise FirstlightError(f"--secret gives {name} twice", "give each a name of its own")
        files[name] = str(Path(file).absolute())
    return files


def _bytes(size: str, option: str = "--memory") -> int:
    number, unit = (size[:-1], size[-1].upper()) if size[-1:].isalpha() else (size, "")
    if not _NUMBER.fullmatch(number) or unit not in _BYTES:
        raise FirstlightError(f"{option} {size!r} is not a size",
                              "bytes, or with K, M, G or T, such as 64M or 1G")  # fmt: skip
    return int(number) * _BYTES[unit]


def _event(text: str) -> "msgspec.Raw":
    import msgspec

    from firstlight.agile import protocol

    raw = os.fsencode(text)
    protocol.check_json(raw, QUOTE)
    return msgspec.Raw(raw)


def _null() -> int:
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
