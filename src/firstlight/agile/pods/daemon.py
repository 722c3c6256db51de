"""Runs the agent with signals, metrics and the cluster: ``firstlight agile agent``.

python -m firstlight.agile.pods.daemon CONFIGURATION
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from firstlight.agile.config import Config, load
from firstlight.agile.pods import leases, networks
from firstlight.agile.pods.agent import Agent
from firstlight.agile.pods.cluster import RANGES, Cluster, set_routes
from firstlight.errors import Failed

_NICE = -10
_RULES_SECONDS = 60.0


async def serve(config: Config, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM. Pods keep their networks. Raises FirstlightError."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    def stop(error: Failed | None = None) -> None:
        if stopped.done():
            return
        if error:
            stopped.set_exception(error)
        else:
            stopped.set_result(None)

    with suppress(PermissionError):  # pods must not wait for other processes' work, or for a refill
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    cluster = Cluster(config.pods.kubeconfig) if config.pods.kubeconfig else None
    if cluster:
        config = await asyncio.to_thread(cluster.complete, config)
    async with Agent(config) as agent:
        agent.on_loss = stop
        if cluster:
            agent.on_refusal = cluster.refused

            def show_to(others: Iterable[str]) -> None:
                shown = agent.networks.show_to(others)
                asyncio.run_coroutine_threadsafe(shown, loop).result(_RULES_SECONDS)

            cluster.start(agent.pool.counts, agent.trouble, show_to)
        if config.pods.metrics:
            from firstlight.agile.pods import metrics  # its dependencies are optional

            metrics.serve(agent, config.pods.metrics)
        ready()
        await stopped


def remove(config: Config) -> None:
    """Remove what an agent leaves on the host, with the links of remaining pods. Raises Failed."""
    networks.remove(config)
    set_routes({})
    config.socket.unlink(missing_ok=True)
    (config.directory / RANGES).unlink(missing_ok=True)
    leases.remove(config.directory)


if __name__ == "__main__":
    asyncio.run(serve(load(Path(sys.argv[1]))))
