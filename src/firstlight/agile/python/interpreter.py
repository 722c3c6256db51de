"""A zygote's process, an interpreter in its own sandbox."""

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.resources import files
from itertools import islice
from pathlib import Path

import msgspec

from firstlight.agile import seccomp, verify
from firstlight.agile.function import HANDLER_ERROR, Function, HandlerFailed, NodeFailed
from firstlight.agile.instance import Instance
from firstlight.agile.node import kept
from firstlight.agile.node.instances import ZYGOTE_CALLS, ZYGOTE_PROFILE, Instances
from firstlight.agile.node.kept import KeptZygote
from firstlight.agile.node.process import Keepsake
from firstlight.agile.node.wire import Flag
from firstlight.agile.output import Output, pipes
from firstlight.agile.parts.cgroups import Cgroup, Cgroups, Limits
from firstlight.agile.python.drain import Drain
from firstlight.agile.python.place import Placer
from firstlight.agile.python.sources import Sources, clock
from firstlight.agile.sockets import is_passing, rights
from firstlight.agile.verify import Unconfined
from firstlight.errors import Failed, Unsupported, longer
from firstlight.native import native

INTERPRETER = "/usr/bin/python3"
USER_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")
_FILES_MOST = 1 << 16  # the number of files that a handler imports
_FILES_LEAST = 64  # for an interpreter that imports, and receives a fork's descriptors
_NAMES_MOST = 9  # of files in /tmp
_CONTROL = 3
"""The control socket, after the streams; see ``zygote_main``."""
IMPORT_SECONDS = longer(10.0)
"""The least time limit of an import, which ``timeout`` raises."""
_END_SECONDS = longer(5.0)
_SETTLE_SECONDS = _SEND_SECONDS = longer(10.0)
# Unbuffered: forks would inherit what an import printed, and lose what they print before a crash.
_ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
# Libraries that start threads on import cannot be forked; these start one per CPU by default.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
_SHARED = re.compile(
    rb"\n[^\n ]+ ...s [^\n]*"
)  # begins with the words that are quickest to search for
_log = logging.getLogger(__name__)


class ImportFailed(Failed):
    """A handler cannot be imported from its root by any interpreter, whose output this was."""

    def __init__(self, message: str, hint: str | None = None, output: str = "") -> None:
        super().__init__(message, hint)
        self.output = output


class _Report(msgspec.Struct, frozen=True):
    """A message of an interpreter: loaded files, the end of that list, or a failure."""

    files: list[str] = []
    imported: list[str] | None = None
    failed: str | None = None


_reports: msgspec.json.Decoder[_Report] = msgspec.json.Decoder(_Report)


