"""The verbs of the registry of functions: ``firstlight agile function …``.

Over 500 lines: a third of it declares the options that ``add`` and ``update`` share.
"""

import os
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli.agile import (
    NETWORKS,
    QUOTE,
    ConfigFile,
    Env,
    _bytes,
    _pair,
    _secrets,
    _volume,
    connect,
)
from firstlight.cli.output import Json, completion, examples, print_json, print_table, say, stderr
from firstlight.errors import Failed, FirstlightError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firstlight.agile import protocol
    from firstlight.agile.functions.records import Registration, Settings, Source
    from firstlight.agile.functions.version import FunctionVersion

_KINDS = ("command", "bootstrap", "python", "image", "http", "wasm")
_SIZES = {"memory": "--memory", "scratch": "--tmp-size"}

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Manage the node's functions: code, versions, aliases.",
)


def _name(given: str) -> str:
    if not given:
        raise Failed("a function's name is empty", "firstlight agile function list shows all")
    return given


Name = Annotated[str, typer.Argument(metavar="NAME", callback=_name, help="The function's name.")]
SourceName = Annotated[
    str,
    typer.Argument(
        metavar="[SOURCE]",
        help="docker://…, oci:DIR[:TAG], docker-archive:FILE; a directory, a .zip or .wasm file.",
    ),
]
Command = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- COMMAND]", help="Command to run instead of the image's own."),
]
Handler = Annotated[
    str,
    typer.Option(
        metavar="WORD",
        help="FILE.py:NAME or MODULE:NAME, called with an event; MODULE.NAME, called as Lambda "
        "does; an export of a WebAssembly module.",
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        metavar="|".join(_KINDS),
        help="How it handles an event.  [default: by its source]",
        autocompletion=completion(lambda: _KINDS),
    ),
]
HttpPort = Annotated[
    int | None,
    typer.Option("--http", metavar="PORT", help="The function serves HTTP on this port."),
]
Directory = Annotated[str | None, typer.Option(metavar="DIR", help="Working directory.")]
Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="Memory limit, such as 64M.")]
TmpSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Size of /tmp, part of --memory.  [default: 64M]")
]
CpuLimit = Annotated[float | None, typer.Option(metavar="N", help="CPU limit.")]
Pids = Annotated[
    int | None,
    typer.Option(metavar="N", help="Limit on processes and threads.  [default: 1024]"),
]
Timeout = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Deadline per event.  [default: 3]")
]
KeepWarm = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Keep an idle instance for this time, if events share one.  [default: 300]",
    ),
]
Warm = Annotated[
    int | None,
    typer.Option(metavar="N", help="Always keep this many instances.  [default: 0]"),
]
PerInstance = Annotated[
    int | None,
    typer.Option(metavar="N", help="With --http: requests per instance at once.  [default: 100]"),
]
Network = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(NETWORKS),
        help="What instances can reach.",
        autocompletion=completion(lambda: NETWORKS),
    ),
]
Netlink = Annotated[
    bool | None,
    typer.Option(
        "--netlink/--no-netlink",
        help="Allow netlink sockets, whose memory no limit counts; programs need them to list "
        "network interfaces.  [default: netlink]",
    ),
]
Volumes = Annotated[
    list[str] | None,
    typer.Option(
        "--volume",
        metavar="SRC:DST[:ro]",
        help="Mount this file or directory of the node. Repeatable.",
    ),
]
Secrets = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        metavar="NAME=FILE",
        help="Provide a file's content as /run/secrets/NAME. Repeatable.",
    ),
]
Description = Annotated[str | None, typer.Option(metavar="TEXT", help="A short description.")]
AliasOption = Annotated[
    str, typer.Option("--alias", metavar="ALIAS", help="Point this alias at the new version.")
]
Qualifier = Annotated[
    str,
    typer.Option(
        metavar="VERSION|ALIAS", help="The version or alias to call.  [default: the newest code]"
    ),
]


