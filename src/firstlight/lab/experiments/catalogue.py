"""The experiments by name."""

from firstlight.errors import Failed, NotApplicable, UnknownName, Unsupported
from firstlight.lab.experiments import Experiment, Options
from firstlight.lab.experiments.ablation import ABLATION
from firstlight.lab.experiments.agile import AGILE
from firstlight.lab.experiments.boot_protocol import BOOT_PROTOCOL
from firstlight.lab.experiments.churn import CHURN
from firstlight.lab.experiments.cni_background import CNI_BACKGROUND
from firstlight.lab.experiments.cni_breakdown import CNI_BREAKDOWN
from firstlight.lab.experiments.cni_burst import CNI_BURST
from firstlight.lab.experiments.cni_teardown import CNI_TEARDOWN
from firstlight.lab.experiments.container_creation import CONTAINER_CREATION
from firstlight.lab.experiments.containerd_task import CONTAINERD_TASK
from firstlight.lab.experiments.cri_sandbox import CRI_SANDBOX
from firstlight.lab.experiments.density import DENSITY
from firstlight.lab.experiments.driver_loading import DRIVER_LOADING
from firstlight.lab.experiments.floor import FLOOR
from firstlight.lab.experiments.functions import FUNCTIONS
from firstlight.lab.experiments.hypervisor_builds import HYPERVISOR_BUILDS
from firstlight.lab.experiments.image import IMAGE
from firstlight.lab.experiments.kubernetes_background import KUBERNETES_BACKGROUND
from firstlight.lab.experiments.kubernetes_pods import KUBERNETES_PODS
from firstlight.lab.experiments.network_setup import NETWORK_SETUP
from firstlight.lab.experiments.network_tricks import NETWORK_TRICKS
from firstlight.lab.experiments.platforms import PLATFORMS
from firstlight.lab.experiments.pod import POD
from firstlight.lab.experiments.rootfs import ROOTFS
from firstlight.lab.experiments.storms import STORMS
from firstlight.lab.experiments.trace_replay import TRACE_REPLAY
from firstlight.lab.experiments.unikernel_boot import UNIKERNEL_BOOT
from firstlight.lab.experiments.unikernel_scale import UNIKERNEL_SCALE
from firstlight.model import Availability, Missing

ALL = {
    experiment.name: experiment
    for experiment in (
        CONTAINER_CREATION, NETWORK_SETUP, ROOTFS, NETWORK_TRICKS, FLOOR,
        CNI_BREAKDOWN, CNI_BACKGROUND, CNI_BURST, CNI_TEARDOWN, POD,
        UNIKERNEL_BOOT, HYPERVISOR_BUILDS, BOOT_PROTOCOL, DRIVER_LOADING, UNIKERNEL_SCALE,
        KUBERNETES_PODS, KUBERNETES_BACKGROUND, CRI_SANDBOX, CONTAINERD_TASK, IMAGE,
        AGILE, ABLATION, CHURN, DENSITY, FUNCTIONS, PLATFORMS, STORMS,
        TRACE_REPLAY,
    )
}  # fmt: skip


def find(name: str) -> Experiment:
    """The experiment with this name. Raises UnknownName."""
    if name not in ALL:
        raise UnknownName("experiment", name, ALL)
    return ALL[name]


def probe() -> dict[str, Availability]:
    """What can run here of each experiment, by its name."""
    return {experiment.name: _available(experiment) for experiment in ALL.values()}


def _available(experiment: Experiment) -> Availability:
    try:
        cases = list(experiment.cases(Options(instances=(1,))))
    except Failed as error:  # the guest catalogue cannot be read
        return Availability((), (Missing((experiment.name,), error.message, error.hint),))
    except OSError as error:
        return Availability((), (Missing((experiment.name,), str(error), None),))
    parts: dict[tuple[str, str | None], dict[str, None]] = {}
    can_run: dict[str, None] = {}
    for case in cases:
        try:
            case.backend.probe()
        except NotApplicable:
            continue
        except Unsupported as error:
            parts.setdefault((error.message, error.hint), {})[case.backend.name] = None
        except OSError as error:  # a container may lack a file in /proc
            parts.setdefault((str(error), None), {})[case.backend.name] = None
        else:
            can_run[case.backend.name] = None
    missing = (Missing(tuple(of), fact, hint) for (fact, hint), of in parts.items())
    return Availability(tuple(can_run), tuple(missing))
