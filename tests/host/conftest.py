"""What tests on the real kernel share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import NATIVE, Bench, compiled, laboratory

from firstlight.errors import Unsupported
from firstlight.load import Generator
from firstlight.tracers import bpf


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of known work."""
    return compiled(
        NATIVE / "known.c", tmp_path_factory.mktemp("known") / "known", "-static", "-pthread"
    )


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One traced lab for every test of the tracer: to load the programs takes a while."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        bpf.probe()
    except Unsupported as error:
        pytest.skip(error.message)
    with (
        laboratory(f"test-{os.getpid()}-bench") as place,
        Generator() as generator,
        bpf.Tracer(generator.pid, place.directory) as tracer,
    ):
        yield Bench(place, generator, tracer, tmp_path_factory.mktemp("bench"))