@app.command(
    epilog=examples(
        "agile function add hello --handler hello.py:main",
        "agile function add resize ./resize.zip --handler app.handler --memory 256M",
        "agile function add shop docker://registry.example/shop:7 --http 8080 --alias live",
        "agile function add sum sum.wasm --handler sum",
    )
)
def add(
    name: Name,
    source: SourceName = "",
    command: Command = None,
    *,
    handler: Handler = "",
    kind: Kind = "",
    http: HttpPort = None,
    env: Env = None,
    directory: Directory = None,
    memory: Memory = None,
    tmp_size: TmpSize = None,
    cpus: CpuLimit = None,
    pids: Pids = None,
    timeout: Timeout = None,
    keep_warm: KeepWarm = None,
    warm: Warm = None,
    per_instance: PerInstance = None,
    network: Network = None,
    netlink: Netlink = None,
    volume: Volumes = None,
    secret: Secrets = None,
    description: Description = None,
    alias: AliasOption = "",
    owner: Annotated[
        str, typer.Option(metavar="NAME", help="The owner; owners share the node fairly.")
    ] = "",
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Add a function, as its version 1. Its code is copied."""
    from firstlight.agile import protocol

    code, settings = _given(
        source, command, handler, kind, http, env, directory=directory, memory=memory,
        scratch=tmp_size, cpus=cpus, pids=pids, timeout=timeout, keep_warm=keep_warm, warm=warm,
        per_instance=per_instance, network=network, netlink=netlink, description=description,
        volumes=volume, secrets=secret,
    )  # fmt: skip
    if code is None:
        raise FirstlightError(f"{name} has no code", "give a source, or --handler FILE.py:NAME")
    _change(protocol.AddFunction(name, code, settings, alias, owner), config, as_json)


@app.command(
    epilog=examples(
        "agile function update hello --handler hello.py:main",
        "agile function update resize --memory 512M --timeout 10",
    )
)
def update(
    name: Name,
    source: SourceName = "",
    command: Command = None,
    *,
    handler: Handler = "",
    kind: Kind = "",
    http: HttpPort = None,
    env: Env = None,
    directory: Directory = None,
    memory: Memory = None,
    tmp_size: TmpSize = None,
    cpus: CpuLimit = None,
    pids: Pids = None,
    timeout: Timeout = None,
    keep_warm: KeepWarm = None,
    warm: Warm = None,
    per_instance: PerInstance = None,
    network: Network = None,
    netlink: Netlink = None,
    volume: Volumes = None,
    secret: Secrets = None,
    description: Description = None,
    alias: AliasOption = "",
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Make a new version of a function. Options that are left out keep their values.

    An empty --env, --volume, --secret or --directory ("") removes what was given before.
    The previous version answers its pending requests. A failed update changes nothing. If code and
    settings are the same, there is no new version.
    """
    from firstlight.agile import protocol

    code, settings = _given(
        source, command, handler, kind, http, env, directory=directory, memory=memory,
        scratch=tmp_size, cpus=cpus, pids=pids, timeout=timeout, keep_warm=keep_warm, warm=warm,
        per_instance=per_instance, network=network, netlink=netlink, description=description,
        volumes=volume, secrets=secret,
    )  # fmt: skip
    _change(protocol.UpdateFunction(name, code, settings, alias), config, as_json)


@app.command("list", epilog=examples("agile function list", "agile function list --json"))
def list_(*, config: ConfigFile = None, as_json: Json = False) -> None:
    """List the functions.

    Each has its newest version, or $LATEST if it has none.
    """
    from firstlight.agile import protocol

    with connect(config) as client:
        functions = client.functions(protocol.ListFunctions())
    if as_json:
        print_json(functions)
        return
    rows = []
    for function in functions:
        code, version = function.latest.code, function.latest.version
        aliases = ", ".join(f"{each.name}→{each.version}" for each in function.aliases.values())
        rows.append(
            (function.name, version.kind, _newest(function), aliases or "–",
             _size(code.size), code.digest.partition(":")[2][:12], _age(function.latest.modified))
        )  # fmt: skip
    print_table(("name", "kind", "version", "aliases", "size", "digest", "age"), rows)


@app.command(epilog=examples("agile function show hello", "agile function show hello --json"))
def show(name: Name, *, config: ConfigFile = None, as_json: Json = False) -> None:
    """Show a function's versions and aliases."""
    from firstlight.agile import protocol

    with connect(config) as client:
        [function] = client.functions(protocol.ListFunctions(name))
    if as_json:
        print_json(function)
        return
    _print(function)


@app.command(
    epilog=examples("agile function remove hello", "agile function remove hello --version 3")
)
def remove(
    name: Name,
    *,
    version: Annotated[
        str, typer.Option(metavar="N", help="Only this version; no alias may point to it.")
    ] = "",
    config: ConfigFile = None,
) -> None:
    """Remove a function with all versions, or one version. Pending requests are answered."""
    from firstlight.agile import protocol

    with connect(config) as client:
        client.functions(protocol.RemoveFunction(name, version))


@app.command(
    epilog=examples("agile function alias hello live 3", "agile function alias hello live --remove")
)
def alias(
    name: Name,
    alias_name: Annotated[str, typer.Argument(metavar="ALIAS")],
    version: Annotated[str, typer.Argument(metavar="[VERSION]")] = "",
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    config: ConfigFile = None,
) -> None:
    """Point an alias at a version.

    Calls by the alias use that version from then on.
    """
    from firstlight.agile import protocol

    if bool(version) == remove:
        raise FirstlightError(
            "give a version, or --remove", f"firstlight agile function show {name}"
        )
    with connect(config) as client:
        client.functions(protocol.SetAlias(name, alias_name, version))


@app.command(
    epilog=examples(
        "agile function concurrency hello 4 --queue 100",
        "agile function concurrency hello --unlimited",
    )
)
def concurrency(
    name: Name,
    most: Annotated[int | None, typer.Argument(metavar="[N]", min=0)] = None,
    *,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="Remove the limit.")] = False,
    queue: Annotated[
        int, typer.Option(metavar="N", min=0, help="Requests that can wait beyond the limit.")
    ] = 0,
    config: ConfigFile = None,
) -> None:
    """Limit how many requests are answered at once; 0 refuses all."""
    from firstlight.agile import protocol

    if (most is None) != unlimited:
        raise FirstlightError("give a number, or --unlimited", "0 refuses all events")
    with connect(config) as client:
        client.functions(protocol.Reserve(name, most, queue))


