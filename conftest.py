"""Every test has a deadline, and so has the end of the suite.

In CI a skip is a failure, but for what its machine cannot have: others' programs, KVM, cgroup v1.

A test of the real host may fail because of what else the machine does: CI runs it up to twice more
and names it. Tests that interrupt themselves can, wherever the suite was started.
"""

import faulthandler
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

MAY_BE_MISSING = (
    "make cni-plugins", "make cni-daemons", "make engines", "make kubernetes",
    "make aws-cli",
    "needs a real Firecracker",
    "needs an OSv", "and podman", "and nsjail", "needs the freezer of cgroup v1",
)  # fmt: skip
_DEADLINE, _CLUSTER_DEADLINE, _AGAIN, _END = 300, 1200, 30, 120
"""Seconds after which a test fails, one of the cluster, its cleaning up, and the suite's end."""
_skipped: dict[str, None] = {}


# How long an example takes proves nothing, and a suite that must pass draws the same each time:
# ``make fuzz`` draws others.
settings.register_profile(
    "firstlight", deadline=None, derandomize="FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
settings.load_profile("firstlight")


def pytest_configure() -> None:
    """A shell's ``&`` has SIGINT ignored: tests that interrupt themselves would wait for ever."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    """A thread that a test has left behind may keep the interpreter from its end.

    A worker of pytest-xdist waits for the others, and ends with this process.
    """
    if not hasattr(config, "workerinput"):
        faulthandler.dump_traceback_later(_END, exit=True)


def _missing_fixtures(item: pytest.Item) -> list[str]:
    """What a test or its fixtures ask for by a name that nothing has."""
    if not isinstance(item, pytest.Function):
        return []
    info = item._fixtureinfo
    return [name for name in info.names_closure
            if name != "request" and name not in info.name2fixturedefs]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Elsewhere than in CI a failure is shown as it is, and no unit test depends on the machine.

    That a fixture is missing shows before the first test, also of one that comes last.
    """
    missing = [f"{item.nodeid}: no fixture {name!r}" for item in items
               for name in _missing_fixtures(item)]  # fmt: skip
    if missing:
        raise pytest.UsageError("\n".join(missing))
    if os.environ.get("CI"):
        for item in items:
            if "unit" not in item.path.parts:
                item.add_marker(pytest.mark.flaky(reruns=2))


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Fail what goes on for longer, and again what waits for the same thing in its ``finally``."""

    def late(number: int, frame: FrameType | None) -> None:
        with suppress(subprocess.TimeoutExpired):  # shown with the failure
            subprocess.run(["ps", "-eo", "pid,ppid,stat,wchan:20,args"], timeout=10)
        pytest.fail(f"the test was not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _seconds(item: pytest.Item) -> float:
    fuzzed = int(os.environ.get("FUZZ", "0"))  # examples, none of which takes a second
    return fuzzed + (_CLUSTER_DEADLINE if "kubernetes" in item.path.parts else _DEADLINE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _deadline(_seconds(item)):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _deadline(_seconds(item)):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with _deadline(_seconds(item)):
        return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and not any(words in str(report.longrepr) for words in MAY_BE_MISSING)
    ):
        _skipped[f"{report.nodeid}: {report.longrepr}"] = None


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped[f"{report.nodeid}: {report.longrepr}"] = None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker of pytest-xdist has skipped."""
    _skipped.update(dict.fromkeys(getattr(node, "workeroutput", {}).get("skipped", ())))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["skipped"] = list(_skipped)
    elif os.environ.get("CI") and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().line(
            "\nskipped in CI:\n" + "\n".join(_skipped), red=True
        )
