"""Containers and their processes, by containerd's Task API.

Each has a record on disk, from which the next server continues.
"""

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from firstlight.agile.shim import bundle, usage
from firstlight.agile.shim.events import Events
from firstlight.agile.shim.keeper import Keeper
from firstlight.agile.shim.mounts import mount, unmount
from firstlight.agile.shim.oci import OciRuntime
from firstlight.agile.shim.sandboxes import Sandboxes, started
from firstlight.agile.shim.streams import Streams
from firstlight.agile.shim.ttrpc import Code, Message, Refused, messages, now, timestamp
from firstlight.errors import Failed, longer
from firstlight.files import write_whole

CREATED, RUNNING, STOPPED, PAUSED = 1, 2, 3, 4
"""containerd.v1.types.Status."""
_END_SECONDS = longer(60.0)
_OOM_SECONDS = longer(2.0)
_log = logging.getLogger(__name__)


class Process(msgspec.Struct):
    """A container's first process, or one by Exec. Times are ns since 1970."""

    exec_id: str = ""
    pid: int = 0
    started: str = ""
    status: int = 0
    exit_status: int = 0
    exited_at: int = 0
    terminal: bool = False
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    spec: bytes = b""


class Container(msgspec.Struct):
    """A container's record on disk. ``cgroups`` are directories, by controller."""

    namespace: str
    id: str
    bundle: str
    first: Process
    others: dict[str, Process] = {}
    cgroups: dict[str, str] = {}
    rootfs: str = ""
    shares_pids: bool = False
    has_start_hooks: bool = False
    has_stop_hooks: bool = False
    systemd: bool = False
    oom_kills: int = 0

    @property
    def name(self) -> str:
        """Its name for the OCI runtime, unique among containerd's namespaces."""
        return self.id if self.namespace == "k8s.io" else f"{self.namespace}-{self.id}"


