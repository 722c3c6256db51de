"""A process's standard streams, connected as containerd requires.

Output goes to containerd's fifos without a copy. The process has their writing ends. A reading end
stays open here, so that the process gets no SIGPIPE while containerd is down. Input and terminals
are copied, through a pipe or a terminal's master, which the keeper holds for the next server.
"""

import array
import asyncio
import fcntl
import hashlib
import os
import socket
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from firstlight.agile.shim.keeper import Keeper
from firstlight.agile.shim.ttrpc import Code, Refused
from firstlight.errors import longer

_CHUNK = 1 << 16
_MASTER_SECONDS = longer(60.0)
_DRAIN_SECONDS = longer(10.0)
_NULL = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


class Streams:
    """Of one process. ``names`` are containerd's stdin, stdout and stderr; empty is /dev/null."""

    def __init__(
        self, keeper: Keeper, key: str, names: tuple[str, str, str], *, terminal: bool
    ) -> None:
        self._keeper, self._names, self._is_terminal = keeper, names, terminal
        digest = hashlib.sha256(key.encode()).hexdigest()[:40]
        self._kept = f"{'terminal' if terminal else 'stdin'}:{digest}"
        self._held: list[int] = []
        self._theirs: list[int] = []
        self._inner = -1
        self._pumps: list[Pump] = []
        self._console: socket.socket | None = None

    def open(self) -> tuple[int, int, int]:
        """The descriptors to start the program with. Raises Refused, OSError."""
        if self._is_terminal:
            return _NULL, _NULL, _NULL
        stdin = _NULL
        if self._names[0]:
            stdin, self._inner = os.pipe2(os.O_CLOEXEC)
            self._theirs.append(stdin)
        return stdin, self._open_output(self._names[1]), self._open_output(self._names[2])

    def _open_output(self, name: str) -> int:
        if not name:
            return _NULL
        url = urlsplit(name)
        if url.scheme not in ("", "fifo", "file"):
            raise Refused(Code.INVALID_ARGUMENT, f"output by {url.scheme}:// is not supported by "
                          "firstlight's shim: use a fifo or file://")  # fmt: skip
        if url.scheme == "file":
            Path(url.path).parent.mkdir(parents=True, exist_ok=True)
            writer = os.open(url.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        else:
            self._hold(url.path)
            writer = os.open(url.path, os.O_WRONLY | os.O_CLOEXEC)
        self._theirs.append(writer)
        return writer

    def _hold(self, path: str) -> None:
        self._held.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    def listen(self, path: Path) -> None:
        """Make the socket over which the program sends a terminal's master."""
        self._console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._console.bind(str(path))
        self._console.listen(1)
        self._console.setblocking(False)

    async def started(self) -> None:
        """Close the started program's ends, and start copying. Raises OSError."""
        self._close_theirs()
        if self._console:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(_MASTER_SECONDS):
                peer, _ = await loop.sock_accept(self._console)
            peer.settimeout(_MASTER_SECONDS)
            with peer:
                _, descriptors, _, _ = await asyncio.to_thread(socket.recv_fds, peer, 4096, 1)
            if not descriptors:
                raise OSError("the runtime sent no terminal")
            self._inner = descriptors[0]
            os.set_inheritable(self._inner, False)
            self._close_console()
        if self._inner >= 0:
            self._keeper.keep(self._kept, self._inner)
            self._copy()

    def resume(self) -> None:
        """The same for a process that the previous server started. Raises OSError."""
        self._inner = self._keeper.kept.pop(self._kept, -1)
        for name in () if self._is_terminal else self._names[1:]:
            if name and urlsplit(name).scheme in ("", "fifo"):
                with suppress(FileNotFoundError):
                    self._hold(urlsplit(name).path)
        if self._inner >= 0:
            self._copy()

    def _copy(self) -> None:
        os.set_blocking(self._inner, False)
        with suppress(FileNotFoundError):
            if self._is_terminal and self._names[1]:
                output = os.open(self._names[1], os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self._pumps.append(Pump(os.dup(self._inner), output))
            if self._names[0]:
                # With a writing end, too: it does not end with containerd, which may come back.
                stdin = os.open(self._names[0], os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                after = (lambda: None) if self._is_terminal else self._close_inner
                self._pumps.append(Pump(stdin, os.dup(self._inner), after))

    def close_input(self) -> None:
        """Close the process's standard input, after what containerd has written."""
        if self._is_terminal:
            return
        for pump in self._pumps:
            pump.finish()
        if not self._pumps:
            self._close_inner()

    def _close_inner(self) -> None:
        if self._inner >= 0:
            self._keeper.drop(self._kept)
            os.close(self._inner)
            self._inner = -1

    def resize(self, width: int, height: int) -> None:
        """Set a terminal's size. Raises Refused."""
        if not self._is_terminal or self._inner < 0:
            raise Refused(Code.FAILED_PRECONDITION, "the process has no terminal")
        fcntl.ioctl(self._inner, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    async def drain(self) -> None:
        """Copy what a terminal still has, after its last process has ended."""
        if self._is_terminal:
            await asyncio.gather(*(each.drain() for each in self._pumps[:1]))

    def close(self) -> None:
        """Close everything."""
        self._close_theirs()
        self._close_console()
        for pump in self._pumps:
            pump.close()
        self._close_inner()
        for held in self._held:
            os.close(held)
        self._held.clear()

    def _close_theirs(self) -> None:
        for descriptor in self._theirs:
            os.close(descriptor)
        self._theirs.clear()

    def _close_console(self) -> None:
        if self._console:
            path = self._console.getsockname()
            self._console.close()
            Path(path).unlink(missing_ok=True)
            self._console = None


class Pump:
    """Copies from one descriptor to another until the end of the first; owns both."""

    def __init__(self, source: int, target: int, after: Callable[[], None] = lambda: None) -> None:
        self._source, self._target, self._after = source, target, after
        self._rest = b""
        self._is_last = False
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(source, self._read)

    def _read(self) -> None:
        try:
            self._rest = os.read(self._source, _CHUNK)
        except BlockingIOError:
            if not self._is_last:
                return
            self._rest = b""
        except OSError:  # EIO: the terminal's last process has closed it
            self._rest = b""
        if not self._rest:
            self.close()
            self._after()
            return
        self._write()

    def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._target, self._rest) :]
        except BlockingIOError:
            loop.remove_reader(self._source)
            loop.add_writer(self._target, self._write)
            return
        except OSError:  # nobody reads
            self.close()
            return
        loop.remove_writer(self._target)
        loop.add_reader(self._source, self._read)
        if self._is_last:
            self._read()

    def finish(self) -> None:
        """Copy what is there, and stop."""
        self._is_last = True
        if not self._ended.is_set() and not self._rest:
            self._read()

    async def drain(self) -> None:
        """Wait until everything is copied."""
        waiting = array.array("i", [0])
        until = time.monotonic() + _DRAIN_SECONDS
        while not self._ended.is_set() and time.monotonic() < until:
            fcntl.ioctl(self._source, termios.FIONREAD, waiting)
            if not waiting[0] and not self._rest:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await self._ended.wait()

    def close(self) -> None:
        """Stop."""
        if self._ended.is_set():
            return
        self._ended.set()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._source)
        loop.remove_writer(self._target)
        os.close(self._source)
        os.close(self._target)
