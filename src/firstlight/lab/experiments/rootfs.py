"""What each way of mounting a container's root file system costs."""

from collections.abc import Iterator

from firstlight.lab import rootfs
from firstlight.lab.backends.oci import Oci
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation


def _cases(options: Options) -> Iterator[Case]:
    for runtime in options.runtimes or ("runc",):
        for technique in rootfs.TECHNIQUES:
            for instances in options.instances:
                yield Case(
                    {"rootfs": technique, "runtime": runtime, "instances": instances},
                    Oci(runtime, technique),
                )


ROOTFS = Experiment(
    name="rootfs",
    question="What does each way of mounting the root file system cost?",
    figure="section III-C",
    axes=("rootfs", "runtime", "instances"),
    cases=_cases,
    options=("runtimes",),
    instances=(1, 10, 20, 50, 100),
    presentation=Presentation(subject="a {series} container"),
)
