"""The verbs of a Kubernetes cluster on this machine: ``firstlight cluster …``."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli.output import Json, examples, print_json, say

if TYPE_CHECKING:
    from firstlight.lab.cluster.standing import Status

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Run a Kubernetes control plane and its nodes on this machine.",
)
_NETWORKS = "bridge,ptp"
_MOST = 64  # ranges of the cluster's pods


@app.command(
    epilog=examples(
        "cluster up",
        "cluster up --runtime runc,/opt/crun --cni bridge",
        "cluster up --nodes 3 --cni firstlight",
    )
)
def up(
    *,
    runtime: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="OCI runtimes, by name or path.")
    ] = "runc",
    cni: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE,…",
            help="CNI networks: built-in names or files; none, to install one in the cluster.",
        ),
    ] = _NETWORKS,
    nodes: Annotated[int, typer.Option(min=1, max=_MOST, help="Number of nodes.")] = 1,
    as_json: Json = False,
) -> None:
    """Start a cluster, and print the path of its kubeconfig.

    Each combination of runtime and network is a RuntimeClass, RUNTIME-NETWORK. Nodes after the
    first have their own namespaces; only the networks firstlight and none connect their pods. Stop
    the cluster with cluster down.
    """
    from firstlight.lab.cluster import standing

    begun = time.monotonic()
    record = standing.up(
        tuple(runtime.split(",")),
        tuple(cni.split(",")),
        lambda name: say(f"{time.monotonic() - begun:5.1f} s  {name} is up"),
        nodes,
    )
    ready = "the cluster waits for its network" if cni == "none" else "the cluster is Ready"
    say(f"{time.monotonic() - begun:5.1f} s  {ready}")
    if as_json:
        print_json(standing.status())
    else:
        typer.echo(record.kubeconfig)


@app.command(epilog=examples("cluster down"))
def down() -> None:
    """Stop the cluster, and remove everything that it made."""
    from firstlight.lab.cluster import standing

    say("the cluster is stopped" if standing.down() else "no cluster is running")


@app.command(epilog=examples("cluster load build/agent.tar"))
def load(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="An OCI or docker archive.")],
) -> None:
    """Import the images of an archive on every node."""
    from firstlight.lab.cluster import standing

    standing.load(archive)


@app.command(epilog=examples("cluster status", "cluster status --json"))
def status(*, as_json: Json = False) -> None:
    """Show the components. Exit status 1 if one is unhealthy or no cluster is running."""
    from firstlight.lab.cluster import standing

    seen = standing.status()
    if as_json:
        print_json(seen)
    elif not seen.up:
        say("no cluster is running; start one: firstlight cluster up")
    else:
        _show(seen)
    raise typer.Exit(
        not (
            seen.up
            and seen.nodes
            and all(seen.nodes.values())
            and all(part.healthy for part in seen.components)
        )
    )


def _show(seen: "Status") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("component", "pid", "state"):
        table.add_column(column)
    for part in seen.components:
        state = "healthy" if part.healthy else "no answer" if part.pid else "exited"
        table.add_row(part.name, str(part.pid or ""), state)
    console = Console(highlight=False)
    console.print(table)
    nodes = ", ".join(
        f"{name} {'Ready' if ready else 'not Ready'}" for name, ready in (seen.nodes or {}).items()
    )
    console.print(
        f"nodes: {nodes or 'unknown'}; {seen.pods if seen.pods is not None else '?'} pods; "
        f"{seen.memory / 1e6:.0f} MB; ready after {seen.took:.1f} s"
    )
    console.print(f"runtime classes: {', '.join(seen.runtime_classes)}")
    console.print(f"kubeconfig: {seen.kubeconfig}")
