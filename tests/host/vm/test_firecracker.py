"""Firecracker, a fake and a real one where there is one: starts, failures, what is left."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import polars as pl
import pytest
from tests.support import fakecracker
from tests.support.laboratory import Bench, commands_of, laboratory, sanitized
from tests.support.machineroom import Room
from tests.support.tinyguest import HALT, RESET, SPIN, Tiny, says

from firstlight.errors import Failed, Unsupported
from firstlight.lab.backends import accel, firecracker_probe, vm
from firstlight.lab.backends.firecracker import Firecracker, without_pvh
from firstlight.lab.guests import images
from firstlight.lab.load import Generator
from firstlight.model import Ending, GuestLog, Sample

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
READY = says("booting\r\nready\r\n") + HALT
VMRUN = ("lab/vmrun.c", "lab/vmstream.c", "lab/vmmonitor.c", "lab/vmapi.c", "lab/vmjournal.c",
         "common/http.c", "common/socket.c", "common/error.c")  # fmt: skip
API_STEPS = ["api.connect", "api/machine-config", "api/boot-source"]


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with laboratory(f"test-{os.getpid()}-fc") as place, Generator() as generator:
        yield Room(place, generator)


@pytest.fixture(scope="module")
def sanitized_vmrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vmrun, stopped by its first wrong access or undefined operation."""
    return sanitized(tmp_path_factory.mktemp("vmrun"), *VMRUN)


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fake") / "firecracker"
    return script(path, f"#!{sys.executable}\n{Path(fakecracker.__file__).read_text()}")


@pytest.fixture(scope="module")
def real() -> str:
    try:
        result = firecracker_probe.find()
        firecracker_probe.run_guest(result)
    except Unsupported as error:
        pytest.skip(f"needs a real Firecracker, and KVM: {error.message}")
    return result