class Live:
    """A process's state while the server runs."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.ended = asyncio.Event()
        self.pidfd = -1


class Tasks:
    """All containers; ``directory`` has a file for each."""

    def __init__(
        self, directory: Path, runtime: OciRuntime, keeper: Keeper, events: Events, pods: Sandboxes
    ) -> None:
        self._directory, self._runtime, self._keeper = directory, runtime, keeper
        self._events, self._pods = events, pods
        self.all: dict[tuple[str, str], Container] = {}
        self._live: dict[tuple[str, str, str], Live] = {}
        self._running: dict[int, tuple[Container, Process]] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._spawning = 0
        self._early: dict[int, tuple[int, int]] = {}
        self._ends: set[asyncio.Task[None]] = set()

    # Records

    def _file(self, container: Container) -> Path:
        return self._directory / container.namespace / f"{container.id}.json"

    def _save(self, container: Container) -> None:
        file = self._file(container)
        file.parent.mkdir(exist_ok=True)
        write_whole(file, msgspec.json.encode(container))

    def load(self) -> None:
        """Take over the previous server's containers."""
        for file in self._directory.glob("*/*.json"):
            container = msgspec.json.decode(file.read_bytes(), type=Container)
            self.all[container.namespace, container.id] = container
            for process in (container.first, *container.others.values()):
                live = self._attach(container, process)
                if process.status in (RUNNING, CREATED, PAUSED) and process.pid:
                    self._running[process.pid] = container, process
                    with suppress(OSError):
                        live.pidfd = os.pidfd_open(process.pid)
                    live.streams.resume()
                elif process.status == STOPPED:
                    live.ended.set()

    def processes(self) -> Iterator[Process]:
        """All processes of all containers."""
        for container in self.all.values():
            yield container.first
            yield from container.others.values()

    def lock(self, namespace: str, identity: str) -> asyncio.Lock:
        """The lock for calls that change a container."""
        return self._locks.setdefault((namespace, identity), asyncio.Lock())

    def get(self, namespace: str, identity: str) -> Container:
        """The container. Raises Refused."""
        container = self.all.get((namespace, identity))
        if container is None:
            raise Refused(Code.NOT_FOUND, f"container {identity} is not known")
        return container

    def process(self, container: Container, exec_id: str) -> Process:
        """Its first process, or one by Exec. Raises Refused."""
        process = container.others.get(exec_id) if exec_id else container.first
        if process is None:
            raise Refused(Code.NOT_FOUND, f"process {exec_id} of {container.id} is not known")
        return process

    def live(self, container: Container, process: Process) -> Live:
        """What belongs to a process."""
        return self._live[container.namespace, container.id, process.exec_id]

    def _attach(self, container: Container, process: Process) -> Live:
        key = container.namespace, container.id, process.exec_id
        if key in self._live:
            return self._live[key]
        names = process.stdin, process.stdout, process.stderr
        streams = Streams(self._keeper, "/".join(key), names, terminal=process.terminal)
        live = self._live[key] = Live(streams)
        return live

    def _forget(self, container: Container, process: Process) -> None:
        live = self._live.pop((container.namespace, container.id, process.exec_id))
        live.streams.close()
        if live.pidfd >= 0:
            os.close(live.pidfd)

    # Making

    async def create(self, namespace: str, request: Message) -> int:
        """Make a container that waits to be started; returns its pid. Raises Refused."""
        key = namespace, request.id
        if key in self.all:
            raise Refused(Code.ALREADY_EXISTS, f"container {request.id} exists")
        if request.checkpoint:
            raise Refused(
                Code.INVALID_ARGUMENT, "checkpoints are not supported by firstlight's shim"
            )
        first = Process(terminal=request.terminal, stdin=request.stdin, stdout=request.stdout,
                        stderr=request.stderr)  # fmt: skip
        container = Container(namespace, request.id, request.bundle, first)
        self.all[key] = container
        try:
            await self._create(container, request)
        except (OSError, ValueError, Failed, Refused) as error:
            await self.undo(container)
            raise _refused(error) from error
        self._events.publish(namespace, messages.TaskCreate(
            container_id=container.id, bundle=container.bundle, rootfs=request.rootfs,
            io=messages.TaskIO(stdin=first.stdin, stdout=first.stdout, stderr=first.stderr,
                               terminal=first.terminal),
            pid=first.pid,
        ))  # fmt: skip
        return first.pid

    async def _create(self, container: Container, request: Message) -> None:
        directory = Path(container.bundle)
        given = bundle.read(directory)
        container.shares_pids, container.systemd = given.shares_pids, given.systemd
        container.has_start_hooks = given.has_start_hooks
        container.has_stop_hooks = given.has_stop_hooks
        with suppress(FileNotFoundError):
            name = (directory / "sandbox").read_text()
            if pod := self._pods.all.get((container.namespace, name)):
                bundle.join(directory, self._pods.home(pod.record), has_shm=pod.record.has_shm)
        if request.rootfs:
            container.rootfs = str(given.rootfs)
        self._save(container)
        for each in request.rootfs:
            given.rootfs.mkdir(exist_ok=True)
            target = given.rootfs / each.target.lstrip("/")
            mount(each.type, each.source, target, each.options)
        words = ["--bundle", container.bundle]
        async with self._runtime.turn():
            await self._spawn(container, container.first, "create", words, [container.name])
        container.first.status = CREATED
        container.cgroups = usage.of_process(container.first.pid)
        self._save(container)
        self._catch_up()

    async def _spawn(
        self, container: Container, process: Process, verb: str, words: list[str], last: list[str]
    ) -> None:
        """Run a verb that makes a process with its streams, and watch the process."""
        live = self._attach(container, process)
        file = self._runtime.scratch / f"{os.getpid()}-{id(process)}.pid"
        console = file.with_suffix(".sock")
        words = [*words, "--pid-file", str(file)]
        if process.terminal:
            live.streams.listen(console)
            words += ["--console-socket", str(console)]
        self._spawning += 1
        try:
            streams = live.streams.open()
            await self._runtime.call(verb, *words, *last, log=file.stem, streams=streams,
                                     systemd=container.systemd)  # fmt: skip
            process.pid = int(file.read_text())
            process.started = started(process.pid)
            with suppress(ProcessLookupError):
                live.pidfd = os.pidfd_open(process.pid)
            self._running[process.pid] = container, process
            await live.streams.started()
        finally:
            self._spawning -= 1
            file.unlink(missing_ok=True)

    async def undo(self, container: Container) -> None:
        """End a container and remove all of it, without an event. Raises Failed."""
        with suppress(Refused):
            await self._runtime.call("delete", "--force", container.name, log=container.name,
                                     systemd=container.systemd)  # fmt: skip
        await self._remove(container)
        self._catch_up()

    async def start(self, container: Container, exec_id: str) -> int:
        """Start a process that waits; returns its pid. Raises Refused."""
        process = self.process(container, exec_id)
        if exec_id:
            await self._start_exec(container, process)
            event = messages.TaskExecStarted(
                container_id=container.id, exec_id=exec_id, pid=process.pid
            )
        else:
            if process.status != CREATED:
                raise Refused(Code.FAILED_PRECONDITION, f"container {container.id} is not created")
            await self._start_first(container)
            event = messages.TaskStart(container_id=container.id, pid=process.pid)
        if process.status == CREATED:
            process.status = RUNNING
        self._save(container)
        self._events.publish(container.namespace, event)
        self._catch_up()
        return process.pid

    async def _start_first(self, container: Container) -> None:
        starting = asyncio.ensure_future(
            self._runtime.start(container.name, has_hooks=container.has_start_hooks,
                                systemd=container.systemd)
        )  # fmt: skip
        ended = asyncio.ensure_future(self.live(container, container.first).ended.wait())
        await asyncio.wait((starting, ended), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not starting.done():
            starting.cancel()
            raise Refused(Code.UNKNOWN, "the container has ended before it was started")
        try:
            starting.result()
        except OSError as error:
            raise _refused(error) from error

    async def exec(self, container: Container, request: Message) -> None:
        """Record a process to be started. Raises Refused."""
        if request.exec_id in container.others:
            raise Refused(Code.ALREADY_EXISTS, f"process {request.exec_id} exists")
        if container.first.status == STOPPED:
            raise Refused(Code.FAILED_PRECONDITION, f"container {container.id} has ended")
        process = Process(request.exec_id, terminal=request.terminal, stdin=request.stdin,
                          stdout=request.stdout, stderr=request.stderr, spec=request.spec.value,
                          status=CREATED)  # fmt: skip
        container.others[request.exec_id] = process
        self._attach(container, process)
        self._save(container)
        self._events.publish(container.namespace, messages.TaskExecAdded(
            container_id=container.id, exec_id=request.exec_id))  # fmt: skip

    async def _start_exec(self, container: Container, process: Process) -> None:
        if process.status != CREATED or process.pid:
            raise Refused(Code.FAILED_PRECONDITION, f"process {process.exec_id} was started")
        if container.first.status not in (RUNNING, CREATED):
            raise Refused(Code.FAILED_PRECONDITION, f"container {container.id} is not running")
        file = self._runtime.scratch / f"{os.getpid()}-{id(process)}.process"
        file.write_bytes(process.spec)
        try:
            words = ["--process", str(file), "--detach"]
            await self._spawn(container, process, "exec", words, [container.name])
        except (OSError, ValueError, Refused) as error:
            process.status, process.exit_status, process.exited_at = STOPPED, 255, now()
            self.live(container, process).ended.set()
            self._save(container)
            raise _refused(error) from error
        finally:
            file.unlink(missing_ok=True)

    # Ends

    def exited(self, pid: int, status: int, when: int) -> None:
        """Handle the exit of a process that the keeper reaped."""
        if pid in self._running:
            container, process = self._running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            process.exit_status = code if code >= 0 else 128 - code
            process.exited_at = when
            task = asyncio.create_task(self._end(container, process))
            self._ends.add(task)
            task.add_done_callback(self._ends.discard)
        elif self._spawning:
            self._early[pid] = status, when
        else:
            self._keeper.noted(pid)

    def _catch_up(self) -> None:
        """Handle exits that came while their process was being made; others are not ours."""
        for pid in [each for each in self._early if each in self._running]:
            self.exited(pid, *self._early.pop(pid))
        if not self._spawning:
            for pid in self._early:
                self._keeper.noted(pid)
            self._early.clear()

    async def _end(self, container: Container, process: Process) -> None:
        """Do what follows a process's exit, after its streams have ended."""
        live = self.live(container, process)
        if process is container.first and container.shares_pids:
            usage.kill(container.cgroups)
        await live.streams.drain()
        kills = usage.oom_kills(container.cgroups)
        if kills > container.oom_kills:
            container.oom_kills = kills
            event = messages.TaskOOM(container_id=container.id)
            with suppress(TimeoutError):  # containerd must learn of it before the exit
                async with asyncio.timeout(_OOM_SECONDS):
                    await asyncio.shield(self._events.publish(container.namespace, event))
        process.status = STOPPED
        if self.all.get((container.namespace, container.id)) is not container:  # undone meanwhile
            self._keeper.noted(process.pid)
            live.ended.set()
            return
        with suppress(OSError):
            self._save(container)
        self._keeper.noted(process.pid)
        self._events.publish(container.namespace, messages.TaskExit(
            container_id=container.id, id=process.exec_id or container.id, pid=process.pid,
            exit_status=process.exit_status, exited_at=timestamp(process.exited_at),
        ))  # fmt: skip
        live.ended.set()

    async def kill(self, container: Container, request: Message) -> None:
        """Send a signal. Raises Refused."""
        process = self.process(container, request.exec_id)
        live = self.live(container, process)
        if process.status == STOPPED or live.pidfd < 0:
            raise Refused(Code.NOT_FOUND, "process already finished")
        number = request.signal or signal.SIGTERM
        if request.all and not request.exec_id:
            usage.kill(container.cgroups, number)
        try:
            signal.pidfd_send_signal(live.pidfd, number)
        except ProcessLookupError as error:
            raise Refused(Code.NOT_FOUND, "process already finished") from error
        except OSError as error:
            raise Refused(Code.INVALID_ARGUMENT, f"signal {number}: {error.strerror}") from error

    async def delete(self, container: Container, exec_id: str) -> Process:
        """Remove a process that has ended; the first takes its container along. Raises Refused."""
        process = self.process(container, exec_id)
        if process.status not in (STOPPED, CREATED) or (process.pid and process.status == RUNNING):
            raise Refused(Code.FAILED_PRECONDITION, f"{exec_id or container.id} is running")
        if exec_id:
            if process.pid and process.status != STOPPED:
                raise Refused(Code.FAILED_PRECONDITION, f"process {exec_id} is running")
            self._forget(container, process)
            del container.others[exec_id]
            self._save(container)
            return process
        if process.status == CREATED:
            await self.end(container)
        await self._delete(container)
        self._events.publish(container.namespace, messages.TaskDelete(
            container_id=container.id, pid=process.pid, exit_status=process.exit_status,
            exited_at=timestamp(process.exited_at),
        ))  # fmt: skip
        return process

    async def end(self, container: Container) -> None:
        """Kill a container's processes and wait until the first has ended. Raises Refused."""
        usage.kill(container.cgroups)
        live = self._live.get((container.namespace, container.id, ""))
        if live is None or container.first.status == STOPPED:
            return
        if live.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(live.pidfd, signal.SIGKILL)
        try:
            async with asyncio.timeout(_END_SECONDS):
                await live.ended.wait()
        except TimeoutError as error:
            raise Refused(Code.INTERNAL, f"container {container.id} does not end") from error

    async def _delete(self, container: Container) -> None:
        """Delete a container as the runtime does. For one that has ended, that is removing its
        cgroups and its directory; only hooks and systemd units need the runtime itself.
        """
        if container.has_stop_hooks or container.systemd:
            await self._runtime.call("delete", "--force", container.name, log=container.name,
                                     systemd=container.systemd)  # fmt: skip
        await self._remove(container)

    async def _remove(self, container: Container) -> None:
        if container.rootfs:
            await asyncio.to_thread(unmount, Path(container.rootfs))  # waits for the kernel
        for process in (*container.others.values(), container.first):
            with suppress(KeyError):
                self._forget(container, process)
            self._running.pop(process.pid, None)
        usage.remove(container.cgroups.values())
        shutil.rmtree(self._runtime.state(container.name), ignore_errors=True)
        self._file(container).unlink(missing_ok=True)
        self.all.pop((container.namespace, container.id), None)
        self._locks.pop((container.namespace, container.id), None)

    # Verbs of the runtime for a running container

    async def pause(self, container: Container, *, resume: bool = False) -> None:
        """Freeze or thaw a container. Raises Refused."""
        verb = "resume" if resume else "pause"
        await self._runtime.call(verb, container.name, log=container.name,
                                 systemd=container.systemd)  # fmt: skip
        container.first.status = RUNNING if resume else PAUSED
        self._save(container)
        kind = messages.TaskResumed if resume else messages.TaskPaused
        self._events.publish(container.namespace, kind(container_id=container.id))

    async def update(self, container: Container, resources: bytes) -> None:
        """Change a container's limits; ``resources`` is LinuxResources in JSON. Raises Refused."""
        file = self._runtime.scratch / f"{os.getpid()}-{id(container)}.resources"
        file.write_bytes(resources)
        try:
            await self._runtime.call("update", "--resources", str(file), container.name,
                                     log=container.name, systemd=container.systemd)  # fmt: skip
        finally:
            file.unlink(missing_ok=True)


def _refused(error: Exception) -> Refused:
    return error if isinstance(error, Refused) else Refused(Code.INTERNAL, str(error))
