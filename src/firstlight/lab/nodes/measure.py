"""Measures a plan on the nodes of a cluster, into one run."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from firstlight.host.ownership import scratch
from firstlight.lab import runner
from firstlight.lab.nodes.jobs import Interrupted, Nodes
from firstlight.lab.nodes.merge import merge
from firstlight.lab.nodes.order import Order
from firstlight.store import check_empty


@dataclass(frozen=True)
class Where:
    """Nodes of a cluster, by a label ``selector`` or ``jobs.ALL``.

    An empty ``kubeconfig`` or ``context`` is the usual one; an empty ``image`` is ``jobs.IMAGE``.
    """

    selector: str
    kubeconfig: str = ""
    context: str = ""
    image: str = ""
    in_turn: bool = False


def measure(plan: runner.Plan, out: Path, where: Where, say: Callable[[str], None]) -> None:
    """Measure on each node, and write a run with the node as its first axis to ``out``.

    Raises FirstlightError. On KeyboardInterrupt the Jobs are removed, the run has what was
    measured, and the exception is raised again.
    """
    check_empty(out)
    name = f"{datetime.now(UTC):%Y%m%dt%H%M%S}-{secrets.token_hex(3)}"
    cases = list(plan.experiment.cases(plan.options))
    plain = runner.header(plan, name, cases, {})
    order = Order(
        plan.experiment.name, plan.options, plan.repetitions, plan.seed, plan.traced, plan.cold,
        plan.deadline, plan.budget,
    )  # fmt: skip
    nodes = Nodes(where.kubeconfig, where.context, where.image, name)
    chosen = nodes.chosen(where.selector)
    with scratch() as directory:
        try:
            outcomes = nodes.measure(chosen, order, directory, say, in_turn=where.in_turn)
        except Interrupted as interrupt:
            if any(isinstance(each, Path) for each in interrupt.outcomes.values()):
                merge(interrupt.outcomes, plain, [case.point for case in cases], out)
            raise
        merge(outcomes, plain, [case.point for case in cases], out)
