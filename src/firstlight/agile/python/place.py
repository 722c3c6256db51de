"""Sandboxes of a zygote's forks, made from parts by ``native/agile/place.c``."""

import asyncio
import os
import signal
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from struct import Struct

from firstlight.agile import verify
from firstlight.agile.function import NodeFailed
from firstlight.agile.helper import Helper
from firstlight.agile.network.networks import Network
from firstlight.agile.node.process import Keepsake
from firstlight.agile.parts.cgroups import Cgroup, Cgroups
from firstlight.errors import Failed, longer

_ZYGOTE = Struct("=Q64s")
_REPORT = Struct("=ii")
_STEPS = ("clone", "cgroup", "network", "mount", "host name", "rights")
_SECONDS = longer(10.0)
_ENTERED = ("pid", "mnt", "net", "ipc", "uts", "cgroup")


@dataclass(eq=False)
class Place:
    """A sandbox with a trusted PID 1; it lives until ``hold`` is closed.

    ``left`` is set while the zygote is outside its cgroup.
    """

    pid: int
    pidfd: int
    hold: socket.socket
    network: Network
    cgroup: Cgroup
    generation: int
    left: asyncio.Event = field(default_factory=asyncio.Event)
    kept: Keepsake | None = None

    def __post_init__(self) -> None:
        self.left.set()

    @property
    def is_killed(self) -> bool:
        """Whether its PID 1 is ending, although the runtime has not ended it."""
        if self.hold.fileno() < 0:
            return False
        try:
            verify.check_alive(self.pid)
        except OSError:
            return True
        return False

    @property
    def is_alive(self) -> bool:
        """Whether its PID 1 is alive."""
        with suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, 0)
            return True
        return False

    def open(self) -> list[int]:
        """Descriptors of its namespaces to send to the zygote, the PID namespace first. Raises
        OSError.
        """
        opened: list[int] = []
        try:
            for name in _ENTERED:
                opened += [os.open(f"/proc/{self.pid}/ns/{name}", os.O_RDONLY)]
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return opened

    def expected(self, uid: int, gid: int, filters: int) -> verify.Expected:
        """The confinement that a fork in it must have. Raises OSError."""
        return verify.Expected(
            uid, gid, filters, verify.namespaces(self.pid), verify.cgroups(self.pid)
        )

    def end(self) -> None:
        """End all its processes; keeps its parts."""
        if self.hold.fileno() >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.hold.close()
            os.close(self.pidfd)
            if self.kept:
                self.kept.drop()


class Placer:
    """The process that makes a zygote's places; it ends with the zygote."""

    def __init__(self, zygote: int, scratch: int, host_name: str) -> None:
        """``zygote`` is its pid, ``scratch`` the bytes of /tmp. Raises Failed."""
        self._helper = Helper("place", lambda *_: None, lambda: None)
        spaces: list[int] = []
        try:
            for name in ("pid", "mnt", "user"):
                spaces += [os.open(f"/proc/{zygote}/ns/{name}", os.O_RDONLY)]
            self._helper.send(_ZYGOTE.pack(scratch, host_name.encode()), spaces)
        except OSError as error:
            self.close()
            raise Failed(f"the interpreter ended at its start: {error.strerror}") from error
        finally:
            for descriptor in spaces:
                os.close(descriptor)

    async def make(
        self, groups: Cgroups, network: Network, cgroup: Cgroup, generation: int
    ) -> Place:
        """Make a sandbox from these parts. Raises NodeFailed."""
        with ExitStack() as failed:
            hold, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            failed.callback(hold.close)
            hold.setblocking(False)
            with theirs, groups.entry_fds(cgroup) as entry_fds:
                self._helper.send(b"\0", [theirs.fileno(), network.descriptor, *entry_fds])
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(_SECONDS):
                    report = await loop.sock_recv(hold, _REPORT.size)
            except TimeoutError:
                raise NodeFailed(f"a fork's sandbox was not ready in {_SECONDS:g} s") from None
            except OSError:
                report = b""
            if not report:
                raise NodeFailed("the maker of forks' sandboxes has ended", "try again")
            step, error = _REPORT.unpack(report)
            if error:
                raise NodeFailed(
                    f"cannot make a fork's sandbox: {_STEPS[step]}: {os.strerror(error)}"
                )
            try:
                [pid] = groups.processes(cgroup)
                pidfd = os.pidfd_open(pid)
            except (OSError, ValueError) as error:
                raise NodeFailed("a fork's sandbox ended at once", "try again") from error
            failed.pop_all()
        return Place(pid, pidfd, hold, network, cgroup, generation)

    def close(self) -> None:
        """End it; keeps its places.

        It waits for its own child in the zygote's PID namespace, which does not end before the
        child is reaped. After a kill, the host's PID 1 would reap the child at some time.
        """
        self._helper.leave()
