"""What containerd adds to the OCI runtime that it starts: its client, snapshot and shim."""

from collections.abc import Iterator

from firstlight.lab.backends.containerd import Containerd
from firstlight.lab.backends.oci import Oci
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation


def _cases(options: Options) -> Iterator[Case]:
    for runtime in options.runtimes or ("runc",):
        for by, backend in (("itself", Oci(runtime)), ("containerd", Containerd(runtime))):
            for instances in options.instances:
                yield Case({"runtime": runtime, "by": by, "instances": instances}, backend)


CONTAINERD_TASK = Experiment(
    name="containerd-task",
    question="What does containerd add to the runtime that it starts?",
    figure="beyond the paper",
    axes=("runtime", "by", "instances"),
    cases=_cases,
    options=("runtimes",),
    instances=(1, 10, 30),
    repetitions=5,
    presentation=Presentation(subject="a container ({series})"),
)
