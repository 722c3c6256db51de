"""Network set-up requests on the real kernel, inside a lab of the test's own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.laboratory import commands_of

from firstlight.errors import Unsupported
from firstlight.host import workspace as workspaces
from firstlight.host.netns import settle
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Execute
from firstlight.lab.backends.network import CROWD, METHODS, TRICKS, NetworkSetup
from firstlight.lab.backends.network_steps import GATEWAY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ALL_STEPS = ["netns", "veth", "move", "host.up", "container.up", "address", "route"]
ECHO = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(60)
    s.sendto(b"first light", (sys.argv[1], int(sys.argv[2])))
    print(s.recv(64).decode())
"""


@pytest.fixture
def lab() -> Iterator[Workspace]:
    """A lab around one test; afterwards the test process is back where it was."""
    cwd = Path.cwd()
    with ExitStack() as files:
        home = [
            (files.enter_context(Path(f"/proc/thread-self/ns/{kind}").open()), flag)
            for kind, flag in (("net", 0x40000000), ("mnt", 0x00020000))
        ]
        with workspaces.sandbox(f"test-{os.getpid()}") as place:
            yield place
        for file, flag in home:
            assert workspaces._libc.setns(file.fileno(), flag) == 0
        os.chdir(cwd)


@contextmanager
def started(command: Execute) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command.argv, env=command.env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def output(process: subprocess.Popen[str]) -> list[str]:
    """What a start says until it is ready or has failed."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if not line.startswith("firstlight step"):
            break
    return lines


def finish(process: subprocess.Popen[str]) -> int:
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(timeout=60)


def run_once(command: Execute, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command.argv, env=command.env | more, text=True, capture_output=True,
        stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip


def step_names(lines: list[str]) -> list[str]:
    return [line.split()[2] for line in lines if line.startswith("firstlight step ")]


def state() -> tuple[list[str], str, list[str], str]:
    """Links, routes, mounts and addresses: what a start may leave behind."""
    mounts = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    return (
        sorted(name for _, name in socket.if_nameindex()),
        subprocess.check_output(["ip", "route"], text=True),
        sorted(line.split()[4] for line in mounts),
        subprocess.check_output(["ip", "-br", "address", "show", "dev", "lo"], text=True),
    )


def named() -> list[str]:
    return sorted(path.name for path in Path("/run/netns").iterdir())


def ip(*argv: str, enter: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    document: list[dict[str, Any]] = json.loads(
        subprocess.check_output([*enter, "ip", "-d", "-j", *argv]) or "[]"
    )
    return document


def addresses(link: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["local"]: entry for entry in link["addr_info"]}


def namespace_of(process: subprocess.Popen[str]) -> tuple[str, ...]:
    """How to enter the container's network namespace, which the start holds open."""
    ours = Path("/proc/thread-self/ns/net").stat().st_ino
    for file in Path(f"/proc/{process.pid}/fd").iterdir():
        if file.readlink().name.startswith("net:") and file.stat().st_ino != ours:
            return ("nsenter", f"--net={file}")
    raise AssertionError("the start holds no network namespace")


@pytest.mark.parametrize("method", METHODS)
def test_every_step_is_stamped_in_order(lab: Workspace, method: str) -> None:
    with commands_of(NetworkSetup(method=method), 1, lab) as [command]:
        done = run_once(command)
    assert done.returncode == 0, done.stdout
    *steps, ready = done.stdout.splitlines()
    assert step_names(steps) == ALL_STEPS
    stamps = [int(stamp) for step in steps for stamp in step.split()[3:]]
    stamps.append(int(ready.removeprefix("firstlight ready ")))
    assert stamps == sorted(stamps)


