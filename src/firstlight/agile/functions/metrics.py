"""How many of a cluster's functions the node serves, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from firstlight.agile.functions.follow import Follower
from firstlight.errors import Failed

_TEXTS = {
    "wanted": "Functions of the cluster.",
    "served": "Functions that are served as the cluster wants them.",
    "refused": "Functions that failed when they were last tried.",
}


class _Collector(Collector):
    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def collect(self) -> Iterator[Metric]:
        for name, value in self._follower.counts().items():
            yield GaugeMetricFamily(f"firstlight_functions_{name}", _TEXTS[name], value)


def serve(follower: Follower, listen: str) -> None:
    """Serve them by HTTP at ADDRESS:PORT, in a thread. Raises Failed."""
    registry = CollectorRegistry()
    registry.register(_Collector(follower))
    address, _, port = listen.rpartition(":")
    try:
        start_http_server(int(port), address.strip("[]"), registry)
    except (OSError, ValueError) as error:
        raise Failed(f"cannot serve metrics at {listen}: {error}",
                     "give another --metrics ADDRESS:PORT") from error  # fmt: skip
