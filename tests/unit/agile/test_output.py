"""Readers of an instance's output."""

import asyncio
import os
from pathlib import Path

import pytest

from firstlight.agile.output import Output


@pytest.mark.parametrize("whole", [True, False])
def test_a_flood_of_output_leaves_time_for_others(tmp_path: Path, whole: bool) -> None:
    path = tmp_path / "flood"  # always readable, as a pipe whose writer is quicker
    path.write_bytes(b"x" * (1 << 20) + b"the end")

    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        output = Output(os.open(path, os.O_RDONLY))
        try:
            if whole:
                assert await output.all(3) == b"xxx"
            else:
                assert await output.end(10) == b"xxxthe end"
            assert turns > 10
        finally:
            task.cancel()
            output.close()

    asyncio.run(main())
