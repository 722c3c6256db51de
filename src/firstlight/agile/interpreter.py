"""A zygote's process: an interpreter in its own sandbox."""

import asyncio
import json
import logging
import os
import socket
from contextlib import ExitStack, suppress
from importlib.resources import files
from pathlib import Path

from firstlight.agile import seccomp, verify, wire
from firstlight.agile.cgroups import Cgroup, Cgroups
from firstlight.agile.drain import Drain
from firstlight.agile.function import Function
from firstlight.agile.output import pipes
from firstlight.agile.place import Placer
from firstlight.agile.spawner import Child, Spawner, describe
from firstlight.agile.wire import Flag
from firstlight.errors import Failed, Unsupported
from firstlight.native import native

ZYGOTE_PROFILE = 1
ZYGOTE_CALLS = ("setns",)
INTERPRETER = "/usr/bin/python3"
USER_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")
_FILES_LEAST = 64  # for an interpreter that imports, and receives a fork's descriptors
_END_SECONDS = 5.0
# Libraries that start threads on import cannot be forked; these start one per CPU by default.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_log = logging.getLogger(__name__)


class Interpreter:
    """A process that has imported the handler, or is about to.

    ``owner`` is a descriptor of its user namespace, ``filters`` its number of seccomp filters.
    """

    def __init__(
        self, function: Function, groups: Cgroups, cgroup: Cgroup, spawner: Spawner, template: int,
        network: int,
    ) -> None:  # fmt: skip
        """Raises Failed. The descriptors may be closed when this returns."""
        self._function, self._groups, self.cgroup = function, groups, cgroup
        self.filters, self.owner = 0, -1
        self._placer: Placer | None = None
        self._killed = False
        flags = Flag.USER_NAMESPACE | Flag.ZYGOTE
        flags |= Flag.CLONE_INTO if groups.unified else Flag(0)
        code = files("firstlight.agile").joinpath("zygote_main.py").read_text()
        env = {"PYTHONDONTWRITEBYTECODE": "1", **_ONE_THREAD, **function.env}
        with ExitStack() as passed, ExitStack() as failed:
            outputs, streams = pipes()
            for descriptor in streams:
                passed.callback(os.close, descriptor)
            uid, _ = function.identity()
            for descriptor in streams[1:]:
                os.fchown(descriptor, uid, -1)  # otherwise /dev/stdout cannot be opened
            self._drain = Drain(outputs)
            failed.callback(self._drain.close)
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            passed.callback(theirs.close)
            failed.callback(self._control.close)
            self._control.setblocking(False)
            self.child: Child = spawner.spawn(
                wire.sandbox(
                    flags, ZYGOTE_PROFILE, *function.identity(),
                    max(function.files, _FILES_LEAST), tmpfs(function), "zygote",
                ),
                [template, network, *cgroup.descriptors],
            )  # fmt: skip
            self.child.wake(
                wire.start((INTERPRETER, "-c", code, function.handler), env, function.directory),
                [theirs.fileno(), streams[1], streams[2]],
            )
            failed.pop_all()

    @property
    def pid(self) -> int:
        """Its pid on the host."""
        return self.child.pid

    @property
    def is_up(self) -> bool:
        """Whether it runs and is not ending."""
        return not self._killed and not self.child.ended.done()

    @property
    def placer(self) -> Placer:
        """The maker of its forks' sandboxes."""
        assert self._placer is not None
        return self._placer

    @property
    def words(self) -> str | None:
        """The end of its output, as a hint."""
        return f"it wrote: {self._drain.text}" if self._drain.text else None

    async def imported(self) -> None:
        """Wait until it has imported the handler and left nothing behind. Raises Failed."""
        await self._runs()
        try:
            self.filters = verify.filters(self.pid)
            self._placer = Placer(self.pid, tmpfs(self._function), "instance")
            self.owner = os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY)
        except (OSError, Failed) as error:
            raise await self._died() from error
        name, seconds = self._function.handler, self._function.timeout
        with native("inside.so").open("rb") as inside, suppress(OSError):
            self._control.sendmsg([seccomp.program()], wire.rights([inside.fileno()]))
        try:
            message = await asyncio.wait_for(
                asyncio.get_running_loop().sock_recv(self._control, 1 << 16), seconds
            )
        except TimeoutError:
            raise Failed(f"importing {name} took more than {seconds} s", self.words) from None
        except OSError:
            message = b""
        if not message:
            raise await self._died()
        if failed := _failed(message):
            raise Failed(f"cannot import {name}: {failed.rstrip()}", self.words)
        if left := _left_by_import(self.pid, self._groups.processes(self.cgroup)):
            raise Failed(f"importing {name} left {left[0]}", left[1])
        if self._drain.text:
            _log.info("importing %s wrote: %s", name, self._drain.text)

    async def _runs(self) -> None:
        try:
            await self.child.runs
            await self.child.made
        except Failed as error:
            if ": user: " in error.message:
                raise Failed(f"{error.message}: the host may forbid user namespaces",
                             "see the sysctls user.max_user_namespaces and "
                             "kernel.apparmor_restrict_unprivileged_userns") from error  # fmt: skip
            raise

    async def _died(self) -> Failed:
        """Why it ended before the handler was imported."""
        name = self._function.handler
        await self._drain.end()
        with suppress(TimeoutError):
            news = await asyncio.wait_for(asyncio.shield(self.child.ended), _END_SECONDS)
            if self._groups.ran_out_of_memory(self.cgroup):
                return Failed(f"importing {name} exceeded the memory limit",
                              f"the limit is {self._function.memory} bytes")  # fmt: skip
            how = describe(news.status)
            return Failed(f"importing {name} ended the interpreter: {how}", self.words)
        return Failed(f"importing {name} closed its control socket", self.words)

    async def send(self, message: bytes, descriptors: list[int]) -> None:
        """Send it a request. Raises Failed if it is gone."""
        while True:
            try:
                self._control.sendmsg([message], wire.rights(descriptors))
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            except OSError as error:
                raise Failed(f"the zygote of {self._function.handler} is gone") from error
            return

    def kill(self) -> None:
        """End it and its forks."""
        self._killed = True
        self.child.kill()

    def close(self) -> None:
        """The same, and release its parts, except its cgroup."""
        self.kill()
        self._control.close()
        self._drain.close()
        if self._placer:
            self._placer.close()
        if self.owner >= 0:
            os.close(self.owner)


