"""Networks after use: each serves its function again, or is destroyed."""

import asyncio
from ipaddress import IPv4Address

from firstlight.agile.function import Function
from firstlight.agile.network.networks import Network, Networks
from firstlight.agile.node.registry import Registered, Registry
from firstlight.agile.parts.shelves import Held
from firstlight.agile.parts.stock import Stock
from firstlight.errors import Failed

_RETRY_SECONDS = 0.1


class UsedNetworks:
    """Used networks that the node leaves to its manager."""

    def __init__(self, networks: Networks, stock: Stock, registry: Registry) -> None:
        self._networks, self._stock, self._registry = networks, stock, registry
        self._closing = False

    def close(self) -> None:
        """Note that the runtime stops: none is reused, and ports need not be withdrawn."""
        self._closing = True

    async def recycle(self, held: Held, entry: Registered | None) -> None:
        """Put a network back for its function if it is as new; else destroy it."""
        if not isinstance(held.made, Network):
            self._stock.parts.discard(held)
            return
        again = (
            entry is not None and not self._closing and not entry.function.ports
            and entry.function.reuse != "none" and await self._is_clean(held.made, entry.function)
        )  # fmt: skip
        if again and entry and self._registry.number(entry.number) is entry:
            self._stock.give_back(held, entry.number)
        else:
            self._stock.parts.discard(held)

    async def withdraw(self, ports: dict[int, int], address: IPv4Address) -> None:
        """Withdraw ports before their address can be reused; when the runtime stops, they go with
        it.
        """
        while not self._closing:
            try:
                await self._networks.withdraw(ports, address)
            except Failed:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _is_clean(self, network: Network, function: Function) -> bool:
        if function.share_counters:
            return await self._networks.wash(network)
        return await self._networks.is_as_new(network)
