"""Programs that sandbox one command, as backends."""

import os
import shutil
from pathlib import Path

import pytest
from tests.support.laboratory import commands_of, laboratory

from firstlight.host import cgroups
from firstlight.lab.backends.sandboxer import PROGRAMS, Sandboxer
from firstlight.lab.load import Generator


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_starts_the_payload_and_leaves_nothing(program: str) -> None:
    backend = Sandboxer(program)
    if os.geteuid() != 0 or not shutil.which(program):
        pytest.skip(f"needs root and {program}")
    backend.probe()
    with laboratory(f"test-{os.getpid()}-{program}") as place, Generator() as generator:
        with commands_of(backend, 2, place) as commands:
            outcomes = generator.run(1, commands, deadline=60)
            assert ["firstlight ready" in outcome.output for outcome in outcomes] == [True, True], (
                outcomes
            )
            ended = generator.stop(1, deadline=60)
            assert [outcome.status for outcome in ended] == [0, 0]
        left = Path(place.directory / program)
        assert not left.exists()
        mounted = Path("/proc/thread-self/mounts").read_text()
        assert str(left) not in mounted
        assert not list(Path("/sys/fs/cgroup").glob(f"*/{cgroups.name(place.run)}"))