@pytest.fixture(params=["fake", "real"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Its path; the fake is run by the sanitized vmrun, and needs no KVM."""
    if request.param == "real":
        return str(request.getfixturevalue("real"))
    monkeypatch.setattr(firecracker_probe, "_KVM", tmp_path / "kvm")
    (tmp_path / "kvm").touch()
    vmrun = request.getfixturevalue("sanitized_vmrun")
    monkeypatch.setattr(vm, "native", lambda name: {"vmrun": vmrun}[name])
    return str(request.getfixturevalue("fake"))


def machine(program: str, guest: Tiny, way: str = "config", **more: object) -> Firecracker:
    return Firecracker(guest, **({"binary": program, "way": way, "memory_mb": 64} | more))  # type: ignore[arg-type]


def ready(samples: list[Sample]) -> list[Sample]:
    for sample in samples:
        assert sample.ending is Ending.READY, sample
        assert sample.stamps.ready is not None
        assert sample.steps[0].name == "hypervisor.init"
        assert (
            sample.stamps.spawned
            < sample.steps[0].start
            < sample.steps[0].end
            <= sample.stamps.ready
        )
    return samples


def steps(sample: Sample) -> list[str]:
    """The names of those that come after the hypervisor's initialisation."""
    assert sample.steps[0].name == "hypervisor.init"
    return [step.name for step in sample.steps[1:]]


@pytest.mark.parametrize("protocol", ["direct", "pvh"])
@pytest.mark.parametrize("way", ["config", "api"])
def test_a_guest_boots(room: Room, tmp_path: Path, program: str, way: str, protocol: str) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    guest = Tiny(READY, disk=tmp_path / "disk")
    [sample] = ready(room.start(machine(program, guest, way, protocol=protocol)))
    assert sample.guest is not None
    assert sample.guest.console == "booting\nready"
    devices = ["api/drives/disk", "api/network-interfaces/net", "api/entropy", "api/actions"]
    assert steps(sample) == [*API_STEPS, *devices] * (way == "api")
    assert room.leftovers() == []


@pytest.mark.parametrize(("protocol", "mode"), [("direct", "long"), ("pvh", "protected")])
def test_a_kernel_is_entered_as_it_was_asked(
    room: Room, real: str, protocol: str, mode: str
) -> None:
    long = says("long mode\r\n") + HALT
    asks = bytes.fromhex("31c0 4090 85c0 75")  # xor eax, eax; inc eax, or a prefix; test; jnz
    code = asks + bytes((len(long),)) + long + says("protected mode\r\n") + HALT
    ready(room.start(machine(real, Tiny(code, ready=f"^{mode} mode"), protocol=protocol)))


def test_requests_are_stamped_one_after_the_other(room: Room, program: str) -> None:
    [sample] = ready(room.start(machine(program, Tiny(READY), "api")))
    init, *asked = sample.steps
    edges = [edge for step in asked for edge in (step.start, step.end)]
    assert edges == sorted(edges)
    assert asked[0].start == init.start
    assert asked[-1].start < init.end  # it is the start that lets the guest run


@pytest.mark.parametrize("way", ["config", "api"])
def test_the_tracer_sees_the_guest_entered_when_the_log_says(
    bench: Bench, real: str, way: str
) -> None:
    with commands_of(machine(real, Tiny(READY), way), 1, bench.workspace) as commands:
        seen = bench.starts(commands)
    entered = next(step.end for step in seen.sample.steps if step.name == "hypervisor.init")
    calls = seen.spans.filter(pl.col("name") == "ioctl")
    made = calls.filter(pl.col("detail").str.ends_with(" CREATE_VCPU"))
    run = calls.filter(pl.col("detail").str.ends_with(" RUN"))
    assert made["end"].max() < entered < run["start"].min()  # type: ignore[operator]


def test_a_machine_without_a_network_needs_no_tap(
    room: Room, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "plugged", None)
    ready(room.start(machine(program, Tiny(READY), devices=())))


def test_snapshots_are_restored_each_on_its_own_tap(room: Room, program: str) -> None:
    samples = ready(room.start(machine(program, Tiny(READY), "snapshot"), 2))
    for sample in samples:
        assert steps(sample) == ["api.connect", "api/snapshot/load"]
        assert sample.stamps.ready == sample.steps[-1].end
        assert sample.guest == GuestLog("none")  # all that it says it had said before
    assert room.leftovers() == []


def test_a_log_in_another_time_zone_tells_the_same_time(room: Room, program: str) -> None:
    start = machine(program, Tiny(READY))
    with commands_of(start, 1, room.workspace) as [command]:
        room.batches += 1
        there = replace(command, env=command.env | {"TZ": "XXX-5:45"})
        [outcome] = room.generator.run(room.batches, [there], deadline=60)
        room.generator.stop(room.batches, deadline=60)
    [init, ready] = [line.split() for line in outcome.output.splitlines()[:2]]
    assert init[1:3] == ["step", "hypervisor.init"]
    assert outcome.spawned < int(init[4]) <= int(ready[2])


def test_writes_to_a_disk_are_an_instances_own(room: Room, tmp_path: Path, program: str) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    start = machine(program, Tiny(READY, disk=disk, writable=True))
    with commands_of(start, 2, room.workspace):
        copies = list(room.workspace.directory.rglob("disk"))
        assert len(copies) == 2
        assert disk not in copies
    with pytest.raises(Failed, match="2 restored guests would write to one disk"):
        room.start(machine(program, Tiny(READY, disk=disk, writable=True), "snapshot"), 2)
    ready(room.start(machine(program, Tiny(READY, disk=disk, writable=True), "snapshot")))
    assert room.leftovers() == []


@pytest.mark.parametrize("way", ["config", "api", "snapshot"])
def test_a_jailed_one_starts_and_leaves_no_jail(
    room: Room, tmp_path: Path, real: str, way: str
) -> None:
    jailer = shutil.which("jailer") or str(Path(real).with_name("jailer"))
    linked = subprocess.run(["ldd", real], capture_output=True, text=True)
    if not Path(jailer).exists() or "=>" in linked.stdout:
        pytest.skip("needs a real Firecracker linked statically, and its jailer beside it")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    guest = Tiny(READY, disk=disk, writable=True)
    ready(room.start(machine(real, guest, way, jailer=jailer), 2))
    assert room.leftovers() == []


# Bad input: each is a sample that says what happened, and leaves nothing.


def failed(room: Room, start: Firecracker, *words: str) -> Sample:
    [sample] = room.start(start)
    assert sample.ending is Ending.FAILED, sample
    for word in words:
        assert word in str(sample.error)
    assert room.leftovers() == []
    return sample


@pytest.mark.parametrize("way", ["config", "api"])
def test_a_guest_that_reboots(room: Room, program: str, way: str) -> None:
    failed(room, machine(program, Tiny(says("panic\r\n") + RESET), way),
           "exited with status 0 before the guest was ready", 'last printed "panic"')  # fmt: skip


@pytest.mark.parametrize(
    ("way", "code"),
    [("api", says("half\r\n") + SPIN), ("config", says("") + HALT)],
    ids=["half", "silent"],
)
def test_a_guest_that_hangs(room: Room, program: str, code: bytes, way: str) -> None:
    [sample] = room.start(machine(program, Tiny(code), way), deadline=4)
    assert sample.ending is Ending.HUNG
    assert steps(sample)[-1:] == ["api/actions"] * (way == "api")  # how far it came
    assert room.leftovers() == []


@pytest.mark.parametrize("way", ["config", "api"])
def test_what_firecracker_refuses_is_reported_in_its_words(
    room: Room, tmp_path: Path, program: str, way: str
) -> None:
    missing = Tiny(READY, disk=tmp_path / "none")
    sample = failed(room, machine(program, missing, way), "No such file or directory (os error 2)")
    assert [step.name for step in sample.steps] == [*API_STEPS, "api/drives/disk"] * (way == "api")
    assert way != "api" or "PUT /drives/disk answered 400: " in str(sample.error)


def test_a_snapshot_of_another_version(room: Room, program: str) -> None:
    start = machine(program, Tiny(READY), "snapshot")
    with commands_of(start, 1, room.workspace) as commands:
        [state] = room.workspace.directory.rglob("snapshot.state")
        state.write_text('["0.23.0", {}]')
        room.batches += 1
        [outcome] = room.generator.run(room.batches, commands, deadline=60)
        room.generator.stop(room.batches, deadline=60)
    assert "firstlight error " in outcome.output
    assert "PUT /snapshot/load answered 400: Load snapshot error: " in outcome.output
    assert room.leftovers() == []


def test_a_guest_that_is_never_ready_to_be_saved(room: Room, program: str) -> None:
    with pytest.raises(
        Failed, match=r"cannot make a snapshot of the guest: .* before the guest was ready"
    ):
        room.start(machine(program, Tiny(says("panic\r\n") + RESET), "snapshot"))
    assert room.leftovers() == []


def test_guests_that_it_cannot_boot(room: Room, tmp_path: Path, program: str) -> None:
    bare = tmp_path / "kernel"
    bare.write_bytes(without_pvh(accel.elf(READY)))
    assert not images.kernel(bare).pvh
    for guest, protocol, words in [
        (Tiny(READY, ready=None), "direct", "has no ready line on the console"),
        (Tiny(), "direct", "has no kernel"),
        (Tiny(kernel=bare), "pvh", "has no PVH entry"),
    ]:
        with pytest.raises(Failed, match=words):
            room.start(machine(program, guest, protocol=protocol))
    assert room.leftovers() == []


@pytest.mark.parametrize("victim", ["vmrun", "firecracker"])
@pytest.mark.parametrize("way", ["config", "api", "snapshot"])
def test_a_kill_in_the_middle_leaves_nothing(
    room: Room, program: str, way: str, victim: str
) -> None:
    start = machine(program, Tiny(READY), way)
    with commands_of(start, 2, room.workspace) as commands:
        room.batches += 1
        outcomes = room.generator.run(room.batches, commands, deadline=60)
        children = [
            int(Path(f"/proc/{outcome.pid}/task/{outcome.pid}/children").read_text())
            for outcome in outcomes
        ]
        for pid in [outcome.pid for outcome in outcomes] if victim == "vmrun" else children:
            os.kill(pid, signal.SIGKILL)
        room.generator.stop(room.batches, deadline=60)
    assert room.leftovers() == []


def test_what_is_missing_is_reported_before_anything_starts(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(start: Firecracker) -> str:
        with pytest.raises(Unsupported) as error:
            start.probe()
        assert error.value.hint
        return error.value.message

    old = script(tmp_path / "old", "#!/bin/sh\necho Firecracker v1.11.0\n")
    mute = script(tmp_path / "mute", "#!/bin/sh\n")
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(firecracker_probe, "_KVM", tmp_path / "kvm")
    for how, words in [
        ({"binary": str(tmp_path / "none")}, "is not installed"),
        ({"binary": str(mute)}, "is not Firecracker"),
        ({"binary": str(old), "protocol": "pvh"}, "older than 1.12"),
        ({"binary": str(old)}, "cannot run a guest here"),
        ({"protocol": "disk"}, "has no firmware"),
        ({"console": "vga"}, "has no vga console"),
        ({"chart": "memory"}, "does not expose its guest's memory"),
        ({"way": "luck"}, "unknown option 'luck'"),
        ({"jailer": str(tmp_path / "none")}, "is not installed"),
    ]:
        assert words in unsupported(Firecracker(Tiny(), **({"binary": str(fake)} | how)))  # type: ignore[arg-type]
    monkeypatch.setattr(firecracker_probe, "_KVM", tmp_path / "no-kvm")
    assert "no-kvm cannot be opened: No such file" in unsupported(
        Firecracker(
            Tiny(), binary=str(script(tmp_path / "new", "#!/bin/sh\necho Firecracker v1.16.0\n"))
        )
    )


def test_a_kvm_that_runs_nothing_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(firecracker_probe, "_KVM", tmp_path / "kvm")
    program = script(tmp_path / "mute", f"#!/bin/sh\necho >> {tmp_path}/runs\n")
    for _ in range(2):
        with pytest.raises(Unsupported, match="mute cannot run a guest here"):
            firecracker_probe.run_guest(str(program))
    assert (tmp_path / "runs").read_text() == "\n"


def test_a_variable_names_the_binary(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(firecracker_probe.VARIABLE, str(fake))
    assert firecracker_probe.find() == str(fake)
    other = script(tmp_path / "other", "#!/bin/sh\n")
    assert firecracker_probe.find(str(other)) == str(other)
    assert firecracker_probe.version(str(fake)) == (1, 16, 1)


# The API client, at its edges.


class Server:
    """Answers each connection with the given bytes, in pieces."""

    def __init__(self, path: Path, pieces: list[bytes]) -> None:
        self._pieces, self.asked = pieces, b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._socket.accept()
        with peer:
            for piece in self._pieces:
                if piece == b"":
                    self.asked += peer.recv(65536)
                else:
                    peer.sendall(piece)
                    while unread(peer):
                        os.sched_yield()

    def close(self) -> None:
        self._thread.join()
        self._socket.close()


def unread(peer: socket.socket) -> int:
    """How much of what was sent the other end has not read yet, in bytes."""
    left = array("i", [0])
    fcntl.ioctl(peer, termios.TIOCOUTQ, left)
    return left[0]


NO_CONTENT = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
FAULT = b'{"fault_message":"a \\"bad\\"\\nthing"}'
ONE = 'PUT /entropy {"a": 1}\n'


@pytest.mark.parametrize(
    ("requests", "pieces", "expected"),
    [
        (ONE * 2, [b"", NO_CONTENT, b"", NO_CONTENT], "firstlight ready "),
        (ONE, [b"", *(bytes((byte,)) for byte in NO_CONTENT)], "firstlight ready "),
        (ONE, [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", b"a", b"bc"], "ready "),
        (ONE, [b"", b"HTTP/1.1 400 \r\nContent-Length: %d\r\n\r\n" % len(FAULT), FAULT],
         'PUT /entropy answered 400: a "bad" thing'),
        (ONE, [b"", b"HTTP/1.1 500 \r\nContent-Length: 4\r\n\r\noops"], "answered 500: oops"),
        (ONE, [b"", b"HTTP/1.1 500 \r\n\r\n"], "answered 500: no reason given"),
        (ONE, [b"", b"SSH-2.0\r\n\r\n"], "was not answered in HTTP"),
        (ONE, [b"", b"HTTP/1.1 200 \r\n" + b"x: y\r\n" * 4096], "has too long an answer"),
        ("PUT /entropy\n", [], "is not METHOD PATH BODY"),
        ("", [], "has no request"),
        (ONE * 17, [], "has more than 16 requests"),
    ],
    ids=["two", "byte by byte", "a body", "a fault", "no JSON", "no body", "no HTTP", "too long",
         "no request's body", "none", "too many"],
)  # fmt: skip
def test_answers(
    tmp_path: Path, sanitized_vmrun: Path, requests: str, pieces: list[bytes], expected: str
) -> None:
    (tmp_path / "requests").write_text(requests)
    with asking(sanitized_vmrun, tmp_path, "exec sleep 60") as lines:
        server = Server(tmp_path / "api", pieces) if pieces else None
        assert expected in last(lines)
        if server:
            server.close()
            assert server.asked.startswith(b"PUT /entropy HTTP/1.1\r\nHost: localhost\r\n")
            assert b'Content-Length: 8\r\n\r\n{"a": 1}' in server.asked


def test_a_hypervisor_that_dies_before_its_api(tmp_path: Path, sanitized_vmrun: Path) -> None:
    (tmp_path / "requests").write_text(ONE)
    with asking(sanitized_vmrun, tmp_path, "echo no licence >&2\nexit 3") as lines:
        how = "the hypervisor exited with status 3 before the guest was ready: no licence"
        assert how in last(lines)


@contextmanager
def asking(vmrun: Path, directory: Path, body: str) -> Iterator[IO[str]]:
    """What vmrun says of a script that stands for a hypervisor, whose API is ours."""
    command = script(directory / "hypervisor", f"#!/bin/sh\n{body}\n")
    run = subprocess.Popen(
        [str(vmrun), "--log", "log", "--api", "api", "--requests", "requests",
         "--answered", "--", str(command)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=directory,
    )  # fmt: skip
    with run:
        assert run.stdout is not None
        yield run.stdout


def last(lines: IO[str]) -> str:
    return next(line for line in lines if line.startswith(("firstlight ready", "firstlight err")))
