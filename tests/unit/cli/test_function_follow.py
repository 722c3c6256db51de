"""How ``agile function follow`` ends."""

import subprocess
import sys

PROGRAM = """
from firstlight.agile import apiserver
from firstlight.agile.functions import follow
from firstlight.cli import function

def run(self):
    raise LookupError("what nobody thought of")

apiserver.Server = lambda _kubeconfig: None
follow.Follower.run = run
function.follow(kubeconfig="in-cluster", namespace="functions")
"""


def test_a_failure_that_nobody_thought_of_ends_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "what nobody thought of" in done.stderr
