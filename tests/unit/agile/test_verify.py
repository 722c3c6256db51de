"""What is read of a process from outside: each thing that is not as expected is named."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from firstlight.agile import verify
from firstlight.errors import Failed

NAMED = "open('/proc/self/comm', 'wb').write(b'\\xff) R 4 (x'); print(flush=True); input()"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits: nothing of it is confined."""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        yield sleeper
        sleeper.kill()


def expected(pid: int) -> verify.Expected:
    filters = verify.filters(pid)
    return verify.Expected(
        os.geteuid(), os.getegid(), filters, verify.namespaces(pid), verify.cgroups(pid)
    )


def test_a_process_with_rights_is_not_confined(process: subprocess.Popen[bytes]) -> None:
    differences = verify.differences(process.pid, expected(process.pid))
    for key in ("NoNewPrivs", "Seccomp", "CapBnd"):
        assert any(each.startswith(key) for each in differences)


@pytest.mark.parametrize("name", verify.NAMESPACES)
def test_another_namespace_is_named(process: subprocess.Popen[bytes], name: str) -> None:
    right = expected(process.pid)
    wrong = replace(right, namespaces={**right.namespaces, name: "another"})
    more = set(verify.differences(process.pid, wrong)) - set(verify.differences(process.pid, right))
    assert f"its {name} namespace differs" in more


def test_another_identity_filter_or_cgroup_is_named(process: subprocess.Popen[bytes]) -> None:
    right = expected(process.pid)
    for wrong, words in (
        (replace(right, uid=right.uid + 1), "Uid is"),
        (replace(right, gid=right.gid + 1), "Gid is"),
        (replace(right, filters=right.filters + 1), "Seccomp_filters is"),
        (replace(right, cgroups={"memory": "/another"}), "its cgroup differs"),
    ):
        more = set(verify.differences(process.pid, wrong)) - set(
            verify.differences(process.pid, right)
        )
        assert [each for each in more if each.startswith(words)]


def test_what_a_process_shares_with_its_parent_is_named(process: subprocess.Popen[bytes]) -> None:
    assert verify.shared(process.pid, os.getpid()) == []
    same = verify.shared(os.getpid(), os.getpid())
    assert [each.rpartition(" ")[2] for each in same] == [
        "memory", "descriptors", "directories", "handlers"
    ]  # fmt: skip


def test_a_process_that_is_gone_is_no_instance(process: subprocess.Popen[bytes]) -> None:
    right = expected(process.pid)
    process.kill()
    process.wait()
    with pytest.raises(Failed, match="ended before it was ready"):
        verify.check("a fork", process.pid, right, os.getpid())


def test_a_process_that_ended_is_not_alive_whatever_its_name_is() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        assert ") R 4 (x" in verify.status(process.pid)["Name"]
        verify.check_alive(process.pid)
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):  # it is a zombie
            verify.check_alive(process.pid)
    with pytest.raises(FileNotFoundError):
        verify.check_alive(process.pid)
