"""OCI command-line runtimes: runc, crun, runsc, or any other by name or path.

The root file system is made here around the static payload, so no image is needed.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import Failed, Unsupported
from firstlight.host import cgroups
from firstlight.host.mounts import unmount_below
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Command, oci_spec, rootfs
from firstlight.model import EndPoint, Point
from firstlight.native import native

KNOWN = ("runc", "crun", "runsc", "youki")
_DELETE_SECONDS = 20


@dataclass(frozen=True)
class _Manner:
    """What a runtime is told besides the bundle, and what that spares it."""

    options: tuple[str, ...] = ()
    note: str | None = None
    has_cgroup: bool = True
    joins_network: bool = True
    needs_cgroup2: bool = False


def _manner(program: str) -> _Manner:
    name = Path(program).name
    if name == "crun" and not cgroups.is_unified():
        return _Manner(
            ("--cgroup-manager=disabled",),
            "crun refuses cgroup v1 and hybrid hosts: it runs with --cgroup-manager=disabled "
            "and is spared the cgroup work",
            has_cgroup=False,
            needs_cgroup2=True,
        )
    if name == "runsc":
        return _Manner(
            ("--platform=ptrace", "--ignore-cgroups", "--network=none"),
            "runsc runs on its ptrace platform, without cgroups and without a network",
            has_cgroup=False,
            joins_network=False,
        )
    return _Manner()


@dataclass(frozen=True)
class Oci:
    """``RUNTIME run`` of a bundle with one CPU, 1 GB, five namespaces, seccomp and capabilities.

    ``runtime`` is a name or a path. ``rootfs`` is one of rootfs.TECHNIQUES, by which the root file
    system is mounted before the runtime starts; None leaves it to the runtime's own bind mount.
    """

    runtime: str
    rootfs: str | None = None
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The runtime's own name."""
        return Path(self.runtime).name

    @property
    def note(self) -> str | None:
        """What this runtime is spared here, if anything."""
        return _manner(self.runtime).note

    @property
    def joins_network(self) -> bool:
        """Whether its containers use the network namespace that they are given."""
        return _manner(self.runtime).joins_network

    def probe(self) -> None:
        """The runtime and what its root file system needs must be there."""
        if os.geteuid() != 0:
            raise Unsupported("starting containers needs root", "run it with sudo")
        self._program()
        if self.rootfs:
            rootfs.probe(self.rootfs)

    def _program(self) -> str:
        found = shutil.which(self.runtime)
        if not found:
            raise Unsupported(
                f"runtime {self.runtime!r} is not installed",
                f"apt-get install {self.name}, or give its path; known: {', '.join(KNOWN)}",
            )
        return str(Path(found).absolute())

    @contextmanager
    def prepared(
        self, point: Point, instances: int, workspace: Workspace
    ) -> Iterator[list[Command]]:
        """A bundle for each instance; afterwards no container, cgroup or mount is left."""
        del point
        manner = _manner(self.runtime)
        program = self._program()
        base = workspace.directory / "oci"
        lower = _tree(workspace.directory / "root")
        if self.rootfs:
            lower = rootfs.prepare(self.rootfs, lower, workspace.directory)
        state = base / "state"
        identifiers = [f"{workspace.run}-{index}" for index in range(instances)]
        with ExitStack() as cleanup:
            if manner.needs_cgroup2:
                cleanup.enter_context(_cgroup2_view())
            base.mkdir()
            if self.rootfs:
                cleanup.enter_context(rootfs.returned_loops())
            cleanup.callback(self._remove, program, state, base, workspace)
            yield [
                self._command(program, state, base / identifier, lower, workspace)
                for identifier in identifiers
            ]

    def _command(
        self, program: str, state: Path, bundle: Path, lower: Path, workspace: Workspace
    ) -> Command:
        bundle.mkdir(parents=True)
        root = bundle / "rootfs" if self.rootfs else lower
        manner = _manner(self.runtime)
        cgroup = f"/{cgroups.name(workspace.run)}/{bundle.name}" if manner.has_cgroup else None
        spec = oci_spec.make(root, cgroup, workspace.environment)
        (bundle / "config.json").write_text(json.dumps(spec))
        run = (program, "--root", str(state), *manner.options, "run",
               "--bundle", str(bundle), bundle.name)  # fmt: skip
        if self.rootfs:
            root.mkdir()
            run = rootfs.wrap(self.rootfs, lower, root, bundle / "scratch", run)
        return Command(run, workspace.environment)

    def _remove(self, program: str, state: Path, base: Path, workspace: Workspace) -> None:
        for container in state.iterdir() if state.is_dir() else ():
            subprocess.run(
                [program, "--root", str(state), *_manner(self.runtime).options,
                 "delete", "--force", container.name],
                capture_output=True, timeout=_DELETE_SECONDS,
            )  # fmt: skip
        cgroups.remove(cgroups.name(workspace.run))
        unmount_below(base)
        shutil.rmtree(base)


def _tree(directory: Path) -> Path:
    """The root file system's files: the payload, mount points, and a little bulk to copy."""
    if not directory.exists():
        for name in ("proc", "sys", "dev", "tmp", "etc", "bin"):
            (directory / name).mkdir(parents=True)
        shutil.copy(native("payload"), directory / "bin" / "payload")
        for index in range(oci_spec.BULK_FILES):
            block = index.to_bytes(4, "little") * (oci_spec.BULK_BYTES // 4)
            (directory / "etc" / f"file-{index}").write_bytes(block)
    return directory


@contextmanager
def _cgroup2_view() -> Iterator[None]:
    """Shows /sys/fs/cgroup as cgroup2 alone, in our own mount namespace, while crun runs."""
    _run("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
    try:
        yield
    finally:
        _run("umount", "--lazy", "/sys/fs/cgroup")


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(argv)} failed: {done.stderr.strip()}")
