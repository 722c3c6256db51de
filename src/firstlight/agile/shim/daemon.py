"""The shim's server, started by the keeper:

python -P -m firstlight.agile.shim.daemon DIRECTORY EVENTS RUNTIME PREPARED
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from firstlight.agile.log_lines import log_lines
from firstlight.agile.shim.command import make
from firstlight.agile.shim.events import Events
from firstlight.agile.shim.keeper import Keeper
from firstlight.agile.shim.oci import OciRuntime, take_room
from firstlight.agile.shim.sandboxes import Sandboxes, started
from firstlight.agile.shim.service import Service
from firstlight.agile.shim.tasks import Tasks
from firstlight.agile.shim.ttrpc import Refused
from firstlight.errors import Failed, Unsupported, longer

_CLOSE_SECONDS = longer(5.0)
_log = logging.getLogger(__name__)


class Server:
    """Everything together."""

    def __init__(self, directory: Path, events: str, runtime: Path, prepared: int) -> None:
        self._directory, self._runtime = directory, runtime
        self.events = Events(events)
        self.keeper = Keeper(
            lambda peer, frame, again: self.service.frame(peer, frame, again=again),
            lambda peer: self.service.connection_ended(peer),
            self._note_exit,
        )
        self.pods = Sandboxes(directory / "sandboxes", prepared)
        oci = OciRuntime(runtime, directory / "oci", directory / "scratch")
        self.tasks = Tasks(directory / "tasks", oci, self.keeper, self.events, self.pods)
        self.service = Service(self.keeper, self.pods, self.tasks)

    def _note_exit(self, pid: int, status: int, when: int) -> None:
        if self.pods.exited(pid, status, when):
            self.keeper.noted(pid)
        else:
            self.tasks.exited(pid, status, when)

    async def serve(self) -> None:
        """Serve until SIGHUP, which leaves pods to a successor, or SIGTERM, which ends them."""
        received: asyncio.Queue[int] = asyncio.Queue()
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, received.put_nowait, number)
        self.keeper.read_state()
        self.pods.load()
        self.tasks.load()
        for exit_ in self.keeper.exits:
            self._note_exit(*exit_)
        for name in self.keeper.kept:
            self.keeper.drop(name)  # no process uses these: those in use have been taken over
        await self._clean()
        self.keeper.open()
        await self.pods.pool.fill()
        if await received.get() != signal.SIGHUP:
            await self._end_all()
        self.pods.pool.close()
        await self.events.close(_CLOSE_SECONDS)

    async def _clean(self) -> None:
        """Remove what the previous server had not finished: containerd repeats the call.

        After a previous keeper everything is removed, because containerd's connections ended with
        it.
        """
        for left in (self._directory / "scratch").iterdir():
            with suppress(OSError):
                left.unlink()
        keeper = os.getppid()
        file, ours = self._directory / "keeper", f"{keeper} {started(keeper)}"
        if not file.exists() or file.read_text() != ours:
            self.pods.end_orphans()
            await self._end_all()
            file.write_text(ours)
            return
        known = {process.pid for process in self.tasks.processes()}
        known |= {each.record.pid for each in self.pods.all.values()} | {os.getpid()}
        for pid in _children(keeper):
            if pid not in known and _is_ours(pid, self._runtime):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for container in list(self.tasks.all.values()):
            if not container.first.status:
                await self.tasks.undo(container)
        for sandbox in list(self.pods.all.values()):
            if not sandbox.record.created_at:
                await self.pods.remove(sandbox)

    async def _end_all(self) -> None:
        for container in list(self.tasks.all.values()):
            with suppress(Refused, Failed, OSError):
                await self.tasks.undo(container)
        for sandbox in list(self.pods.all.values()):
            with suppress(Refused, Failed, OSError):
                await self.pods.remove(sandbox)


def _children(pid: int) -> Iterable[int]:
    return map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def _is_ours(pid: int, runtime: Path) -> bool:
    """Whether the server made a process: orphans of containers become the keeper's, too."""
    proc = Path(f"/proc/{pid}")
    with suppress(OSError):
        program = (proc / "exe").readlink().name.removesuffix(" (deleted)")
        name = (proc / "comm").read_text(errors="replace")
        return name.startswith(runtime.name) or program == "shim-sandbox"
    return False


def main(directory: str, events: str, runtime: str, prepared: str) -> None:
    """Serve."""
    log_lines("%(levelname)s %(name)s: %(message)s", logging.INFO)
    take_room()
    make(Path(directory))

    async def serve() -> None:
        await Server(Path(directory), events, Path(runtime), int(prepared)).serve()

    asyncio.run(serve())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (Unsupported, Failed) as error:
        sys.exit(f"{error.message}; {error.hint}" if error.hint else error.message)
