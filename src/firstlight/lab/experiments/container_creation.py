"""Fig. 2 and Fig. 6 of the paper: where container creation spends its time."""

from collections.abc import Iterator

from firstlight.lab.backends.oci import Oci
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation


def _cases(options: Options) -> Iterator[Case]:
    for runtime in options.runtimes or ("runc", "crun"):
        for instances in options.instances:
            yield Case({"runtime": runtime, "instances": instances}, Oci(runtime))


CONTAINER_CREATION = Experiment(
    name="container-creation",
    question="Where does container creation spend its time, alone and with many at once?",
    figure="Fig. 2, Fig. 6",
    axes=("runtime", "instances"),
    cases=_cases,
    options=("runtimes",),
    presentation=Presentation(subject="a {series} container", counterpart="the paper's Fig. 6"),
)
