"""Where one Firecracker runs, with the files that it is shown, in a jail or not."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

from firstlight.errors import Failed, Unsupported

CONFIG, REQUESTS, API, LOG = "config.json", "requests", "api.socket", "firecracker.log"
STATE, MEMORY, DISK = "snapshot.state", "snapshot.memory", "disk"
_MAKE_SECONDS = 120.0


@dataclass(frozen=True)
class Room:
    """Where one Firecracker runs: a directory of its own, or the root of its jail.

    It is the working directory either way, so that what is in it has the same name for both sides.
    """

    root: Path
    identifier: str
    program: str
    jailer: str | None

    def bring(self, file: Path, name: str, *, copied: bool = False) -> str:
        """What Firecracker calls a file; it is brought in only if that is needed."""
        if not (copied or self.jailer):
            return str(file.absolute())
        inside = self.root / name
        try:
            if not copied:
                inside.hardlink_to(file)
        except OSError:  # of another file system
            copied = True
        if copied:
            _copy(file, inside)
        return name if self.jailer else str(inside)

    @classmethod
    def make(cls, directory: Path, identifier: str, program: str, jailer: str | None) -> "Room":
        """An empty one below a directory."""
        if jailer:  # where it is, is the jailer's to say
            root = directory / "jail" / Path(program).name / identifier / "root"
        else:
            root = directory / identifier
        root.mkdir(parents=True)
        (root / LOG).touch()
        return cls(root, identifier, program, jailer)

    def command_line(self, way: str) -> tuple[str, ...]:
        """Firecracker's path and arguments, behind the jailer's if there is one.

        It is given its configuration (``config``), an API (``api``) or ``both``.
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
    """Without the holes that an image has, which would fill the run's memory."""
    done = subprocess.run(
        ["cp", "--sparse=always", "--reflink=auto", str(file), str(to)],
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"cannot copy {file}: {done.stderr.strip()}", "is there memory enough?")


@contextmanager
def until_ready(argv: tuple[str, ...], environment: dict[str, str], cwd: Path) -> Iterator[None]:
    """vmrun with a guest that has said that it is ready; it ends with the block. Raises Failed."""
    said = ""
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace",
        env=environment, cwd=cwd,
    ) as process:  # fmt: skip
        impatience = Timer(_MAKE_SECONDS, process.kill)
        impatience.start()
        try:
            assert process.stdout is not None
            for said in process.stdout:
                if said.startswith(("firstlight ready ", "firstlight error ")):
                    break
            impatience.cancel()
            if not said.startswith("firstlight ready "):
                reason = said.removeprefix("firstlight error ").strip()
                reason = reason or f"it was not ready after {_MAKE_SECONDS:.0f} s"
                raise Failed(f"no snapshot was made of the guest: {reason}")
            yield
        finally:
            impatience.cancel()
            process.stdin.close() if process.stdin else None
            process.wait()


def find_jailer(jailer: str) -> str:
    """Its absolute path. Raises Unsupported."""
    found = shutil.which(jailer)
    if not found:
        raise Unsupported(
            f"jailer {jailer!r} is not here", "it comes with a release of Firecracker"
        )
    return str(Path(found).resolve())
