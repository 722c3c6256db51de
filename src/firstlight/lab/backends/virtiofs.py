"""A directory as a guest's root by virtio-fs: a virtiofsd for each VM, started in advance."""

import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from firstlight.errors import Unsupported

_ASIDE = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")


def program() -> str:
    """The path of virtiofsd. Raises Unsupported."""
    program = shutil.which("virtiofsd") or next(filter(shutil.which, _ASIDE), None)
    if program is None:
        raise Unsupported(
            "virtiofsd, which shares a directory with a guest, is not installed",
            "apt-get install qemu-system-common, or virtiofsd",
        )
    return program


@contextmanager
def serving(directory: Path, at: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """Run a virtiofsd that serves ``directory`` at the socket ``at``; yields its pid."""
    with socket.socket(socket.AF_UNIX) as listener:  # a client can connect at once
        listener.bind(str(at))
        listener.listen(1)
        source = str(directory).replace(",", "\\,")  # libfuse's fuse_opt would end the option there
        daemon = subprocess.Popen(
            [program(), f"--fd={listener.fileno()}", "-o", f"source={source},cache=auto"],
            pass_fds=[listener.fileno()],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        yield daemon.pid
    finally:
        daemon.terminate()
        daemon.wait()
        at.unlink()
