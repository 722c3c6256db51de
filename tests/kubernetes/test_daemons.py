"""The daemons of CNI products under the cluster, with their pods."""

from pathlib import Path

import pytest
from tests.kubernetes.test_pods import measured

from firstlight.errors import Unsupported
from firstlight.lab.cluster import running
from firstlight.lab.cni import known
from firstlight.lab.cni.plugin import find
from firstlight.model import Ending


@pytest.mark.parametrize("network", ["flannel", "kube-router"])
def test_pods_with_a_product_s_own_daemon(network: str, tmp_path: Path) -> None:
    configuration, about = known.find(network)
    try:
        running.handlers(("runc",), (network,))
        find(configuration.plugins[0]["type"], known.path(about))
    except Unsupported as error:
        pytest.skip(f"{error.message}: {error.hint}")
    samples = measured(tmp_path / "run", "kubernetes-pods", "--cni", network, "--instances", "2",
                       "--repetitions", "1")  # fmt: skip
    assert len(samples) == 2
    assert all(sample.ending is Ending.READY for sample in samples), samples


def test_a_network_whose_daemon_is_not_there_says_what_to_do() -> None:
    with pytest.raises(Unsupported, match="needs weaver, which runs in a cluster"):
        running.handlers(("runc",), ("weave-profile",), control_plane=False)
    with pytest.raises(Unsupported):
        running.handlers(("runc",), ("flannel",), control_plane=False)
