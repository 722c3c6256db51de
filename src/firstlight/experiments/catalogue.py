"""Every experiment, by name."""

from firstlight.errors import UnknownName
from firstlight.experiments import Experiment
from firstlight.experiments.container_creation import CONTAINER_CREATION
from firstlight.experiments.floor import FLOOR
from firstlight.experiments.network_setup import NETWORK_SETUP
from firstlight.experiments.network_tricks import NETWORK_TRICKS
from firstlight.experiments.rootfs import ROOTFS

ALL = {
    experiment.name: experiment
    for experiment in (CONTAINER_CREATION, NETWORK_SETUP, ROOTFS, NETWORK_TRICKS, FLOOR)
}


def find(name: str) -> Experiment:
    """The experiment of that name. Raises UnknownName."""
    if name not in ALL:
        raise UnknownName("experiment", name, ALL)
    return ALL[name]
