"""The runtime as the lab sees it."""

import os
from pathlib import Path

import polars as pl
import pytest
from tests.support.agile_host import on_host
from tests.support.laboratory import Bench, commands_of

from firstlight.errors import Failed
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Ask, Execute, agile
from firstlight.lab.backends.agile import DEPTHS, Agile, Via, children
from firstlight.lab.backends.agile_floor import Floor
from firstlight.lab.load import Generator
from firstlight.lab.runner import can_trace
from firstlight.model import EndPoint


@pytest.mark.parametrize(
    ("depth", "via"), [*((depth, "message") for depth in DEPTHS), ("agile", "client")]
)
def test_each_start_is_ready_and_ends_with_its_input(depth: str, via: Via, tmp_path: Path) -> None:
    place = Workspace(tmp_path, f"test-agile-{os.getpid()}", {"PATH": os.environ["PATH"]})

    async def main() -> None:
        backend = Agile(depth, via)
        backend.probe()
        with commands_of(backend, 3, place) as commands, Generator() as generator:
            seen = generator.run(0, commands, deadline=60)
            ended = generator.stop(0, deadline=60)
        assert list(tmp_path.iterdir()) == []
        for each in seen:
            assert each.reply.output == "", each.output
            assert each.reply.ready
            assert ("exec" in {step.name for step in each.reply.steps}) == (via == "message")
            assert each.status is None
        assert [each.status for each in ended] == [0] * 3
        assert all(each.user_ns + each.system_ns > 0 for each in ended)

    tmp_path.chmod(0o755)
    on_host(main)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/firstlight-{place.run}/agile"))


@pytest.mark.parametrize(
    ("depth", "phases"),
    [("agile", {"exec", "handshake", "ns.other", "mount", "security"}), ("agile-ready", {"exec"})],
)
def test_traced_start_explains_runtime_and_instance(
    bench: Bench, depth: str, phases: set[str]
) -> None:
    with commands_of(Agile(depth), 1, bench.workspace) as commands:
        seen = bench.starts(commands, end_point=EndPoint.FIRST_INSTRUCTION)
    rows = seen.breakdown()
    assert phases <= set(rows.filter(pl.col("wall") > 0)["phase"])
    assert seen.wall("unattributed") < 0.1 * int(rows["wall"].sum())


def test_only_a_single_requested_start_can_be_identified() -> None:
    asked = Ask(Path("/socket"), "hello", "start", daemons=(1,))
    executed = Execute(("/bin/true",))
    assert can_trace([asked])
    assert can_trace([executed, executed])
    assert not can_trace([asked, asked])


def test_a_runtime_that_says_much_is_not_held_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workspace(tmp_path, f"test-agile-{os.getpid()}", {"PATH": os.environ["PATH"]})
    much = "import sys\nsys.stderr.write('x' * 1_000_000)\nsys.stderr.flush()\n"
    monkeypatch.setattr(agile, "_SERVE", much + agile._SERVE)

    async def main() -> None:
        with (
            commands_of(Agile("agile-cold"), 1, place) as commands,
            Generator() as generator,
        ):
            [seen] = generator.run(0, commands, deadline=60)
            generator.stop(0, deadline=60)
        assert "firstlight ready " in seen.output

    tmp_path.chmod(0o755)
    on_host(main)


def test_a_runtime_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workspace(tmp_path, f"test-agile-{os.getpid()}", {"PATH": os.environ["PATH"]})
    monkeypatch.setattr(agile, "_SERVE", "raise SystemExit('no such luck')")

    async def main() -> None:
        with (
            pytest.raises(Failed, match="did not start: no such luck"),
            Agile("agile").prepared(1, place),
        ):
            pass
        assert list(tmp_path.iterdir()) == []

    on_host(main)


def test_the_floor_starts_each_in_parts_of_its_own(tmp_path: Path) -> None:
    place = Workspace(tmp_path, f"test-agile-{os.getpid()}", {"PATH": os.environ["PATH"]})

    async def main() -> None:
        backend = Floor()
        with commands_of(backend, 3, place) as commands, Generator() as generator:
            seen = generator.run(0, commands, deadline=60)
            [floor] = {pid for each in commands for pid in each.daemons}
            kinds = ("net", "mnt", "pid_for_children", "ipc", "uts", "cgroup")
            spaces = [
                [Path(f"/proc/{pid}/ns/{kind}").readlink() for kind in kinds]
                for pid in (floor, *children(floor))
            ]
            ended = generator.stop(0, deadline=60)
        assert all("firstlight ready " in each.output for each in seen), seen
        assert len(spaces) == 4
        assert all(len(set(column)) == 4 for column in zip(*spaces, strict=True))
        assert [each.status for each in ended] == [0] * 3
        assert list(tmp_path.iterdir()) == []

    tmp_path.chmod(0o755)
    on_host(main)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/firstlight-{place.run}/floor"))
