"""Sandboxes that a container runtime may keep are named."""

from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from firstlight.lab.cluster.sandboxer import Cri, Sandbox, Unanswered

REQUEST = {"name": "s1", "image": "i", "cgroup": "/c"}


class Faulty:
    """A runtime that fails at some verbs."""

    def __init__(self, faults: dict[str, Exception]) -> None:
        self.messages, self.faults = MagicMock(), faults

    def call(self, verb: str, *_: object) -> Any:
        if verb in self.faults:
            raise self.faults[verb]
        return MagicMock(pod_sandbox_id="id")


@pytest.mark.parametrize(
    ("faults", "left"),
    [
        ({"CreateContainer": RuntimeError("no image")}, {}),
        ({"RunPodSandbox": RuntimeError("no such handler")}, {}),
        ({"RunPodSandbox": Unanswered("deadline")}, {"s1": "deadline"}),
        (
            {"CreateContainer": RuntimeError("no"), "StopPodSandbox": Unanswered("deadline")},
            {"id": "its removal was not answered"},
        ),
        (
            {"CreateContainer": RuntimeError("no"), "RemovePodSandbox": RuntimeError("is busy")},
            {"id": "is busy"},
        ),
    ],
)
def test_sandboxes_that_may_be_left_are_known(
    faults: dict[str, Exception], left: dict[str, str]
) -> None:
    seen: dict[str, str] = {}
    sandbox = Sandbox(cast("Cri", Faulty(faults)), "/logs", seen)
    with pytest.raises(RuntimeError):
        sandbox.make(REQUEST)
    sandbox.end()
    assert seen == left
