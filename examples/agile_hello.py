#!/usr/bin/env python3
"""Start an instance of a function and print its output; needs root.

Usage: agile_hello.py ROOT COMMAND [ARGUMENT ...]
"""

import asyncio
import sys

from firstlight.agile import Config, Function, Runtime


async def main(root: str, *command: str) -> None:
    """Run the command in the root file system, in an instance without a network."""
    function = Function(rootfs=root, command=command, network="none")
    async with (
        Runtime(Config(name="example")) as runtime,
        await runtime.start(function) as instance,
    ):
        print((await instance.stdout.all()).decode(), end="")


asyncio.run(main(*sys.argv[1:]))
