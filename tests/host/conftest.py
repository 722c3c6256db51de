"""What tests on the real kernel share."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support import own_host
from tests.support.laboratory import (
    NATIVE,
    Bench,
    compiled,
    inside,
    returning_home,
    sanitized,
)

from firstlight.errors import Unsupported
from firstlight.host import workspace as workspaces
from firstlight.lab import load
from firstlight.lab.load import Generator
from firstlight.trace import bpf

LAUNCH = ("lab/launch.c", "lab/launch_ask.c", "lab/launch_instance.c", "lab/launch_text.c",
          "common/message.c", "common/socket.c", "common/error.c")  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Each worker plays a host of its own, once its plugins have connected to this one."""
    if os.geteuid() != 0:
        return
    if hasattr(config, "workerinput"):
        own_host.enter(config.workerinput["workerid"])
    elif getattr(config.option, "numprocesses", None):
        own_host.check()


def pytest_unconfigure(config: pytest.Config) -> None:
    """The workers have ended."""
    if getattr(config.option, "numprocesses", None) and os.geteuid() == 0:
        own_host.leave()


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of known work."""
    return compiled(
        NATIVE / "known.c", tmp_path_factory.mktemp("known") / "known", "-static", "-pthread"
    )


@pytest.fixture(scope="session")
def can_trace() -> None:
    """Skips where the kernel lets nothing be traced, and says why."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        bpf.probe()
    except Unsupported as error:
        pytest.skip(error.message)


@pytest.fixture(scope="session")
def traced_lab(can_trace: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One traced lab for every test of the tracer: to load the programs takes a while."""
    runs = tmp_path_factory.mktemp("bench")  # its number tells this lab from contrib's
    with ExitStack() as lab:
        with returning_home():
            place = lab.enter_context(workspaces.sandbox(f"test-{os.getpid()}-{runs.name}"))
            generator = lab.enter_context(Generator())
            tracer = lab.enter_context(bpf.Tracer(generator.pid, place.directory))
        yield Bench(place, generator, tracer, runs)
        with inside(generator.pid):
            lab.close()


@pytest.fixture
def bench(traced_lab: Bench) -> Iterator[Bench]:
    """It, for a test that is inside: other labs come and go meanwhile, and none is in another."""
    with inside(traced_lab.generator.pid):
        yield traced_lab


@pytest.fixture(scope="session", name="sanitized")
def sanitized_launch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The load generator, stopped by its first wrong access or undefined operation."""
    return sanitized(tmp_path_factory.mktemp("launch"), *LAUNCH)


@pytest.fixture(params=["installed", "sanitized"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sanitized":
        built = request.getfixturevalue("sanitized")
        monkeypatch.setattr(load, "native", lambda name: {"launch": built}[name])
    return str(request.param)


@pytest.fixture
def generator(program: str) -> Iterator[Generator]:
    with Generator() as generator:
        yield generator
    assert generator._process.returncode == 0
