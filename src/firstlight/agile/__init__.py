"""The agile runtime: starts isolated, networked function instances from prepared parts.

    async with Runtime(config) as runtime:
        async with await runtime.start(Function(rootfs="/srv/f", command=("/bin/f",))) as instance:
            print(instance.pid, instance.address, await instance.stdout.all())

It never imports the lab, which measures it as one more backend.
"""

from firstlight.agile.config import Config
from firstlight.agile.function import Ended, Function
from firstlight.agile.instance import Instance
from firstlight.agile.runtime import Runtime

__all__ = ["Config", "Ended", "Function", "Instance", "Runtime"]
