"""Runs the resident program that requests starts from a cluster or its container runtime."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from firstlight.errors import Failed, longer
from firstlight.host.workspace import Workspace
from firstlight.lab.cluster import requester, sandboxer

_END_SECONDS = longer(120.0)  # time to delete what it has made


@contextmanager
def resident(
    program: str,
    configuration: requester.Configuration | sandboxer.Configuration,
    network: str,
    workspace: Workspace,
) -> Iterator[Path]:
    """Run a program in a network namespace, by path; yields its socket.

    Raises Failed with the program's message if it cannot use the cluster or runtime.
    """
    file = workspace.directory / f"{program}.json"
    file.write_bytes(msgspec.json.encode(configuration))
    process = subprocess.Popen(
        ["nsenter", f"--net={network}", sys.executable, "-m",
         f"firstlight.lab.cluster.{program}", str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        pass_fds=[workspace.outside], env={**os.environ, **workspace.environment},
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    try:
        answer = process.stdout.readline().strip()
        if answer != "ready":
            raise Failed(answer or f"the {program} exited before it was ready")
        yield Path(configuration.socket)
    finally:
        process.stdin.close()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
