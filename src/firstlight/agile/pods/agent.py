"""The node's agent behind its unix socket: answers the CNI plugin from a pool of networks.

An ADD that finds the pool filled is answered at once, in the event loop; everything else is a task.
Order of events: a lease is written, then its network is sent, then our descriptor of it is closed.
A lease whose link has gone without a DEL is dropped.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path

from firstlight.agile.config import Config
from firstlight.agile.parts.pool import LoadGate, Pool
from firstlight.agile.pods import wire
from firstlight.agile.pods.cluster import Trouble
from firstlight.agile.pods.leases import Lease, Leases
from firstlight.agile.pods.networks import PodNetwork, PodNetworks
from firstlight.agile.pods.wire import Answer, Code, Request, Verb
from firstlight.errors import WITH_SUDO, Failed, FirstlightError, Unsupported, longer

_BACKLOG = 4096
_RIGHT, _RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS), socket.CMSG_SPACE(4)
_AT_ONCE = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
_LOOK_SECONDS, _RETRY_SECONDS = 10.0, 0.1
_SILENCE_SECONDS = longer(30.0)
_CALM_SECONDS, _PATIENCE_SECONDS = 0.05, 1.0  # a pod still starts after its ADD
_DONE = Answer().encode()
_log = logging.getLogger(__name__)


class Agent:
    """An async context manager: serves while it is open. Raises FirstlightError."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.leases = Leases(config.directory)
        self.networks = PodNetworks(config)
        self._gate = LoadGate(_CALM_SECONDS, _PATIENCE_SECONDS)
        self.pool: Pool[PodNetwork] = Pool(
            "pod network", config.pods.pool, self.networks.make, self.networks.discard, self._gate
        )
        self.added = self.deleted = self.refused = self.lost = 0
        self.on_refusal: Callable[[Request, str], None] = lambda _request, _why: None
        self.on_loss: Callable[[Failed], None] = lambda _why: None
        self._listener: socket.socket | None = None
        self._is_ending = self._is_short = False
        self._not_forwarding: Failed | None = None
        self._silent: dict[socket.socket, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Agent":
        if os.geteuid() != 0:
            raise Unsupported("the agent needs root", WITH_SUDO)
        self.leases.open()
        try:
            self._take_over()
            await self.networks.open()
            with suppress(FirstlightError):  # then ADD says why
                await self.pool.warm()
            self._listen()
        except BaseException:
            await self.__aexit__()
            raise
        self._start(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_ending = True
        if self._listener:
            asyncio.get_running_loop().remove_reader(self._listener)
            self.config.socket.unlink(missing_ok=True)
            self._listener.close()
        for peer in list(self._silent):
            self._hang_up(peer)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pool.close()
        self.networks.close()
        self.leases.close()

    def _take_over(self) -> None:
        """Reserve the addresses of running pods, and of links that are still being removed."""
        linked, numbers = self.networks.linked(), range(2, self.networks.range.num_addresses - 1)
        for lease in self.leases.all():
            if lease.number not in numbers:
                raise Failed(f"the pod {lease.pod or lease.key.container} has an address outside "
                             f"of pods.range {self.networks.range}",
                             "drain the node, then change the range")  # fmt: skip
            self.networks.addresses.hold(lease.number)
            if lease.number not in linked:
                self._lose(lease)
        leased = {lease.number for lease in self.leases.all()}
        for number in linked - leased:
            if number in numbers:
                self.networks.addresses.hold(number)
                self.networks.addresses.leave(number)

    def _listen(self) -> None:
        path = self.config.socket
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept)

    def _accept(self) -> None:
        assert self._listener
        while True:
            try:
                peer, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # retrying at once would loop for ever
                if not self._is_short:
                    _log.warning("cannot accept a connection, so plugins wait: %s", error.strerror)
                self._is_short = True
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._listener)
                loop.call_later(_RETRY_SECONDS, self._accept_again)
                return
            self._is_short = False
            self._read(peer)

    def _accept_again(self) -> None:
        if self._listener and not self._is_ending:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _read_later(self, peer: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(peer)
        self._silent.pop(peer).cancel()
        self._read(peer)

    def _hang_up(self, peer: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(peer)
        self._silent.pop(peer).cancel()
        peer.close()

    def _read(self, peer: socket.socket) -> None:
        """Read a connection's request, or wait until it is complete."""
        try:
            message, ancillary, _, _ = peer.recvmsg(wire.REQUEST.size + 1, _RIGHTS, _AT_ONCE)
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            try:
                loop.add_reader(peer, self._read_later, peer)
            except OSError:  # no memory or watch for it: the plugin asks again
                peer.close()
                return
            self._silent[peer] = loop.call_later(_SILENCE_SECONDS, self._hang_up, peer)
            return
        except OSError:
            message, ancillary = b"", []
        descriptor = int.from_bytes(ancillary[0][2][:4], "little") if ancillary else -1
        if message and not self._is_ending:
            self._serve(peer, message, descriptor)
            return
        peer.close()
        if descriptor >= 0:
            os.close(descriptor)

    def _serve(self, peer: socket.socket, message: bytes, descriptor: int) -> None:
        try:
            request = wire.decode(message)
            if request.verb is Verb.ADD and not request.fills and len(self.pool):
                network = self.pool.take_ready()
                assert network
                self._hand_over(peer, request, network)
                peer.close()
                return
        except Failed as error:
            self._refuse(peer, None, error)
            peer.close()
            if descriptor >= 0:
                os.close(descriptor)
            return
        self._start(self._serve_slowly(peer, request, descriptor))

    async def _serve_slowly(self, peer: socket.socket, request: Request, descriptor: int) -> None:
        try:
            with self._gate:
                await self._answer(peer, request, descriptor)
        except FirstlightError as error:
            self._refuse(peer, request, error)
        except Exception as error:  # an unanswered plugin would wait for ever
            _log.exception("a request failed")
            self._refuse(peer, request, Failed(f"the agent failed: {error!r}", "see its log"))
        finally:
            peer.close()
            if descriptor >= 0:
                os.close(descriptor)

    async def _answer(self, peer: socket.socket, request: Request, descriptor: int) -> None:
        match request.verb:
            case Verb.ADD if request.fills:
                await self._fill(peer, request, descriptor)
            case Verb.ADD:
                self._hand_over(peer, request, await self._take())
            case Verb.DEL:
                await self._delete(request)
                _send(peer, _DONE)
            case Verb.CHECK:
                _send(peer, await self._check(request))
            case Verb.GC:
                await self._collect(request, descriptor)
                _send(peer, _DONE)
            case Verb.STATUS:
                _send(peer, self._status())

    async def _take(self) -> PodNetwork:
        if network := self.pool.take_ready():
            return network
        if self.pool.builds:
            try:
                return await self.pool.take_first()
            except Failed:
                if not self.pool.is_filling:
                    raise
        return await self.pool.wait()  # the pool may be using the last address

    def _hand_over(self, peer: socket.socket, request: Request, network: PodNetwork) -> None:
        try:
            lease = self._lease(request, network.number)
        except Failed:
            self.networks.discard(network)
            raise
        sent = _send(peer, network.answer, network.descriptor)
        os.close(network.descriptor)
        if sent:
            self.added += 1
            self._gate.seen()
        else:
            self._lose(lease)

    async def _fill(self, peer: socket.socket, request: Request, namespace: int) -> None:
        number = await self.networks.fill(namespace, request.key.interface)
        try:
            self._lease(request, number)
        except Failed:
            await self.networks.end(number)
            raise
        self.added += 1
        _send(peer, self.networks.answer(number))

    def _lease(self, request: Request, number: int) -> Lease:
        """Record a lease. An earlier one of the same attachment is from an ADD whose answer was
        lost.
        """
        if before := self.leases.get(request.key):
            self.leases.remove(before)
            self._start(self.networks.end(before.number))
        lease = Lease(number, request.key, request.pod)
        self.leases.add(lease)
        return lease

    def _lose(self, lease: Lease) -> None:
        self.leases.remove(lease)
        self.networks.addresses.leave(lease.number)
        self.lost += 1

    async def _delete(self, request: Request) -> None:
        if lease := self.leases.get(request.key):
            await self._end(lease)

    async def _end(self, lease: Lease) -> None:
        """End a lease, its link first: if the agent is killed in between, ``_look`` ends it."""
        await self.networks.end(lease.number)
        if self.leases.get(lease.key) is lease:
            self.leases.remove(lease)
            self.deleted += 1

    async def _collect(self, request: Request, descriptor: int) -> None:
        await self._drop_ended()
        if descriptor < 0:
            return
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            valid = wire.attachments(file.read())
        for lease in self.leases.all():
            is_of = lease.key.network == request.key.network
            if is_of and (lease.key.container, lease.key.interface) not in valid:
                await self._end(lease)

    async def _check(self, request: Request) -> bytes:
        lease = self.leases.get(request.key)
        if lease is None:
            why = "the agent knows no such attachment"
            return Answer(Code.UNKNOWN_CONTAINER, why).encode()
        if lease.number not in await asyncio.to_thread(self.networks.linked):
            return Answer(Code.WRONG, "the link on the host is gone").encode()
        return self.networks.answer(lease.number)

    def _status(self) -> bytes:
        if len(self.pool) or not self.pool.error:
            counts = self.pool.counts()
            pool = wire.PoolCounts(counts.made, self.pool.making_seconds, counts.misses)
            return Answer(text=wire.encode(pool)).encode()
        return Answer(Code.UNAVAILABLE, f"no network can be made: {self.pool.error}").encode()

    def _refuse(self, peer: socket.socket, request: Request | None, error: FirstlightError) -> None:
        if self._is_ending:
            return  # without an answer, the plugin asks the next agent
        self.refused += 1
        why = error.message + (f"; {error.hint}" if error.hint else "")
        _log.warning("refused %s: %s", request.pod or request.key if request else "a request", why)
        if request:
            self.on_refusal(request, why)
        _send(peer, Answer(Code.TRY_AGAIN, why).encode())

    async def _look(self) -> None:
        """Drop leases whose namespaces have ended without a DEL, and see to the agent's files."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._forward()
            try:
                self._restore()
                await self._drop_ended()
            except (Failed, OSError) as error:
                _log.warning("cannot look after the leases: %s", error)
                if isinstance(error, Failed) and _was_removed(self.config.directory):
                    self.on_loss(error)
                    return

    def _forward(self) -> None:
        """Set the host's forwarding again where another program has ended it."""
        before, self._not_forwarding = self._not_forwarding, None
        try:
            if self.networks.forward():
                _log.warning("another program had ended the host's forwarding; it is set again")
        except Failed as error:
            self._not_forwarding = error
            if before is None:
                _log.warning("%s; %s", error.message, error.hint)
        except OSError as error:
            _log.warning("cannot look at the host's forwarding: %s", error)

    def trouble(self) -> Trouble:
        """Why new pods would have no network, if anything."""
        if error := self._not_forwarding:
            return "NotForwarding", f"{error.message}; {error.hint}"
        if self.pool.error and not len(self.pool):
            return "CannotMake", str(self.pool.error)
        return None

    def _restore(self) -> None:
        """Make the leases' file and the socket again where another program removed them."""
        self.leases.restore()
        if self._listener and self.config.socket.exists():
            return
        if self._listener:
            _log.warning("%s was removed by another program and is made again", self.config.socket)
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self._listen()

    async def _drop_ended(self) -> None:
        leases = self.leases.all()  # those of now: one that comes meanwhile may have a newer link
        linked = await asyncio.to_thread(self.networks.linked)  # waits for the kernel's locks
        for lease in leases:
            if lease.number not in linked and self.leases.get(lease.key) is lease:
                self._lose(lease)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _was_removed(directory: Path) -> bool:
    """Whether no file can be made there any more: the directory of a mount was removed."""
    there = next(each for each in (directory, *directory.parents) if each.exists())
    return there.stat().st_nlink == 0


def _send(peer: socket.socket, answer: bytes, descriptor: int = -1) -> bool:
    """Send an answer; returns whether the plugin was still there."""
    try:
        if descriptor >= 0:
            peer.sendmsg([answer], [(*_RIGHT, descriptor.to_bytes(4, "little"))])
        else:
            peer.send(answer)
    except OSError:
        return False
    return True
