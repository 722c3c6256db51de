"""What an image costs: pulling it, unpacking it, and reading it for the first time."""

from collections.abc import Iterator
from typing import get_args

from firstlight.lab.backends.image import SNAPSHOTTERS, From, Image
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation

_IMAGES = ((1, 16), (8, 16), (1, 64))
"""Layers and MiB: the plain image, one of more layers, and a larger one."""


def _cases(options: Options) -> Iterator[Case]:
    for snapshotter in SNAPSHOTTERS:
        for layers, mebibytes in _IMAGES:
            for origin in get_args(From):
                for instances in options.instances:
                    yield Case(
                        {
                            "snapshotter": snapshotter,
                            "layers": layers,
                            "mebibytes": mebibytes,
                            "from": origin,
                            "instances": instances,
                        },
                        Image(snapshotter, layers, mebibytes, origin),
                    )


IMAGE = Experiment(
    name="image",
    question="What does an image cost a start: pulled, unpacked, and read?",
    figure="beyond the paper",
    axes=("snapshotter", "layers", "mebibytes", "from", "instances"),
    cases=_cases,
    instances=(1,),
    repetitions=3,
    presentation=Presentation(subject="a container ({series})", view="image"),
    explained_by="components",
)
