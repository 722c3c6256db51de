"""What a runtime logs when it has no descriptor for another connection."""

import subprocess
import sys

CODE = """
import asyncio, resource, socket
from firstlight.agile.daemon import _handler

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_handler())
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, backlog=100)
    client = socket.create_connection(server.sockets[0].getsockname())
    resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, client.fileno() + 1))
    await asyncio.sleep(0.1)  # a turn of the loop, and more than one if there were no pause
    loop.call_exception_handler({"message": "another"})

asyncio.run(main())
"""


def test_want_of_descriptors_is_logged_once() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines() == [
        "cannot accept connections, so clients wait: [Errno 24] Too many open files",
        "another",
    ]
