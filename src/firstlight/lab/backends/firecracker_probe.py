"""Finds Firecracker, and checks that it really runs a guest."""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from firstlight.errors import Unsupported, longer
from firstlight.host.ownership import scratch
from firstlight.lab.backends import accel

BINARY = "firecracker"
VARIABLE = "FIRSTLIGHT_FIRECRACKER"
_KVM = Path("/dev/kvm")
_VERSION = re.compile(r"^(?:Firecracker|Jailer) v(\d+)\.(\d+)\.(\d+)", re.MULTILINE)
_GET = (
    "download a release of the project (Debian has no package); put it on the PATH, set "
    f"{VARIABLE} to it, or give its path"
)

Version = tuple[int, int, int]


def find(binary: str = BINARY) -> str:
    """The absolute path of a Firecracker: a path, or a name looked up in VARIABLE and the PATH.

    Raises Unsupported.
    """
    wanted = os.environ.get(VARIABLE, binary) if binary == BINARY else binary
    path = shutil.which(wanted)
    if not path:
        raise Unsupported(f"hypervisor {wanted!r} is not installed", _GET)
    return str(Path(path).resolve())


@cache
def version(program: str) -> Version:
    """The version. Raises Unsupported for a program that is not Firecracker."""
    try:
        output = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=longer(20),
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unsupported(f"cannot run {program}: {error}", _GET) from error
    match = _VERSION.search(output)
    if not match:
        raise Unsupported(
            f"{program} is not Firecracker: --version does not print its version", _GET
        )
    return int(match[1]), int(match[2]), int(match[3])


def run_guest(program: str) -> str:
    """Run a guest of a few bytes; returns a sentence on KVM's speed. Raises Unsupported."""
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise Unsupported(
            f"Firecracker needs KVM, but {_KVM} cannot be opened: {error.strerror}", accel.NO_KVM
        ) from error
    seconds, complaint = (None, hung) if (hung := accel.why_hung()) else _count(program)
    if seconds is None:
        raise Unsupported(f"{program} cannot run a guest here: {complaint}", accel.NO_KVM)
    return accel.emulates(seconds) or "guests run under KVM at a processor's speed"


@cache
def _count(program: str) -> tuple[float | None, str]:
    """How long a guest counted, in seconds, or why that is unknown."""
    with scratch() as directory:
        kernel = Path(directory, "kernel")
        kernel.write_bytes(accel.elf(accel.COUNT))
        config = Path(directory, "config.json")
        config.write_text(
            f'{{"boot-source": {{"kernel_image_path": "{kernel}"}}, "drives": [],'
            ' "machine-config": {"vcpu_count": 1, "mem_size_mib": 32}}'
        )
        (log := Path(directory, "log")).touch()
        command = [program, "--no-api", "--config-file", str(config), "--log-path", str(log)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                return accel.time_count(process)
            finally:
                process.kill()
