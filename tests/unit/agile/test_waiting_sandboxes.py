"""Generic sandboxes whose node ends while somebody waits for them."""

import asyncio
from typing import cast

import pytest

from firstlight.agile.config import Pools, PoolSize
from firstlight.agile.node.process import Node
from firstlight.agile.node.waiting_sandboxes import GenericSandboxes
from firstlight.errors import Failed


class Slow:
    """A node that makes none."""

    waiting = made = 0

    def keep_waiting(self, size: PoolSize) -> None:
        """It is told how many to keep."""


def sandboxes() -> GenericSandboxes:
    """Of a runtime that keeps up to two."""
    return GenericSandboxes(Pools(sandbox=PoolSize(low=0, high=2)), lambda count: None)


def test_without_a_node_none_can_be_made() -> None:
    with pytest.raises(Failed, match="the node has ended"):
        asyncio.run(sandboxes().warm(1))


def test_waiters_learn_that_the_node_ended() -> None:
    async def main() -> None:
        generic = sandboxes()
        generic.connect(cast(Node, Slow()))
        waits = asyncio.create_task(generic.warm(1))
        await asyncio.sleep(0)
        generic.lost()
        with pytest.raises(Failed, match="the node has ended"):
            await waits

    asyncio.run(main())
