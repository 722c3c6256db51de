"""What each way of mounting a container's root file system costs."""

from firstlight.lab.backends import rootfs
from firstlight.lab.backends.oci import Oci
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    return [
        {"rootfs": technique, "runtime": runtime, "instances": instances}
        for runtime in options.runtimes or ("runc",)
        for technique in rootfs.TECHNIQUES
        for instances in options.instances
    ]


ROOTFS = Experiment(
    name="rootfs",
    question="What does each way of mounting the root file system cost?",
    figure="section III-C",
    axes=("rootfs", "runtime", "instances"),
    points=_points,
    backend=lambda point: Oci(str(point["runtime"]), str(point["rootfs"])),
    instances=(1, 10, 20, 50, 100),
)
