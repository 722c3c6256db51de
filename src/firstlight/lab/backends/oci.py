"""OCI command-line runtimes: runc, crun, runsc or any other, by name or path.

The root file system is made around the static payload, so no image is needed.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from firstlight.errors import WITH_SUDO, Failed, Unsupported, longer
from firstlight.host import cgroups
from firstlight.host.commands import run
from firstlight.host.mounts import unmount_below
from firstlight.host.workspace import Workspace, sandbox
from firstlight.lab import rootfs
from firstlight.lab.backends import Execute, Prepared, oci_spec
from firstlight.lab.backends.oci_spec import PAYLOAD, Process
from firstlight.model import EndPoint
from firstlight.native import native

_DELETE_SECONDS = longer(20)
_TRY_SECONDS = longer(60)
_LAST_CHARACTERS = 300


@dataclass(frozen=True)
class RuntimeQuirks:
    """The options that a runtime needs besides the bundle, and the work that they save it."""

    options: tuple[str, ...] = ()
    note: str | None = None
    has_cgroup: bool = True
    joins_network: bool = True
    needs_cgroup2: bool = False


def _quirks(program: str) -> RuntimeQuirks:
    name = _identity(shutil.which(program) or program)
    if name == "crun" and not cgroups.is_unified():
        return RuntimeQuirks(
            ("--cgroup-manager=disabled",),
            "crun refuses cgroup v1 and hybrid hosts: it runs with --cgroup-manager=disabled "
            "and does no cgroup work",
            has_cgroup=False,
            needs_cgroup2=True,
        )
    if name == "runsc":
        return RuntimeQuirks(
            ("--platform=ptrace", "--ignore-cgroups", "--network=none"),
            "runsc runs on its ptrace platform, without cgroups and without a network",
            has_cgroup=False,
            joins_network=False,
        )
    return RuntimeQuirks()


@cache
def _identity(program: str) -> str:
    """The runtime's own name: it may be a wrapper, or installed by another name."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, errors="replace",
            timeout=longer(10), stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return Path(program).name
    match = re.match(r"([a-z]+) version\b", done.stdout)
    return match[1] if match else Path(program).name


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
        """The runtime's name."""
        return Path(self.runtime).name

    @property
    def note(self) -> str | None:
        """The work that this runtime does not do here, if any."""
        return _quirks(self.runtime).note

    @property
    def joins_network(self) -> bool:
        """Whether its containers use the given network namespace."""
        return _quirks(self.runtime).joins_network

    def probe(self) -> None:
        """Needs root, the runtime, and what its root file system needs."""
        if os.geteuid() != 0:
            raise Unsupported("starting containers needs root", WITH_SUDO)
        self._program()
        if self.rootfs:
            rootfs.probe(self.rootfs)

    def try_start(self) -> None:
        """Start a container that ends at once, in a workspace of its own. Raises FirstlightError,
        with the runtime's last words.
        """
        with ThreadPoolExecutor(1) as thread:  # which stays in the workspace's namespaces
            thread.submit(self._try_start).result()

    def _try_start(self) -> None:
        with (
            sandbox(f"try-{secrets.token_hex(6)}") as workspace,
            self.bundles(workspace) as bundles,
        ):
            bundle = bundles.make(0, Process(("/bin/payload", "once")))
            try:
                done = subprocess.run(
                    bundle.argv, env=workspace.environment, stdin=subprocess.DEVNULL,
                    capture_output=True, text=True, errors="replace", timeout=_TRY_SECONDS,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise Failed(f"a container has not ended after {_TRY_SECONDS:g} s") from error
        if done.returncode:
            raise Failed(_last_words(done.stderr) or f"exit status {done.returncode}")

    def _program(self) -> str:
        path = shutil.which(self.runtime)
        if not path:
            raise Unsupported(
                f"runtime {self.runtime!r} is "
                + ("not executable" if Path(self.runtime).exists() else "not installed"),
                "install it, or give the path of the program",
            )
        return str(Path(path).absolute())

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A bundle for each instance."""
        with self.bundles(workspace) as bundles:
            yield Prepared(
                [bundles.make(index).execute(workspace.environment) for index in range(instances)]
            )

    @contextmanager
    def bundles(self, workspace: Workspace) -> Iterator["Bundles"]:
        """Make bundles; on exit remove their containers, cgroups and mounts."""
        base = workspace.directory / "oci"
        files = _tree(workspace.directory / "root")
        if self.rootfs:
            files = rootfs.prepare(self.rootfs, files, workspace.directory)
        made = Bundles(self, self._program(), base, files, workspace)
        with ExitStack() as cleanup:
            if _quirks(self.runtime).needs_cgroup2:
                cleanup.enter_context(_cgroup2_view())
            base.mkdir()
            if self.rootfs:
                cleanup.enter_context(rootfs.returned_loops())
            cleanup.callback(made.remove)
            yield made


@dataclass(frozen=True)
class Bundle:
    """A container that is ready to run: its directory and its command."""

    directory: Path
    argv: tuple[str, ...]

    @property
    def config(self) -> Path:
        """The path of its OCI configuration."""
        return self.directory / "config.json"

    def execute(self, env: dict[str, str]) -> Execute:
        """The command that runs it."""
        return Execute(self.argv, env)


@dataclass(frozen=True)
class Bundles:
    """The containers of a batch; ``files`` become the root file system of each."""

    oci: Oci
    program: str
    base: Path
    files: Path
    workspace: Workspace

    @property
    def _line(self) -> tuple[str, ...]:
        """The runtime and its options, to which a verb is appended."""
        return (self.program, "--root", str(self._state), *_quirks(self.oci.runtime).options)

    @property
    def _state(self) -> Path:
        return self.base / "state"

    def make(
        self,
        index: int,
        process: Process = PAYLOAD,
        *,
        root: Path | None = None,
        network: Path | None = None,
    ) -> Bundle:
        """Make the bundle of one instance.

        ``root`` replaces the files; ``network`` is as in oci_spec.
        """
        directory = self.base / f"{self.workspace.run}-{index}"
        directory.mkdir(parents=True)
        technique = self.oci.rootfs
        mounted = directory / "rootfs" if technique else root or self.files
        cgroup = None
        if _quirks(self.oci.runtime).has_cgroup:
            cgroup = f"/{cgroups.name(self.workspace.run)}/{directory.name}"
        argv = (*self._line, "run", "--bundle", str(directory), directory.name)
        if technique:
            mounted.mkdir()
            argv = rootfs.wrap(technique, self.files, mounted, directory / "scratch", argv)
        bundle = Bundle(directory, argv)
        spec = oci_spec.make(
            process, mounted, self.workspace.environment, cgroup=cgroup, network=network
        )
        bundle.config.write_text(json.dumps(spec))
        return bundle

    def remove(self) -> None:
        """Delete every container, its cgroup, its mounts and its files. Raises Failed."""
        for container in self._state.iterdir() if self._state.is_dir() else ():
            try:
                subprocess.run(
                    [*self._line, "delete", "--force", container.name],
                    capture_output=True, timeout=_DELETE_SECONDS,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise Failed(
                    f"{self.oci.name} has not deleted container {container.name}"
                    f" after {_DELETE_SECONDS:g} s"
                ) from error
        cgroups.remove(cgroups.name(self.workspace.run))
        unmount_below(self.base)
        with suppress(FileNotFoundError):  # an interrupt had the workspace removed first
            shutil.rmtree(self.base)


def _last_words(log: str) -> str:
    """The last message of a runtime: of its line of log, what it is about."""
    lines = [line for line in log.splitlines() if line.strip()]
    message = re.search(r'\bmsg="((?:[^"\\]|\\.)*)"', lines[-1]) if lines else None
    return (message[1] if message else lines[-1] if lines else "")[:_LAST_CHARACTERS]


def _tree(directory: Path) -> Path:
    """The files of the root file system: the payload, mount points, and some bulk to copy."""
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
    """Mount cgroup2 alone at /sys/fs/cgroup for crun, in this mount namespace."""
    run("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
    try:
        yield
    finally:
        run("umount", "--lazy", "/sys/fs/cgroup")