@app.command(
    epilog=examples(
        "agile function follow --kubeconfig in-cluster --namespace functions",
        "agile function follow --kubeconfig FILE --namespace functions --metrics 127.0.0.1:9714",
    )
)
def follow(
    *,
    kubeconfig: Annotated[
        str, typer.Option(metavar="FILE", help="The cluster's kubeconfig, or in-cluster.")
    ],
    namespace: Annotated[str, typer.Option(metavar="NAME", help="Namespace of the Functions.")],
    metrics: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS:PORT", help="Serve /metrics here, once all functions have been tried."
        ),
    ] = "",
    config: ConfigFile = None,
) -> None:
    """Serve what a cluster's Function objects declare.

    The host is one of the cluster's Nodes, by the name in NODE_NAME or its own.
    """
    import logging
    import signal
    import threading

    from firstlight.agile.apiserver import Server
    from firstlight.agile.functions.follow import Follower
    from firstlight.agile.log_lines import log_lines
    from firstlight.cli.agile import _configuration

    log_lines("%(levelname)s %(name)s: %(message)s", logging.INFO)
    # The runtime completes a request after its client has left. The kernel ignores signals to a
    # container's first process that have no handler.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    follower = Follower(Server(kubeconfig), namespace, _configuration(config).socket)

    def run() -> None:
        try:
            follower.run()
        except Exception:  # other threads would wait for this one for ever
            logging.exception("cannot follow the functions any more")
            os._exit(1)

    follows = threading.Thread(target=run, daemon=True)
    follows.start()
    follower.settled.wait()
    if metrics:
        from firstlight.agile.functions.metrics import serve

        serve(follower, metrics)
    say("ready: all functions were tried")
    follows.join()


