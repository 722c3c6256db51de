"""Reads the times of pods from the metrics of the kubelet and containerd.

Metrics are sums over all pods: the difference between two readings is a batch's.
"""

import http
from collections.abc import Mapping

from firstlight.errors import longer
from firstlight.lab.cluster.node import ask
from firstlight.lab.cluster.running import Cluster
from firstlight.lab.cluster.settings import METRICS
from firstlight.model import OPERATIONS

_KUBELET = "https://127.0.0.1:10250/metrics"
_CONTAINERD = f"http://{METRICS}/v1/metrics"
_SECONDS = longer(20.0)  # amid a burst, a kubelet has taken more than two
_OPERATION = "kubelet_runtime_operations_duration_seconds"
_NETWORK = "containerd_cri_sandbox_create_network_seconds"

Sums = dict[str, tuple[float, float]]
"""The seconds and the number of each operation."""


def read(cluster: Cluster) -> Sums:
    """The sums so far, by the names in OPERATIONS. Raises OSError, HTTPException or ValueError if a
    component does not answer, or with other than metrics.
    """
    from prometheus_client.parser import text_string_to_metric_families

    token = cluster.settings.token
    texts = cluster.inside(lambda: [_text(url, token) for url in (_KUBELET, _CONTAINERD)])
    seconds, numbers = dict.fromkeys(OPERATIONS, 0.0), dict.fromkeys(OPERATIONS, 0.0)
    for text in texts:
        for family in text_string_to_metric_families(text):
            for name, labels, value, *_ in family.samples:
                metric, _, kind = name.rpartition("_")
                of = {"sum": seconds, "count": numbers}.get(kind)
                if of is not None and (operation := _operation(metric, labels)):
                    of[operation] += value
    return {name: (seconds[name], numbers[name]) for name in OPERATIONS}


def _text(url: str, token: str) -> str:
    status, answer = ask(url, token, seconds=_SECONDS)
    if status != http.HTTPStatus.OK:
        raise ValueError(f"{url} answers with status {status}")
    return answer.decode()


def between(before: Sums, after: Sums) -> dict[str, float]:
    """The mean of each operation between two readings, in ns; 0 if there was none."""
    means = {}
    for name in OPERATIONS:
        spent, number = (b - a for a, b in zip(before[name], after[name], strict=True))
        means[f"{name} ns"] = 1e9 * spent / number if number else 0.0
    return means


def _operation(metric: str, labels: Mapping[str, str]) -> str:
    if metric == _NETWORK:
        return "network"
    return labels["operation_type"] if metric == _OPERATION and \
        labels["operation_type"] in OPERATIONS else ""  # fmt: skip