class Interpreter:
    """A process that imports the handler: an instance of the node.

    ``home`` is the cgroup it was born in, ``identity`` its uid and gid on the host, ``owner`` a
    descriptor of its user namespace, ``filters`` its number of seccomp filters.
    """

    def __init__(
        self, function: Function, groups: Cgroups, instance: Instance, control: socket.socket,
        outputs: list[Output],
    ) -> None:  # fmt: skip
        """Takes over ``control`` and ``outputs``."""
        self._function, self._groups, self.instance = function, groups, instance
        self.filters, self.owner = 0, -1
        self._placer: Placer | None = None
        self._killed = False
        self._harmless: list[bytes] = []  # shared mappings that cannot become writable
        self._control, self._outputs, self._drain = control, outputs, Drain(outputs)
        self._kept: Keepsake | None = None
        self.began = clock()
        self.sources = Sources(function.rootfs, (), ())
        self.digest = ""
        control.setblocking(False)
        self.home: Cgroup | None = None
        self.identity = -1, -1

    @property
    def pid(self) -> int:
        """Its pid on the host."""
        return self.instance.pid

    async def is_lost(self) -> bool:
        """Whether it has been killed from outside, or by the runtime, and its forks with it."""
        if not self.instance.ended.done():
            try:
                verify.check_alive(self.pid)
                return False
            except OSError:  # its end is on its way
                await asyncio.wait((self.instance.ended,), timeout=_END_SECONDS)
        return self.instance.ended.done() and self.instance.ended.result().lost

    @property
    def is_up(self) -> bool:
        """Whether it runs and is not ending."""
        return not self._killed and not self.instance.ended.done()

    def go_home(self) -> None:
        """Move it back into the cgroup that it was born in. Raises OSError."""
        if self.home:
            self._groups.move(self.pid, self.home)

    @property
    def placer(self) -> Placer:
        """The process that makes its forks' sandboxes."""
        assert self._placer is not None
        return self._placer

    @property
    def words(self) -> str | None:
        """The end of its output, as a hint."""
        return f"it wrote: {self._drain.text}" if self._drain.text else None

    def take_over(self, home: Cgroup, kept: Keepsake) -> None:
        """Adopt it from an earlier manager, for which it has imported the handler. Raises OSError,
        Failed.
        """
        self._kept = kept
        self._look(home)
        self.go_home()

    async def settle(self) -> None:
        """Wait until it has done what an earlier manager requested; end it if it does not."""
        try:
            await self.send(b"sync", [])
            async with asyncio.timeout(_SETTLE_SECONDS):
                answer = await asyncio.get_running_loop().sock_recv(self._control, 64)
            if answer != b"sync":
                raise Failed(f"its answer to sync is {answer[:16]!r}")
        except (Failed, OSError, TimeoutError) as error:
            _log.warning("the zygote of %s is ended: %s", self._function.handler, error)
            self.kill()

    def _look(self, home: Cgroup) -> None:
        self.home = home
        self.identity = _mapped(self.pid, "uid"), _mapped(self.pid, "gid")
        self.filters = verify.filters(self.pid)
        self._placer = Placer(self.pid, self._function.scratch, "instance")
        self.owner = os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY)

    def keep(self, instances: Instances) -> None:
        """Have the node keep its descriptors for the next manager."""
        assert self.home
        home = int(self.home.memory.name)
        sources = self.sources
        note = kept.written(KeptZygote(
            self._function, self.instance.number, home, sources.files, sources.directories,
            self.digest,
        ))  # fmt: skip
        self._kept = instances.keep(
            [note, self._control.fileno(), *(output.descriptor for output in self._outputs)]
        )
        os.close(note)

    async def await_import(self) -> None:
        """Wait until it has imported the handler, and has no threads or children left. Raises
        Failed.
        """
        try:
            self._look(self._groups.of(self.pid))
        except (OSError, Failed) as error:
            raise await self._explain_end() from error
        name, seconds = self._function.handler, max(IMPORT_SECONDS, self._function.timeout)
        with native("inside.so").open("rb") as inside, suppress(OSError):
            self._control.sendmsg([seccomp.without(ZYGOTE_CALLS)], rights([inside.fileno()]))
        try:
            async with asyncio.timeout(seconds):
                files, directories = await self._report()
        except TimeoutError:
            raise self._failed(f"importing {name} took more than {seconds} s") from None
        assert self.home
        if others := self._groups.processes(self.home) - {self.pid}:
            names = ", ".join(sorted(filter(None, map(_name, others))))
            raise Unconfined(f"importing {name} left processes running: {names}",
                             "start them in the handler")  # fmt: skip
        await asyncio.to_thread(self.check)
        if left := await asyncio.to_thread(self._left):
            raise Unconfined(f"importing {name} left what a fork would not have: {left}",
                             "open and write it in the handler; run an event loop there by "
                             "asyncio.run. Or register it as MODULE.NAME, called with (event, "
                             "context)")  # fmt: skip
        await asyncio.to_thread(self._take_sources, files, directories)
        if self._drain.text:
            _log.info("importing %s wrote: %s", name, self._drain.text)

    def check(self) -> None:
        """Raise Unconfined if forks would lack or share something of it, Failed if it is gone.

        May take milliseconds.
        """
        name = self._function.handler
        try:
            threads = verify.status(self.pid)["Threads"]
            shared = self._shared()
            if threads != "1" or shared:
                verify.check_alive(self.pid)
        except OSError as error:
            raise Failed(f"the zygote of {name} is gone: {error.strerror}", "try again") from error
        if threads != "1":
            raise Unconfined(f"importing {name} left threads running: a fork would not have them",
                             "start them in the handler; for a numeric library, set the number of "
                             "threads to 1")  # fmt: skip
        if shared:
            what = f"shared memory, which all requests would share: {', '.join(sorted(shared))}"
            remedy = "make it in the handler: mmap, multiprocessing's locks and values"
            raise Unconfined(f"importing {name} left {what}", remedy)

    def _left(self) -> str:
        """What its forks would miss: files and sockets, other than its streams and its control
        socket, and files in /tmp. A handler that is called finds an empty /tmp; with the
        descriptors missing, it would use what has their numbers by then.
        """
        left, serves = set[str](), self._function.serves == "events"
        with suppress(OSError):  # it has ended, which the next request notices
            left |= {target for number, target in self._opened() if number > _CONTROL}
            with os.scandir(f"/proc/{self.pid}/root/tmp") as tmp:
                left |= {f"{entry.name!a} in /tmp" for entry in islice(tmp, _NAMES_MOST) if serves}
        return ", ".join(sorted(left))

    def _opened(self) -> Iterator[tuple[int, str]]:
        """Its descriptors, and what each is of. Raises OSError."""
        for entry in os.scandir(f"/proc/{self.pid}/fd"):
            try:
                target = os.readlink(entry.path)  # noqa: PTH115 (a path costs twice that)
            except OSError:  # it has been closed
                continue
            yield int(entry.name), target

    def _shared(self) -> set[str]:
        """Memory that it can write to and its forks would read. Raises OSError."""
        proc = f"/proc/{self.pid}"
        shared = {target for _, target in self._opened() if target.startswith("/memfd:")}
        mapped = _SHARED.findall(b"\n" + _read(f"{proc}/maps"))
        if mapped != self._harmless:  # a fork may make a read-only mapping writable
            shared |= _writable(_read(f"{proc}/smaps").decode(errors="replace"))
            self._harmless = [] if shared else mapped
        return shared

    async def _report(self) -> tuple[list[str], list[str]]:
        """Read its report after the import: files and search directories."""
        name, files = self._function.handler, list[str]()
        while True:
            try:
                message = await asyncio.get_running_loop().sock_recv(self._control, 1 << 16)
            except OSError:
                message = b""
            if not message:
                raise await self._explain_end()
            try:
                report = _reports.decode(message)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise self._forged(f": {error!r}") from None
            if report.failed is not None:
                raise self._failed(f"cannot import {name}: {report.failed.rstrip()}")
            named = [*report.files, *(report.imported or ())]
            if any("\0" in path for path in named) or not (report.files or report.imported):
                raise self._forged()
            files += report.files
            if len(files) > _FILES_MOST:
                raise HandlerFailed(HANDLER_ERROR, f"{name} imports more than {_FILES_MOST} files")
            if report.imported is not None:
                return files, report.imported
            await asyncio.sleep(0)  # a socket that is never empty would block the loop

    def _failed(self, message: str) -> ImportFailed:
        return ImportFailed(message, self.words, self._drain.text)

    def _forged(self, how: str = "") -> HandlerFailed:
        name = self._function.handler
        return HandlerFailed(
            HANDLER_ERROR,
            f"cannot import {name}: its message violates the protocol{how}",
            self.words,
        )

    def _take_sources(self, files: list[str], directories: list[str]) -> None:
        """Record the files that it has loaded. Blocks."""
        maps = Path(f"/proc/{self.pid}/maps").read_text(errors="replace").splitlines()
        libraries = {line.partition("/")[2] for line in maps if ".so" in line}
        files += [INTERPRETER, *(f"/{path}" for path in libraries)]
        self.sources = Sources(self._function.rootfs, files, directories)

    async def _explain_end(self) -> Failed:
        """The reason why it ended before the handler was imported."""
        name = self._function.handler
        await self._drain.end()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                ended = await self.instance.wait()
            if ended.lost:
                return NodeFailed(f"importing {name} ended: {ended}", "try again")
            if ended.out_of_memory:
                return ImportFailed(f"importing {name} exceeded the memory limit",
                                    f"the limit is {self._function.memory} bytes")  # fmt: skip
            line = self._drain.text.rpartition("\n")[2].strip()
            how = f"{ended}: {line}" if line else str(ended)
            return self._failed(f"importing {name} ended the interpreter: {how}")
        return HandlerFailed(
            HANDLER_ERROR, f"importing {name} closed its control socket", self.words
        )

    async def send(self, message: bytes, descriptors: list[int]) -> None:
        """Send it a request. Raises Failed if it is gone, or does not read."""
        until = time.monotonic() + _SEND_SECONDS
        while True:
            try:
                self._control.sendmsg([message], rights(descriptors))
            except OSError as error:
                if is_passing(error) and time.monotonic() < until:
                    await asyncio.sleep(0.001)
                    continue
                how = "does not read" if is_passing(error) else "is gone"
                raise Failed(f"the zygote of {self._function.handler} {how}") from error
            return

    def kill(self) -> None:
        """End it and its forks."""
        self._killed = True
        self.instance.kill()

    def close(self) -> None:
        """Wait for its end, and release it."""
        self.kill()
        if self._kept:
            self._kept.drop()
        self.leave()

    def leave(self) -> None:
        """Leave it to the next manager."""
        self._control.close()
        self._drain.close()
        if self._placer:
            self._placer.close()
        if self.owner >= 0:
            os.close(self.owner)