@app.command(
    epilog=examples(
        "agile function call hello '{\"a\": 1}'",
        "agile function call hello @event.json --qualifier live --log",
        "agile function call hello '{}' --later",
    )
)
def call(
    name: Name,
    event: Annotated[
        str, typer.Argument(metavar="[EVENT]", help="JSON; or @FILE, @- for standard input.")
    ] = "{}",
    *,
    qualifier: Qualifier = "",
    later: Annotated[
        bool, typer.Option("--later", help="Queue the event; it survives a restart.")
    ] = False,
    log: Annotated[bool, typer.Option("--log", help="Print its output to stderr.")] = False,
    config: ConfigFile = None,
) -> None:
    """Call a function with an event and print its answer. Exit status 1 if the function failed."""
    from firstlight.agile import protocol

    raw = _content(event[1:]) if event.startswith("@") else os.fsencode(event)
    protocol.check_json(raw, "" if event.startswith("@") else QUOTE)
    with connect(config) as client:
        called = client.call(protocol.CallFunction(name, raw, qualifier, later))
    if called is None:
        return
    if log:
        text = called.log.decode(errors="replace")
        sys.stderr.write(text if not text or text.endswith("\n") else text + "\n")
    sys.stdout.write(called.payload.decode(errors="replace").rstrip("\n") + "\n")
    if called.error:
        say(f"firstlight: {name} failed")
        raise typer.Exit(1)


def _change(
    request: "protocol.AddFunction | protocol.UpdateFunction", config: Path | None, as_json: bool
) -> None:
    from firstlight.agile import protocol

    with connect(config) as client, _waiting(f"preparing {request.name}"):
        before = None
        if isinstance(request, protocol.UpdateFunction):
            [before] = client.functions(protocol.ListFunctions(request.name))
        [function] = client.functions(request)
    if before and before.revisions == function.revisions:
        say(f"{function.name} has this code and these settings already: no new version")
    for line in _without_effect(request.settings, function.latest.version):
        say(line)
    if as_json:
        print_json(function)
    else:
        sys.stdout.write(f"{function.name} version {function.published}\n")


def _without_effect(given: "Settings", version: "FunctionVersion") -> "Iterator[str]":
    """What was given and has no effect on functions of this kind."""
    import msgspec

    forks = version.kind == "python" and ":" in version.handler
    if given.keep_warm is not msgspec.UNSET and (forks or version.kind in ("command", "wasm")):
        remedy = "; --warm N keeps forks waiting" if forks else ""
        yield f"--keep-warm has no effect: each event has an instance of its own{remedy}"
    if given.pids is not msgspec.UNSET and version.kind == "wasm":
        yield "--pids has no effect: a WebAssembly module starts no processes"
    if given.per_instance is not msgspec.UNSET and version.kind != "http":
        yield "--per-instance has no effect: it is for functions with --http"


@contextmanager
def _waiting(what: str) -> "Iterator[None]":
    """Show progress on a terminal, because an image can take a while."""
    if not sys.stderr.isatty():
        yield
        return
    with stderr().status(what):
        yield


def _given(
    source: str, command: list[str] | None, handler: str, kind: str, http: int | None,
    env: list[str] | None, volumes: list[str] | None, secrets: list[str] | None, **limits: object,
) -> "tuple[Source | None, Settings]":  # fmt: skip
    """A function's code and settings, from the options."""
    import msgspec

    from firstlight.agile.functions.records import Settings

    if source and [source, *(command or [])] == _after_dashes(sys.argv):
        source, command = "", [source, *(command or [])]
    code, handler = _source(source, handler)
    network = str(limits["network"] or "none")
    for what, word, valid in (("kind", kind, ("", *_KINDS)), ("network", network, NETWORKS)):
        if word not in valid:
            raise UnknownName(what, word, valid)
    fields = {key: value for key, value in limits.items() if value is not None}
    fields |= {
        name: _bytes(str(fields[name]), _SIZES[name]) for name in fields.keys() & _SIZES.keys()
    }
    if volumes is not None:
        fields["volumes"] = [_volume(word) for word in volumes if word]
    if secrets is not None:
        fields["secrets"] = _secrets(word for word in secrets if word)
    if env is not None:
        fields["environment"] = dict(
            _pair(word, "=", "--env", "NAME=VALUE") for word in env if word
        )
    if http is not None:
        fields |= {"kind": "http", "port": http}
    fields |= {key: value for key, value in (("handler", handler), ("kind", kind)) if value}
    if command:
        fields["command"] = tuple(command)
    return code, msgspec.convert(fields, Settings)


