"""``firstlight agile plan``: sizes pods' prepared networks for a node and a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli import memory
from firstlight.cli.output import Json, examples, finite, print_json, print_table
from firstlight.errors import FirstlightError

if TYPE_CHECKING:
    from firstlight.analysis.provision import Costs, Demand, Needs

_STATUS_SECONDS = 300.0  # nodeStatusReportFrequency of the kubelet
_NODE_BYTES = 8192  # of a Node with a few images, as the API server sends it


def plan(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run of cni-burst --cni firstlight.")
    ],
    *,
    pods: Annotated[int, typer.Option(min=1, metavar="N", help="Pods per node.")] = 500,
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Nodes of the cluster.")] = 1000,
    rate: Annotated[
        float,
        typer.Option(
            min=0, metavar="N", callback=finite, help="Pods replaced per second, on each node."
        ),
    ] = 2.0,
    burst: Annotated[
        int, typer.Option(min=0, metavar="N", help="Pods replaced at once, on each node.")
    ] = 30,
    every: Annotated[
        float,
        typer.Option(min=1, metavar="SECONDS", callback=finite, help="Time between such bursts."),
    ] = 60.0,
    leaving: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            callback=finite,
            help="Time until an ended pod's address is free.",
        ),
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """Show the pool and the address range that pods need.

    Simulates half an hour of a node with the costs that the run measured, and shows the smallest
    pool that is empty for at most 1 % of the pods.
    """
    memory.fit()
    from firstlight.analysis import provision
    from firstlight.store import read

    costs = provision.costs(read(run))
    demand = provision.Demand(pods, rate, min(burst, pods), every, leaving)
    needs = provision.needs(demand, costs.make)
    cluster = provision.cluster(
        nodes, needs.prefix, node_bytes=_NODE_BYTES, status_seconds=_STATUS_SECONDS
    )
    if cluster.prefix < 0:
        raise FirstlightError(f"IPv4 has no room for {nodes} nodes with a /{needs.prefix} each",
                              "plan fewer nodes, or fewer pods")  # fmt: skip
    if as_json:
        print_json({"costs": costs, "demand": demand, "node": needs, "cluster": cluster})
    else:
        _show(costs, demand, needs)
        print_table(
            ("the cluster", ""),
            [
                ("nodes", str(nodes)),
                ("range of all pods", f"/{cluster.prefix}"),
                ("routes of each node", str(cluster.routes)),
                ("sent to the agents by the API", f"{cluster.watched / 1e6:.1f} MB/s"),
            ],
        )
        typer.echo(_assumptions(demand))
    raise typer.Exit(needs.pool is None)


def _show(costs: "Costs", demand: "Demand", needs: "Needs") -> None:
    from firstlight.units import duration, percent

    outcome = needs.outcome
    adds = ", ".join(f"{duration(ns * 1e9)} with {count}" for count, ns in costs.add.items())
    print_table(
        ("measured", ""),
        [("making a network ahead", duration(costs.make * 1e9)), ("ADD from the pool", adds)],
    )
    pool = needs.pool
    marks = f"low {pool.low}, high {pool.high}" if pool else "no size up to 512 suffices"
    print_table(
        ("a node", ""),
        [
            ("pods", str(demand.pods)),
            ("pods.pool", marks),
            ("its rate", f"{pool.rate:.0f} a second" if pool else "–"),
            ("pods that find it empty", percent(outcome.misses)),
            ("longest wait for it", duration(outcome.wait(1.0) * 1e9)),
            ("its helper is busy", percent(outcome.busy)),
            ("addresses in use at most", str(outcome.addresses)),
            ("range of the node's pods", f"/{needs.prefix}"),
        ],
    )


def _assumptions(demand: "Demand") -> str:
    return (
        f"Assumed: {demand.rate:g} pods a second are replaced at random times, and {demand.burst} "
        f"at once every {demand.burst_every:g} s; an address is free {demand.leaving:g} s after "
        "its pod's end; a network takes as long to make beside pods that start as it took in the "
        "run; nothing else of a pod's start holds it back, which makes bursts sharper than they "
        f"are. The kubelet updates its Node every {_STATUS_SECONDS:.0f} s, and each agent is sent "
        f"all Nodes' updates, {_NODE_BYTES // 1024} KiB each."
    )


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        epilog=examples("agile plan RUN", "agile plan RUN --pods 110 --nodes 50 --burst 100")
    )(plan)
