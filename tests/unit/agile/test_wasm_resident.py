"""What the runtime does with a worker's process."""

import asyncio
import os
import socket
from types import SimpleNamespace
from typing import Any

from firstlight.agile import Function
from firstlight.agile.output import Output
from firstlight.agile.wasm.resident import Resident


def test_a_worker_that_has_just_ended_is_not_handed_over() -> None:
    async def main() -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        instance: Any = SimpleNamespace(ended=ended, number=7)
        control, theirs = socket.socketpair()
        reading, writing = os.pipe()
        os.close(writing)
        kept: list[list[int]] = []
        worker = Resident(instance, control, Output(reading), kept.append)
        ended.set_result(None)
        await asyncio.sleep(0)
        worker.keep(Function(rootfs="/m.wasm", kind="wasm", handler="main"), ())
        assert kept == []
        assert await worker.words() == ""
        theirs.close()

    asyncio.run(main())
