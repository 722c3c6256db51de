"""The directory of one Firecracker and the files in it, with or without a jail."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

from firstlight.errors import Failed, Unsupported, longer

CONFIG, REQUESTS, API, LOG = "config.json", "requests", "api.socket", "firecracker.log"
STATE, MEMORY, DISK = "snapshot.state", "snapshot.memory", "disk"
_MAKE_SECONDS = longer(120.0)


@dataclass(frozen=True)
class Room:
    """The directory of one Firecracker, or the root of its jail.

    It is the working directory in both cases, so a file in it has the same name on either side.
    """

    root: Path
    identifier: str
    program: str
    jailer: str | None

    def bring(self, file: Path, name: str, *, copied: bool = False) -> str:
        """Firecracker's name for a file, which is linked or copied in if there is a jail."""
        if not (copied or self.jailer):
            return str(file.absolute())
        inside = self.root / name
        try:
            if not copied:
                inside.hardlink_to(file)
        except OSError:  # on another file system
            copied = True
        if copied:
            _copy(file, inside)
        return name if self.jailer else str(inside)

    @classmethod
    def make(cls, directory: Path, identifier: str, program: str, jailer: str | None) -> "Room":
        """Make an empty one below a directory."""
        if jailer:  # the jailer determines the path
            root = directory / "jail" / Path(program).name / identifier / "root"
        else:
            root = directory / identifier
        root.mkdir(parents=True)
        (root / LOG).touch()
        return cls(root, identifier, program, jailer)

    def command_line(self, way: str) -> tuple[str, ...]:
        """Firecracker's path and arguments, after the jailer's if there is one.

        It gets a configuration file (``config``), an API socket (``api``) or ``both``.
        """
        line = ["--log-path", LOG, "--level", "Info"]
        if way != "config":
            line += ["--api-sock", API]
        if way != "api":
            line += ["--config-file", CONFIG]
        if way == "config":
            line += ["--no-api"]
        if not self.jailer:
            return (self.program, "--id", self.identifier, *line)
        return (self.jailer, "--id", self.identifier, "--exec-file", self.program,
                "--uid", "0", "--gid", "0", "--chroot-base-dir", str(self.root.parents[2]),
                "--", *line)  # fmt: skip


def _copy(file: Path, to: Path) -> None:
    """Copy a file and keep its holes, which would otherwise fill the run's memory."""
    done = subprocess.run(
        ["cp", "--sparse=always", "--reflink=auto", str(file), str(to)],
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise Failed(
            f"cannot copy {file}: {done.stderr.strip()}", "check that enough memory is free"
        )


@contextmanager
def until_ready(argv: tuple[str, ...], environment: dict[str, str], cwd: Path) -> Iterator[None]:
    """Run vmrun with a ready guest, until the context ends. Raises Failed."""
    line = ""
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace",
        env=environment, cwd=cwd,
    ) as process:  # fmt: skip
        impatience = Timer(_MAKE_SECONDS, process.kill)
        impatience.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(("firstlight ready ", "firstlight error ")):
                    break
            impatience.cancel()
            if not line.startswith("firstlight ready "):
                reason = line.removeprefix("firstlight error ").strip()
                reason = reason or f"not ready after {_MAKE_SECONDS:.0f} s"
                raise Failed(f"cannot make a snapshot of the guest: {reason}")
            yield
        finally:
            impatience.cancel()
            process.stdin.close() if process.stdin else None
            process.wait()


def find_jailer(jailer: str) -> str:
    """The jailer's absolute path. Raises Unsupported."""
    path = shutil.which(jailer)
    if not path:
        raise Unsupported(
            f"jailer {jailer!r} is not installed", "it is part of a release of Firecracker"
        )
    return str(Path(path).resolve())
