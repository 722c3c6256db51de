"""How ``agile function follow`` ends, which may be the first process of its container."""

import os
import subprocess
import sys

import pytest

UNSHARE = ["unshare", *(("--user", "--map-root-user") if os.geteuid() else ()), "--pid", "--fork",
           "--kill-child", "--mount-proc"]  # fmt: skip
PROGRAM = """
import os, signal, sys, time
from firstlight.agile import apiserver
from firstlight.agile.functions import follow
from firstlight.cli import function

def run(self):
    if sys.argv[1] == "failure":
        raise LookupError("what nobody thought of")
    assert os.getpid() == 1
    os.kill(1, signal.SIGTERM)
    time.sleep(600)

apiserver.Server = lambda _kubeconfig: None
follow.Follower.run = run
function.follow(kubeconfig="in-cluster", namespace="functions")
"""


def test_the_first_process_of_a_container_ends_by_sigterm() -> None:
    if subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=60).returncode:
        pytest.skip("no PID namespaces can be made")
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-c", PROGRAM, "signal"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_failure_that_nobody_thought_of_ends_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "failure"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "what nobody thought of" in done.stderr