def _after_dashes(words: list[str]) -> list[str]:
    """What follows ``--``, which is a command even where no source comes before."""
    return words[words.index("--") + 1 :] if "--" in words else []


def _source(source: str, handler: str) -> "tuple[Source | None, str]":
    """The source of the code, and the handler's name for the runtime."""
    from firstlight.agile.functions.records import (
        TRANSPORTS,
        DirectorySource,
        ImageSource,
        ModuleSource,
        ZipSource,
    )

    file, colon, attribute = handler.partition(":")
    if colon and file.endswith(".py"):
        path = Path(file)
        handler = f"{'.'.join(path.with_suffix('').parts)}:{attribute}"
        if not source:
            path = path.absolute()
            if not path.is_file():
                raise FirstlightError(f"the handler's file {path} does not exist", "FILE.py:NAME")
            file_alone = DirectorySource(str(path.parent), (path.name,), root=False)
            return file_alone, f"{path.stem}:{attribute}"
    if not source:
        return None, handler
    if source.startswith(TRANSPORTS):
        return ImageSource(_absolute(source)), handler
    path = Path(source).absolute()
    if path.suffix == ".zip":
        return ZipSource(str(path)), handler
    if path.suffix == ".wasm":
        return ModuleSource(str(path)), handler
    if path.suffix == ".py" and path.is_file():
        name = handler.rpartition(":")[2].rpartition(".")[2] or "NAME"
        raise FirstlightError(
            f"{source} is a file, and --handler names the file of a handler",
            f"leave it out, and give --handler {source}:{name}",
        )
    if not path.is_dir():
        raise FirstlightError(
            f"{source} is not a function's source",
            f"give a directory, a .zip or .wasm file, or one of {', '.join(TRANSPORTS)}",
        )
    return DirectorySource(str(path)), handler


def _absolute(image: str) -> str:
    transport, _, rest = image.partition(":")
    if transport == "docker" or rest.startswith("/"):
        return image
    return f"{transport}:{Path.cwd()}{os.sep}{rest}"


def _print(function: "Registration") -> None:
    names: dict[str, list[str]] = {}
    for alias in function.aliases.values():
        names.setdefault(alias.version, []).append(alias.name)
    rows = []
    for version, revision in function.revisions.items():
        settings = revision.version
        rows.append(
            (version, ", ".join(names.get(version, ())) or "–", settings.kind,
             settings.handler or " ".join(settings.command), f"{settings.memory >> 20} MiB",
             f"{settings.timeout:g} s", revision.code.digest.partition(":")[2][:12],
             revision.code.source, _age(revision.modified))
        )  # fmt: skip
    print_table(
        ("version", "aliases", "kind", "runs", "memory", "timeout", "digest", "source", "age"), rows
    )
    if function.concurrency is not None:
        also = f"; {function.queue} more wait" if function.queue else ""
        say(f"at most {function.concurrency} requests at once{also}")


def _newest(function: "Registration") -> str:
    """The newest version; those made by the Lambda API may have none."""
    from firstlight.agile.functions.records import LATEST

    version = str(function.published)
    return version if version in function.revisions else LATEST


def _size(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size / 1024:.1f} KiB"


def _age(since: float) -> str:
    seconds = max(time.time() - since, 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _content(path: str) -> bytes:
    from firstlight.agile.protocol import LARGE_MAX

    try:
        with nullcontext(sys.stdin.buffer) if path == "-" else Path(path).open("rb") as file:
            content = file.read(LARGE_MAX + 1)
    except OSError as error:
        raise FirstlightError(
            f"cannot read the event's file {path}: {error.strerror}",
            "@FILE reads the event from a file, @- from standard input",
        ) from error
    if len(content) > LARGE_MAX:
        raise FirstlightError(f"the event of {path} is longer than {LARGE_MAX} bytes",
                              "pass a large one by a volume, or by the network")  # fmt: skip
    return content
