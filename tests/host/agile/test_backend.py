"""The runtime as the lab sees it."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from agile_host import on_host

from firstlight.backends import Place
from firstlight.backends.agile import DEPTHS, Agile


@pytest.mark.parametrize("depth", DEPTHS)
def test_each_start_is_ready_and_ends_with_its_input(depth: str, tmp_path: Path) -> None:
    place = Place(tmp_path, f"test-agile-{os.getpid()}", {"PATH": os.environ["PATH"]})

    async def main() -> None:
        backend = Agile(depth)
        backend.probe()
        with backend.prepared({"instances": 3}, 3, place) as commands:
            started = [
                subprocess.Popen(
                    one.argv, env=one.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
                for one in commands
            ]
            for process in started:
                assert process.stdout
                assert process.stdout.readline().startswith(b"firstlight ready ")
            for process in started:
                process.communicate()
                assert process.returncode == 0
            await asyncio.sleep(0)
        assert list(tmp_path.iterdir()) == []

    tmp_path.chmod(0o755)
    on_host(main)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/firstlight-{place.run}/agile"))
