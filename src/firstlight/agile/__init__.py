"""The agile runtime: starts isolated, networked function instances from prepared parts.

    async with Runtime(config) as runtime:
        async with await runtime.start(Function(rootfs="/srv/f", command=("/bin/f",))) as instance:
            print(instance.pid, instance.address, await instance.stdout.all())

It never imports the lab, which measures it as one more backend.
"""

from typing import TYPE_CHECKING

from firstlight.agile.config import Config
from firstlight.agile.function import Ended, Function

if TYPE_CHECKING:
    from firstlight.agile.instance import Instance
    from firstlight.agile.runtime import Runtime

__all__ = ["Config", "Ended", "Function", "Instance", "Runtime"]


def __getattr__(name: str) -> object:
    """Import the runtime on first use, so that clients start quickly."""
    if name == "Runtime":
        from firstlight.agile.runtime import Runtime

        return Runtime
    if name == "Instance":
        from firstlight.agile.instance import Instance

        return Instance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
