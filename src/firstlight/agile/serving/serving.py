"""Answers events of all functions of a node."""

from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.runtime import Runtime
from firstlight.agile.serving import once
from firstlight.agile.serving.answer import Answer, Throttled
from firstlight.errors import Failed


class Serving:
    """Answers events. An async context manager: leaving it ends the instances that are kept."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._running: dict[str, int] = {}

    async def __aenter__(self) -> "Serving":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def invoke(
        self, version: FunctionVersion, event: bytes, *, request_id: str,
        deadline: float | None = None, client_context: bytes | None = None,
        trace: str | None = None, tail: bool = False,
    ) -> Answer:  # fmt: skip
        """Answer an event.

        ``deadline`` is of time.monotonic(): an event that no instance has by then is refused.
        Raises Throttled, and Failed for what the node cannot do.
        """
        del request_id, deadline, client_context, trace, tail
        running = self._running.get(version.name, 0)
        if version.concurrency is not None and running >= version.concurrency:
            raise Throttled(f"{version.name} has {running} instances, and may have no more",
                            "try again, or reserve more concurrency")  # fmt: skip
        self._running[version.name] = running + 1
        try:
            return await self._answer(version, event)
        finally:
            self._running[version.name] -= 1
            if not self._running[version.name]:
                del self._running[version.name]

    async def _answer(self, version: FunctionVersion, event: bytes) -> Answer:
        if version.kind == "command":
            return await once.run_command(self._runtime, version, event)
        if version.kind == "wasm" or ":" in version.handler:
            return await once.call_handler(self._runtime, version, event)
        raise Failed(f"functions of kind {version.kind} cannot be called yet")

    async def retire(self, version: FunctionVersion) -> None:
        """End the idle instances of a version, now and as they become idle."""

    def concurrency(self, version: FunctionVersion) -> int:
        """How many events of the function are being answered."""
        return self._running.get(version.name, 0)