async def start(function: Function, instances: Instances, groups: Cgroups) -> Interpreter:
    """Start an interpreter, which imports the handler. Raises Failed, Unsupported."""
    _check_host()
    serves = ("events",) if function.serves == "events" else ()
    code = files("firstlight.agile.python").joinpath("zygote_main.py").read_text()
    process = msgspec.structs.replace(
        function, command=(INTERPRETER, "-c", code, function.handler, *serves), network="none",
        env={**_ENVIRONMENT, **_ONE_THREAD, **function.env},
        files=max(function.files, _FILES_LEAST), pids=limits(function).pids,
    )  # fmt: skip
    tree = await asyncio.to_thread(instances.root, process)
    with ExitStack() as passed, ExitStack() as failed:
        passed.callback(os.close, tree)
        outputs, streams = pipes()
        for output in outputs:
            failed.callback(output.close)
        for descriptor in streams:
            passed.callback(os.close, descriptor)
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        passed.callback(theirs.close)
        failed.callback(control.close)
        try:
            instance = await instances.start_on(
                function, tree, (theirs.fileno(), streams[1], streams[2]), process,
                Flag.USER_NAMESPACE | Flag.ZYGOTE, ZYGOTE_PROFILE,
            )  # fmt: skip
        except Failed as error:
            if ": user: " in error.message:
                raise Failed(f"{error.message}: the host may forbid user namespaces",
                             "see the sysctls user.max_user_namespaces and "
                             "kernel.apparmor_restrict_unprivileged_userns") from error  # fmt: skip
            raise
        failed.pop_all()
    return Interpreter(function, groups, instance, control, outputs)