@pytest.mark.parametrize("method", METHODS)
def test_a_packet_goes_from_the_container_to_the_host_and_back(lab: Workspace, method: str) -> None:
    with (
        commands_of(NetworkSetup(method=method), 2, lab) as [_, command],
        started(command) as process,
    ):
        assert output(process)[-1].startswith("firstlight ready ")
        [link] = ip("-n", "fl1", "address", "show", "dev", "fl1-c")
        assert addresses(link)["10.88.0.3"]["prefixlen"] == 32
        [default] = ip("-n", "fl1", "route")
        assert (default["dst"], default["gateway"]) == ("default", str(GATEWAY))
        [route] = ip("route", "show", "dev", "fl1-h")
        assert route["dst"] == "10.88.0.3"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((str(GATEWAY), 0))
            server.settimeout(60)
            client = subprocess.Popen(
                ["ip", "netns", "exec", "fl1", sys.executable, "-c", ECHO,
                 str(GATEWAY), str(server.getsockname()[1])],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            packet, sender = server.recvfrom(64)
            server.sendto(packet, sender)
            assert client.communicate(timeout=60)[0] == "first light\n"
        assert sender[0] == "10.88.0.3"
        assert finish(process) == 0


@pytest.mark.parametrize(
    "backend", [*map(NetworkSetup, METHODS), *(NetworkSetup(trick=trick) for trick in TRICKS)]
)
def test_nothing_is_left_after_the_end_of_input(lab: Workspace, backend: NetworkSetup) -> None:
    outside = state()
    with commands_of(backend, 2, lab) as commands:
        inside = state()
        names = named()
        for command in commands:
            with started(command) as process:
                assert output(process)[-1].startswith("firstlight ready ")
                assert state() != inside
                assert finish(process) == 0
        assert state() == inside
        assert named() == names
    assert state() == outside


def test_input_that_ended_before_the_start_is_no_failure(lab: Workspace) -> None:
    with commands_of(NetworkSetup(), 1, lab) as [command]:
        inside = state()
        assert run_once(command).returncode == 0
        assert state() == inside


@pytest.mark.parametrize("method", METHODS)
def test_a_request_to_end_takes_down_what_was_made(lab: Workspace, method: str) -> None:
    with commands_of(NetworkSetup(method=method), 1, lab) as [command]:
        inside = state()
        with started(command) as process:
            output(process)
            process.terminate()
            assert process.wait(timeout=60) == 0
        assert state() == inside


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_of_starts_that_were_killed_at_any_step(
    lab: Workspace, method: str
) -> None:
    outside = state()
    with commands_of(NetworkSetup(method), 12, lab) as commands, ExitStack() as starts:
        processes = [starts.enter_context(started(command)) for command in commands]
        for process in processes[:6]:
            process.kill()  # somewhere within its steps
        for process in processes[6:]:
            assert output(process)[-1].startswith("firstlight ready ")
            process.kill()
        for process in processes:
            assert process.wait() == -signal.SIGKILL
        assert any(name.endswith("-h") for _, name in socket.if_nameindex())
    assert state() == outside


@pytest.mark.parametrize("method", METHODS)
def test_fifty_at_once_succeed(lab: Workspace, method: str) -> None:
    with commands_of(NetworkSetup(method=method), 50, lab) as commands, ExitStack() as starts:
        processes = [starts.enter_context(started(command)) for command in commands]
        for process in processes:
            assert output(process)[-1].startswith("firstlight ready ")
        links = {name for _, name in socket.if_nameindex()}
        assert links == {"lo", *(f"fl{index}-h" for index in range(50))}
        assert [finish(process) for process in processes] == [0] * 50


def test_the_plain_request_moves_a_veth_and_names_its_namespace(lab: Workspace) -> None:
    with commands_of(NetworkSetup(), 1, lab) as [command], started(command) as process:
        assert step_names(output(process)) == ALL_STEPS
        assert named() == ["fl0"]
        loopback, link = ip("-n", "fl0", "address")
        assert "UP" in loopback["flags"]
        assert link["linkinfo"]["info_kind"] == "veth"
        assert any(address.startswith("fe80:") for address in addresses(link))


def test_a_veth_in_place_is_not_moved(lab: Workspace) -> None:
    with (
        commands_of(NetworkSetup(trick="veth in place"), 1, lab) as [command],
        started(command) as process,
    ):
        assert step_names(output(process)) == [name for name in ALL_STEPS if name != "move"]
        [link] = ip("-n", "fl0", "address", "show", "dev", "fl0-c")
        assert "10.88.0.2" in addresses(link)


def test_ip_can_make_a_veth_in_place_too(lab: Workspace) -> None:
    with commands_of(NetworkSetup(method="ip", trick="veth in place"), 1, lab) as [command]:
        done = run_once(command)
    assert step_names(done.stdout.splitlines()) == [name for name in ALL_STEPS if name != "move"]


def test_ipv6_off_leaves_no_address_on_either_end(lab: Workspace) -> None:
    switch = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    before = switch.read_text()
    with (
        commands_of(NetworkSetup(trick="IPv6 off"), 1, lab) as [command],
        started(command) as process,
    ):
        assert output(process)[-1].startswith("firstlight ready ")
        ends = [*ip("-n", "fl0", "address"), *ip("address", "show", "dev", "fl0-h")]
        result = [entry["family"] for end in ends for entry in end["addr_info"]]
        assert result == ["inet", "inet"]  # lo's own, and the container's
    assert switch.read_text() == before


@pytest.mark.parametrize(("trick", "is_checked"), [("DAD on", True), ("DAD off", False)])
def test_an_ipv6_address_is_usable_once_ready(lab: Workspace, trick: str, is_checked: bool) -> None:
    with commands_of(NetworkSetup(trick=trick), 1, lab) as [command], started(command) as process:
        assert step_names(output(process)) == [*ALL_STEPS[:-1], "address6", "route"]
        [link] = ip("-n", "fl0", "address", "show", "dev", "fl0-c")
        result = addresses(link)["fd88::2"]
        assert "tentative" not in result
        assert ("nodad" not in result) == is_checked


def test_a_descriptor_holds_a_namespace_without_a_name(lab: Workspace) -> None:
    with (
        commands_of(NetworkSetup(trick="namespace by descriptor"), 1, lab) as [command],
        started(command) as process,
    ):
        assert step_names(output(process)) == ALL_STEPS
        assert named() == []
        [link] = ip("address", "show", "dev", "fl0-c", enter=namespace_of(process))
        assert "10.88.0.2" in addresses(link)


@pytest.mark.parametrize(("trick", "copied"), [("crowded mounts", CROWD), ("pruned mounts", 0)])
def test_mount_namespace_copies_crowd_unless_pruned(
    lab: Workspace, trick: str, copied: int
) -> None:
    with commands_of(NetworkSetup(trick=trick), 1, lab) as [command], started(command) as process:
        assert step_names(output(process)) == [*ALL_STEPS, "mount.ns"]
        [child] = subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()
        mounts = Path(f"/proc/{child}/mountinfo").read_text()
        assert mounts.count("/run/netns/crowd") == copied
        assert mounts.count("/run/netns/fl0 ") == 1
        assert len(named()) == CROWD + (trick == "crowded mounts")
        spaces = {Path(f"/proc/{pid}/ns/mnt").readlink() for pid in (child, process.pid)}
        assert len(spaces) == 2


def test_all_tricks_together(lab: Workspace) -> None:
    with commands_of(NetworkSetup(trick="all"), 1, lab) as [command], started(command) as process:
        assert step_names(output(process)) == [name for name in ALL_STEPS if name != "move"]
        assert named() == []
        [link] = ip("address", "show", "dev", "fl0-c", enter=namespace_of(process))
        assert list(addresses(link)) == ["10.88.0.2"]


def test_remove_tolerates_link_gone_with_peer(lab: Workspace) -> None:
    before = state()
    with commands_of(NetworkSetup(method="netlink"), 1, lab):
        words = "ip link add fl0-h type veth peer name fl0-c"
        subprocess.check_call(words.split())
    assert state() == before


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("netlink", r"step veth: cannot create fl0-h with its peer fl0-c: "
                    r"File exists"),
        ("ip", r"step veth: ip link add fl0-h type veth peer name fl0-c exited with 2: "
               r"RTNETLINK answers: File exists"),
    ],
)  # fmt: skip
def test_a_failure_names_the_step_and_undoes_the_others(
    lab: Workspace, method: str, text: str
) -> None:
    with commands_of(NetworkSetup(method=method), 1, lab) as [command]:
        subprocess.check_call(["ip", "link", "add", "fl0-h", "type", "veth", "peer", "other"])
        inside = state()
        done = run_once(command)
        assert done.returncode == 1
        assert re.fullmatch(f"firstlight error {text}\n", done.stdout)
        assert state() == inside  # what it did not make is still there
        assert named() == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("enter", "/nonexistent"), "cannot enter the mount namespace /nonexistent: No such"),
        (("step", "one", "what"), "the action what is unknown, or not whole"),
        (("step", "one", "host", "make it"), "the action host is unknown, or not whole"),
        (("run", "ip", "link"), "the action run is unknown, or not whole"),
        (("step", "one") * 64, "there are more than 64 actions"),
    ],
)
def test_a_bad_request_makes_nothing(lab: Workspace, words: tuple[str, ...], text: str) -> None:
    with commands_of(NetworkSetup(), 1, lab) as [command]:
        inside = state()
        done = run_once(Execute((*command.argv, *words), command.env))
        assert done.returncode == 1
        assert text in done.stdout
        assert state() == inside


def test_a_missing_ip_is_an_error_of_the_first_step(lab: Workspace) -> None:
    with commands_of(NetworkSetup(method="ip"), 1, lab) as [command]:
        done = run_once(command, PATH="/nonexistent")
    assert done.stdout == (
        "firstlight error step netns: cannot execute ip: No such file or directory\n"
    )


def test_settling_waits_for_the_end_of_every_namespace(lab: Workspace) -> None:
    with commands_of(NetworkSetup(), 1, lab):
        for index in range(10):
            subprocess.check_call(
                ["unshare", "--net", "ip", "link", "add", "x", "type", "veth", "peer", "name",
                 f"old{index}", "netns", str(os.getpid())],
            )  # fmt: skip
    settle()
    assert [name for _, name in socket.if_nameindex()] == ["lo"]


def test_doctor_passes_here_and_hints_without_ip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    NetworkSetup().probe()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unsupported, match="ip is not installed") as caught:
        NetworkSetup().probe()
    assert caught.value.hint == "apt-get install iproute2"
