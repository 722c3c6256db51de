"""The agent's metrics, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from firstlight.agile.pods.agent import Agent
from firstlight.errors import Failed


class _Collector(Collector):
    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        agent, pool = self._agent, self._agent.pool.counts()
        gauges: dict[str, tuple[str, float]] = {
            "pool_ready": ("Networks that are prepared.", pool.ready),
            "pool_high": ("Networks that the pool is filled to.", pool.high),
            "leases": ("Addresses that pods have.", len(agent.leases)),
            "addresses_used": ("Addresses in use, prepared or leaving.",
                               agent.networks.addresses.used),
            "addresses": ("Addresses of the node's range.",
                          agent.networks.range.num_addresses - 3),
        }  # fmt: skip
        counters: dict[str, tuple[str, float]] = {
            "pool_misses": ("Requests that found the pool empty.", pool.misses),
            "pool_made": ("Networks made ahead.", pool.made),
            "pool_make_seconds": ("Time spent making networks ahead.", agent.pool.making_seconds),
            "pool_failures": ("Networks that could not be made.", pool.failed),
            "added": ("Networks given to pods.", agent.added),
            "deleted": ("Networks taken back from pods.", agent.deleted),
            "refused": ("Requests refused.", agent.refused),
            "lost": ("Addresses freed of pods that ended without DEL.", agent.lost),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"firstlight_pods_{name}", text, value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"firstlight_pods_{name}", text, value)


def serve(agent: Agent, listen: str) -> None:
    """Serve the metrics over HTTP at ADDRESS:PORT, in a thread. Raises Failed."""
    registry = CollectorRegistry()
    registry.register(_Collector(agent))
    address, _, port = listen.rpartition(":")
    try:
        start_http_server(int(port), address.strip("[]"), registry)
    except OSError as error:
        raise Failed(f"cannot serve metrics at {listen}: {error.strerror}",
                     "configure another pods.metrics") from error  # fmt: skip
