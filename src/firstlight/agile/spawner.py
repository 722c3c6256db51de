"""The native spawner and its children, as the runtime sees them."""

import asyncio
import os
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress

from firstlight.agile import wire
from firstlight.agile.helper import Helper
from firstlight.agile.wire import News, Report, Step
from firstlight.errors import Failed

_NO_SANDBOX = bytes(wire.SANDBOX.size)


class Child:
    """One process that the spawner made: it waits one step before exec, runs, and ends.

    ``stamps`` are ns of CLOCK_MONOTONIC by step. ``asked`` is when the spawner read the request.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            self._control, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise Failed(f"cannot open an instance's control socket: {error.strerror}",
                         "raise the limit of open files, or stop instances") from error  # fmt: skip
        self._control.setblocking(False)
        self._executing = False
        self.stamps: dict[Step, int] = {}
        self.pid = self.pidfd = -1
        self.made: asyncio.Future[None] = self._loop.create_future()
        self.waits: asyncio.Future[None] = self._loop.create_future()
        self.runs: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[News] = self._loop.create_future()
        for future in (self.made, self.waits, self.runs):
            future.add_done_callback(_seen)
        # By number: asyncio would write out the socket, with its addresses.
        self._loop.add_reader(self._control.fileno(), self._hear)

    @property
    def theirs(self) -> int:
        """The child's end of its control socket, to be sent with the request."""
        return self._theirs.fileno()

    def wake(self, message: bytes, streams: Sequence[int]) -> None:
        """Send what to execute, with its standard streams. ``runs`` is done when it does."""
        try:
            self._control.sendmsg([message], wire.rights(list(streams)))
        except OSError as error:
            self._fail(Failed(f"cannot wake the instance: {error.strerror}"))

    def kill(self) -> None:
        """End it and all below it, at once."""
        with suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            elif self.pid > 0 and not self.ended.done():  # no descriptor was left for it
                os.kill(self.pid, signal.SIGKILL)
        self._end_control()

    def is_made(self, news: News, pidfd: int) -> None:
        """The spawner has cloned it."""
        self._theirs.close()
        self.pid, self.pidfd = news.pid, pidfd
        self.stamps[Step.CLONE] = news.asked
        if not self.made.done():
            self.made.set_result(None)

    def is_refused(self, error: int) -> None:
        """The spawner could not."""
        self._theirs.close()
        self._fail(Failed(f"cannot clone an instance: {os.strerror(error)}",
                          "more pids, or fewer instances"))  # fmt: skip
        self._finish(News(wire.Said.EXITED, -1, error, 0, 0, 0, 0, 0, 0))

    def is_ended(self, news: News) -> None:
        """It has ended, and with it all processes below it."""
        self._hear()
        self._end_control()
        self._fail(Failed(f"the instance ended before it ran: {describe(news.status)}"))
        self._finish(news)

    def is_lost(self) -> None:
        """The spawner has ended, and no one tells when its child has: the child's pidfd does."""
        self._theirs.close()
        self.kill()
        self._fail(Failed("the spawner was killed", "try again"))
        if self.pidfd < 0:
            self._finish(News(wire.Said.EXITED, -1, 0, signal.SIGKILL, 0, 0, 0, 0, 0))
        else:
            self._loop.add_reader(self.pidfd, self._is_gone)

    def _is_gone(self) -> None:
        self._loop.remove_reader(self.pidfd)
        self._finish(News(wire.Said.EXITED, self.pid, 0, signal.SIGKILL, 0, 0, 0, 0, 0))

    def _finish(self, news: News) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if not self.ended.done():
            self.ended.set_result(news)

    def _hear(self) -> None:
        while self._control.fileno() >= 0:
            try:
                message = self._control.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._end_control()
                if self._executing and not self.runs.done():
                    self.runs.set_result(None)
                return
            with suppress(struct.error, ValueError):
                self._reported(wire.report(message))

    def _reported(self, report: Report) -> None:
        self.stamps.update(report.stamps)
        if report.error:
            self._executing = False
            step = report.step.name.lower().replace("_", " ")
            self._fail(Failed(f"cannot start an instance: {step}: {os.strerror(report.error)}"))
        elif report.step is Step.WAIT and not self.waits.done():
            self.waits.set_result(None)
        elif report.step is Step.EXEC:
            self._executing = True

    def _fail(self, error: Failed) -> None:
        for future in (self.made, self.waits, self.runs):
            if not future.done():
                future.set_exception(error)

    def _end_control(self) -> None:
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()


class Spawner:
    """The process that makes children. ``lost`` is called if it goes while it is wanted."""

    def __init__(self, profiles: Sequence[bytes], lost: Callable[[], None]) -> None:
        self._lost = lost
        self._asked: dict[int, Child] = {}
        self._alive: dict[int, Child] = {}
        self._serial = 0
        self._helper = Helper("spawn", self._heard, self._ended)
        self.pid = self._helper.pid
        for number, program in enumerate(profiles):
            self.load(number, program)

    def load(self, number: int, program: bytes) -> None:
        """Give it the compiled seccomp profile that the sandboxes of this number get."""
        sandbox = wire.sandbox(wire.Flag(0), number, 0, 0, 0, "", "")
        head = wire.REQUEST.pack(wire.Verb.PROFILE, len(program) // 8, 0)
        self._helper.send(head + sandbox + program)

    def spawn(
        self, sandbox: bytes, parts: Sequence[int], wake: tuple[bytes, Sequence[int]] | None = None
    ) -> Child:
        """Make a sandbox of parts: the root's template, the network, the cgroups.

        With ``wake``, the words of ``Child.wake``, it finds its start waiting and never waits.
        """
        return self._request(wire.Verb.SPAWN, sandbox, parts, wake)

    def template(self, tree: int) -> Child:
        """Make a process whose mount namespace is a template, and which then waits."""
        return self._request(wire.Verb.TEMPLATE, _NO_SANDBOX, [tree])

    def _request(
        self,
        verb: wire.Verb,
        sandbox: bytes,
        parts: Sequence[int],
        wake: tuple[bytes, Sequence[int]] | None = None,
    ) -> Child:
        self._serial += 1
        child = Child()
        if wake:
            child.wake(*wake)
        self._asked[self._serial] = child
        head = wire.REQUEST.pack(verb, 0, self._serial)
        self._helper.send(head + sandbox, [child.theirs, *parts])
        return child

    def _heard(self, message: bytes, descriptor: int) -> None:
        news = wire.news(message)
        if news.said == wire.Said.EXITED:
            if child := self._alive.pop(news.pid, None):
                child.is_ended(news)
            return
        child = self._asked.pop(news.id, None)
        if child is None:
            return
        if news.said == wire.Said.REFUSED:
            child.is_refused(news.error)
            return
        self._alive[news.pid] = child
        child.is_made(news, descriptor)

    def _ended(self) -> None:
        self._forget()
        self._lost()

    def _forget(self) -> None:
        self._helper.close()
        children = [*self._asked.values(), *self._alive.values()]
        self._asked.clear()
        self._alive.clear()
        for child in children:
            child.is_lost()

    def close(self) -> None:
        """End it, and with it all children."""
        self._forget()


def describe(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit status {os.WEXITSTATUS(status)}"


def _seen(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()  # that no one awaits it is no mistake
