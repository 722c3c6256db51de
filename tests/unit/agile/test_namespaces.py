"""What becomes of a namespace whose asker has gone."""

import asyncio
import os

import pytest

from firstlight.agile import network
from firstlight.agile.network import Networks


class Quiet:
    """A helper that hears requests and never answers by itself."""

    def send(self, message: bytes, descriptors: list[int]) -> None:
        self.message = message


@pytest.mark.parametrize("answered_first", [True, False])
def test_a_cancelled_request_leaves_no_namespace_open(answered_first: bool) -> None:
    async def main() -> int:
        networks = object.__new__(Networks)
        networks._helper = Quiet()  # type: ignore[assignment]
        networks._serial, networks._asked, networks._is_open = 0, {}, True
        asking = asyncio.create_task(networks._do(network._MAKE, network._script(), "make"))
        await asyncio.sleep(0)
        descriptor = os.open(os.devnull, os.O_RDONLY)
        message = network._ANSWER.pack(1, 0, 0, 0)
        if answered_first:
            networks._heard(message, descriptor)
        asking.cancel()
        if not answered_first:
            networks._heard(message, descriptor)
        with pytest.raises(asyncio.CancelledError):
            await asking
        return descriptor

    descriptor = asyncio.run(main())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