def limits(function: Function) -> Limits:
    """The limits of a fork, with room for its sandbox's PID 1 and for the forking zygote."""
    return Limits(function.memory, function.cpus, max(function.pids, 2) + 1)


def _check_host() -> None:
    """Raise Unsupported if the host allows no user namespaces, which an interpreter needs."""
    if USER_NAMESPACES.exists() and int(USER_NAMESPACES.read_text()) == 0:
        raise Unsupported("a Python function needs a user namespace, and user.max_user_namespaces "
                          "is 0", "sysctl user.max_user_namespaces=15000")  # fmt: skip


def _mapped(pid: int, kind: str) -> int:
    """The host's id of root in its user namespace, the only user or group there."""
    return int(Path(f"/proc/{pid}/{kind}_map").read_text().split()[1])


def _writable(smaps: str) -> set[str]:
    """Shared mappings that are writable, or can be made so. Format: proc_pid_smaps(5)."""
    writable, words = set(), [""]
    for line in smaps.splitlines():
        if _MAPPING.match(line):
            words = line.split(maxsplit=5)
        elif line.startswith("VmFlags:") and {"mw", "sh"} <= set(line.split()):
            writable.add(words[5] if len(words) > 5 else "a mapping")
    return writable


def _read(path: str) -> bytes:
    with open(path, "rb", 0) as file:  # noqa: PTH123 (a path, and text, cost more than the kernel)
        return file.read()


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""
