"""What is done ahead of requests, and what a request does where it was left to it."""

import subprocess
from collections.abc import Callable

import pytest
from tests.support.agile_host import on_host

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import Ahead

Make = Callable[..., Function]
GATEWAY = "10.213.0.1"


def neighbours(pid: int) -> str:
    return subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "neighbour"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize("preset", [True, False])
def test_the_gateway_is_known_before_the_first_packet_or_asked_for(
    function: Make, preset: bool
) -> None:
    async def main() -> None:
        config = Config(name="t8", ahead=Ahead(neighbours=preset))
        async with Runtime(config) as runtime:
            async with await runtime.start(function("hold", "99")) as instance:
                assert (GATEWAY in neighbours(instance.pid)) is preset
            async with await runtime.start(function("ping", GATEWAY)) as instance:
                assert instance.stdout
                assert await instance.stdout.all() == b"answered\n"

    on_host(main)