def tmpfs(function: Function) -> str:
    """The mount options of its /tmp."""
    return f"size={function.scratch},nr_inodes=65536,mode=1777"


def check_host() -> None:
    """Raise Unsupported if the host allows no user namespaces, which an interpreter needs."""
    if USER_NAMESPACES.exists() and int(USER_NAMESPACES.read_text()) == 0:
        raise Unsupported("a Python function needs a user namespace, and user.max_user_namespaces "
                          "is 0", "sysctl user.max_user_namespaces=15000")  # fmt: skip


def _failed(message: bytes) -> str | None:
    try:
        said = json.loads(message)
        return None if "imported" in said else str(said["failed"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return f"its message violates the protocol: {error!r}"


def _left_by_import(zygote: int, pids: set[int]) -> tuple[str, str] | None:
    """What an import left that forks would lack or share, and the remedy."""
    if others := sorted(pids - {zygote}):
        names = ", ".join(sorted(filter(None, map(_name, others))))
        return f"processes running: {names}", "start them in the handler"
    if verify.status(zygote)["Threads"] != "1":
        return ("threads running: a fork would not have them", "start them in the handler; for a "
                "numeric library, set the number of threads to 1")  # fmt: skip
    shared = set()
    for line in Path(f"/proc/{zygote}/maps").read_text(errors="replace").splitlines():
        _, rights, _, _, _, *path = line.split(maxsplit=5)
        if rights[1] == "w" and rights[3] == "s":
            shared.add(path[0] if path else "a mapping")
    for link in Path(f"/proc/{zygote}/fd").iterdir():
        with suppress(OSError):
            shared |= {target for target in [str(link.readlink())] if target.startswith("/memfd:")}
    if shared:
        return (f"shared memory, which all requests would share: {', '.join(sorted(shared))}",
                "make it in the handler: mmap, multiprocessing's locks and values")  # fmt: skip
    return None


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
