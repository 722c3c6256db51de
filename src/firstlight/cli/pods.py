"""The verbs for pods of other runtimes: ``firstlight agile agent``, ``plugin``, ``shim``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli import programs
from firstlight.cli.agile import ConfigFile
from firstlight.cli.output import examples, say

if TYPE_CHECKING:
    from firstlight.agile.config import Config

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog=examples("agile agent --config /etc/firstlight/pods.toml", "agile agent --remove")
)
def agent(
    *,
    config: ConfigFile = None,
    remove: Annotated[
        bool,
        typer.Option("--remove", help="Remove what the agent leaves on the host, and exit."),
    ] = False,
) -> None:
    """Serve prepared networks to the CNI plugin.

    Runs until SIGTERM or Ctrl-C; pods keep their networks.
    """
    import asyncio

    from firstlight.agile.pods import daemon

    loaded = _configuration(config)
    if remove:
        daemon.remove(loaded)
        return
    programs.add_system()
    asyncio.run(daemon.serve(loaded, lambda: say(f"ready: {loaded.socket}")))


@app.command(
    epilog=examples(
        "agile shim --install /usr/local/bin",
        "agile shim --runtime crun",
    )
)
def shim(
    *,
    directory: Annotated[
        Path,
        typer.Option(
            "--directory", metavar="DIR", help="Directory of its socket and its pods' state."
        ),
    ] = Path("/run/firstlight-shim"),
    events: Annotated[
        str, typer.Option("--events", metavar="SOCKET", help="containerd's ttrpc socket.")
    ] = "/run/containerd/containerd.sock.ttrpc",
    runtime: Annotated[
        str, typer.Option("--runtime", metavar="PROGRAM", help="The OCI runtime for containers.")
    ] = "runc",
    prepared: Annotated[
        int, typer.Option("--prepared", min=0, help="Sandboxes kept ready for pods.")
    ] = 8,
    install: Annotated[
        Path | None,
        typer.Option(
            "--install",
            metavar="DIR",
            help="Install the program that containerd executes, and exit.",
        ),
    ] = None,
) -> None:
    """Serve containerd's pods of the RuntimeClass firstlight.

    SIGHUP restarts it with its pods running; SIGTERM ends them.
    """
    from firstlight.agile.shim import command

    if install:
        say(f"installed: {command.install(install)}")
    else:
        programs.add_system()
        command.serve(directory, events, runtime, prepared)


@app.command(
    epilog=examples(
        "agile plugin --bin /opt/cni/bin --lists /etc/cni/net.d",
        "agile plugin --bin /opt/cni/bin --lists /etc/cni/net.d --remove",
    )
)
def plugin(
    *,
    binaries: Annotated[
        Path, typer.Option("--bin", metavar="DIR", help="The runtime's directory of plugins.")
    ],
    lists: Annotated[
        Path,
        typer.Option(
            "--lists", metavar="DIR", help="The runtime's directory of CNI configurations."
        ),
    ],
    conflist: Annotated[
        Path | None,
        typer.Option("--conflist", metavar="FILE", help="The network's configuration list."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove both.")] = False,
) -> None:
    """Install the CNI plugin and its list for a container runtime."""
    from firstlight.agile.pods import install

    if remove:
        install.uninstall(binaries, lists)
    else:
        install.install(conflist or install.CONFLIST, binaries, lists)


def _configuration(file: Path | None) -> "Config":
    from firstlight.agile.config import Config, load

    return load(file) if file else Config(name="pods")
