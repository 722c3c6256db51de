"""The runtime as the lab sees it."""

import os
from pathlib import Path

import pytest
from agile_host import on_host

from firstlight.backends import Place
from firstlight.backends.agile import DEPTHS, Agile, Asked
from firstlight.load import Generator


@pytest.mark.parametrize(
    ("depth", "asked"), [*((depth, "message") for depth in DEPTHS), ("agile", "client")]
)
def test_each_start_is_ready_and_ends_with_its_input(
    depth: str, asked: Asked, tmp_path: Path
) -> None:
    place = Place(tmp_path, f"test-agile-{os.getpid()}", {"PATH": os.environ["PATH"]})

    async def main() -> None:
        backend = Agile(depth, asked)
        backend.probe()
        with backend.prepared({"instances": 3}, 3, place) as commands, Generator() as generator:
            seen = generator.run(0, commands, deadline=20)
            ended = generator.stop(0, deadline=20)
        assert list(tmp_path.iterdir()) == []
        for one in seen:
            assert one.output.startswith("firstlight "), one.output
            assert "firstlight ready " in one.output
            assert ("firstlight step exec " in one.output) == (asked == "message")
            assert one.status is None
        assert [one.status for one in ended] == [0] * 3
        assert all(one.user_ns + one.system_ns > 0 for one in ended)

    tmp_path.chmod(0o755)
    on_host(main)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/firstlight-{place.run}/agile"))
