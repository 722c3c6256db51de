"""Real QEMU, guests of a few bytes: how they boot, how they fail, and what is left of them."""

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.laboratory import Bench, commands_of, laboratory
from tests.support.machineroom import Room
from tests.support.tinyguest import (
    HALT,
    RESET,
    SPIN,
    TRIPLE_FAULT,
    Tiny,
    boot_sector,
    bz_image,
    exits,
    numbered,
    says,
    writing_boot_sector,
)

from firstlight.errors import Failed, Unsupported
from firstlight.lab.backends import accel, qemu_build, vm
from firstlight.lab.backends.qemu import Qemu
from firstlight.lab.load import Generator
from firstlight.model import Ending, Sample
from firstlight.native import native

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86"),
]
QEMU = shutil.which("qemu-system-x86_64") or ""
READY = says("ready\r\n") + HALT


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with laboratory(f"test-{os.getpid()}-vm") as place, Generator() as generator:
        yield Room(place, generator)


def tcg(guest: Tiny, **more: object) -> Qemu:
    return Qemu(guest, **({"accel": "tcg", "memory_mb": 64} | more))  # type: ignore[arg-type]


def ready(samples: list[Sample]) -> Sample:
    [sample] = samples
    assert sample.ending is Ending.READY, sample
    assert sample.stamps.ready is not None
    [init] = sample.steps
    assert init.name == "hypervisor.init"
    assert sample.stamps.spawned < init.start < init.end <= sample.stamps.ready
    return sample


@pytest.mark.parametrize("machine", ["microvm", "pc", "q35"])
def test_each_machine_enters_a_pvh_kernel(room: Room, machine: str) -> None:
    sample = ready(room.start(tcg(Tiny(numbered(5)), machine=machine)))
    assert sample.guest is not None
    assert sample.guest.console.split("\n") == [*(f"line {n:05}" for n in range(5)), "ready"]
    assert room.leftovers() == []


def test_kvm_runs_a_guest_or_the_reason_is_reported(room: Room) -> None:
    if accel.choose(QEMU).name == "kvm" or "KVM only emulates" in accel.choose(QEMU).reason:
        ready(room.start(tcg(Tiny(READY), accel="kvm")))
        return
    with pytest.raises(Unsupported, match="guests cannot run under KVM here") as error:
        accel.choose(QEMU, "kvm")
    assert error.value.hint


@pytest.mark.parametrize("console", ["serial", "vga"])
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_firmware_reads_a_disk(room: Room, tmp_path: Path, machine: str, console: str) -> None:
    disk = tmp_path / "a,b.img"
    disk.write_bytes(boot_sector())
    guest = Tiny(disk=disk)
    ready(room.start(tcg(guest, machine=machine, protocol="disk", console=console)))


@pytest.mark.parametrize(
    ("writable", "words"), [(True, "ready"), (False, "refused")], ids=["writable", "read-only"]
)
def test_what_a_guest_writes_is_its_own(
    room: Room, tmp_path: Path, writable: bool, words: str
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(writing_boot_sector())
    guest = Tiny(disk=disk, writable=writable, ready=f"^{words}$")
    for each in room.start(tcg(guest, machine="pc", protocol="disk"), 2):
        assert each.ending is Ending.READY, each
    assert disk.read_bytes() == writing_boot_sector()
    assert room.leftovers() == []


@pytest.mark.parametrize("machine", ["microvm", "pc", "q35"])
def test_firmware_jumps_into_a_kernel(room: Room, tmp_path: Path, machine: str) -> None:
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(bz_image())
    ready(room.start(tcg(Tiny(kernel=kernel), machine=machine, protocol="kernel")))


def test_the_end_of_boot_may_be_the_hypervisors_exit(room: Room) -> None:
    guest = Tiny(
        says("booting\r\n") + exits(0x3F0, 123), ready=None, exit_port=0x3F0, exit_code=123
    )
    first = ready(room.start(tcg(guest)))
    assert first.guest is not None
    assert first.guest.console == "booting"
    other = Tiny(exits(0x3F0, 5), ready=None, exit_port=0x3F0, exit_code=123)
    [failed] = room.start(tcg(other))
    assert failed.ending is Ending.FAILED
    assert "exited with status 11 before the guest was ready" in str(failed.error)


def test_a_prompt_without_an_end_is_a_line(room: Room) -> None:
    ready(room.start(tcg(Tiny(says("login: ") + HALT, ready="^login: $"))))


def test_output_after_a_guest_is_ready_is_read_to_its_last_line(room: Room) -> None:
    after = b"".join(says(f"chart {number}\r\n") for number in range(500))
    guest = Tiny(says("ready\r\n") + after + says("bye\r\n") + HALT, last="^bye$")
    sample = ready(room.start(tcg(guest)))
    assert sample.guest is not None
    assert [span.name for span in sample.guest.spans][-2:] == ["chart 499", "bye"]


def test_memory_is_left_in_a_file_for_the_reader(room: Room) -> None:
    seen = []

    class Reader(Tiny):
        def read(self, wanted, lines, memory):  # type: ignore[no-untyped-def]
            seen.append(memory.stat().st_size)
            with memory.open("rb") as file:
                file.seek(0x100000)
                seen.append(file.read(len(READY)) == READY)
            return super().read(wanted, lines, memory)

    ready(room.start(tcg(Reader(READY), chart="memory", machine="pc")))
    assert seen == [64 << 20, True]


def test_counted_time_runs_and_says_so(room: Room) -> None:
    how = tcg(Tiny(READY), icount=True)
    ready(room.start(how))
    assert how.note is not None
    assert "counted instructions" in how.note


def test_sixteen_at_once_lose_no_line_and_no_event(bench: Bench) -> None:
    lines = 300
    machine = tcg(Tiny(numbered(lines)))
    with commands_of(machine, 16, bench.workspace) as commands:
        seen = bench.starts(commands, deadline=120)
        logs = [command.guest() for command in commands if command.guest]
    assert seen.lost == 0
    assert [sample.ending for sample in seen.run.samples] == [Ending.READY] * 16
    expected = [*(f"line {number:05}" for number in range(lines)), "ready"]
    assert [[span.name for span in log.spans] for log in logs] == [expected] * 16


def test_the_guest_is_entered_before_the_first_kvm_run(bench: Bench) -> None:
    """The monitor's word against the kernel's: one stamps what the other sees a moment later."""
    if accel.choose(QEMU).name != "kvm" and "KVM only emulates" not in accel.choose(QEMU).reason:
        assert accel.choose(QEMU).reason  # there is no KVM to ask
        return
    machine = tcg(Tiny(READY), accel="kvm")
    with commands_of(machine, 1, bench.workspace) as commands:
        seen = bench.starts(commands, deadline=30)
    calls = seen.calls("ioctl").sort("start")
    ran = calls.filter(calls["detail"].str.contains(r"^anon:kvm-vcpu:0 RUN$"))
    [init] = seen.sample.steps
    assert init.end <= ran["start"][0] < seen.sample.stamps.ready
    before = calls.filter(calls["start"] < init.start)
    assert not before["detail"].str.contains("kvm").any()


def test_a_machine_without_a_network_needs_no_tap(room: Room) -> None:
    guest = Tiny(READY)
    machine = tcg(guest, devices=())
    with commands_of(machine, 1, room.workspace) as [command]:
        assert "-netdev" not in command.argv
        assert room.leftovers() == [str(room.workspace.directory / "vm")]
    ready(room.start(machine))


# Bad input: each is a sample that says what happened, and leaves nothing.


def failed(room: Room, machine: Qemu, *words: str) -> Sample:
    [sample] = room.start(machine)
    assert sample.ending is Ending.FAILED, sample
    for word in words:
        assert word in str(sample.error)
    assert room.leftovers() == []
    return sample


@pytest.mark.parametrize(
    ("code", "machine"), [(RESET, "pc"), (TRIPLE_FAULT, "microvm")], ids=["reset", "triple fault"]
)
def test_a_guest_that_reboots(room: Room, code: bytes, machine: str) -> None:
    guest = Tiny(says("panic: no root\r\n") + code)
    words = ("before the guest was ready: guest-reset", 'last printed "panic: no root"')
    sample = failed(room, tcg(guest, machine=machine), *words)
    assert sample.guest is not None
    assert [span.name for span in sample.guest.spans] == ["panic: no root"]
    assert sample.steps[0].name == "hypervisor.init"


def test_a_guest_that_hangs(room: Room) -> None:
    [sample] = room.start(tcg(Tiny(says("mounting\r\nno ro") + SPIN)), deadline=4)
    assert sample.ending is Ending.HUNG
    assert str(sample.error).endswith('the guest last printed "no ro"')
    assert room.leftovers() == []


def test_a_guest_that_says_nothing(room: Room) -> None:
    [sample] = room.start(tcg(Tiny(HALT)), deadline=1)
    assert sample.ending is Ending.HUNG
    assert str(sample.error).endswith("the guest printed nothing")


def test_a_kernel_without_the_pvh_note(room: Room, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(accel.elf(READY).replace(b"Xen\0", b"Abc\0"))
    with pytest.raises(Failed, match="has no PVH entry"):
        room.start(tcg(Tiny(kernel=kernel)))
    assert room.leftovers() == []


def test_a_kernel_of_another_architecture(room: Room, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    whole = accel.elf(READY)
    kernel.write_bytes(whole[:18] + (183).to_bytes(2, "little") + whole[20:])
    with pytest.raises(Failed, match="for aarch64, not x86_64"):
        room.start(tcg(Tiny(kernel=kernel)))
    assert room.leftovers() == []


@pytest.mark.parametrize("size", [0, 3, 40, 150, 220])
def test_a_truncated_kernel(room: Room, tmp_path: Path, size: int) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(accel.elf(READY)[:size])
    with pytest.raises(Failed, match="kernel"):
        room.start(tcg(Tiny(kernel=kernel)))
    assert room.leftovers() == []


def test_a_missing_kernel(room: Room, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="No such file"):
        room.start(tcg(Tiny(kernel=tmp_path / "none")))
    assert room.leftovers() == []


def test_a_missing_disk(room: Room, tmp_path: Path) -> None:
    failed(room, tcg(Tiny(READY, disk=tmp_path / "none")), "No such file", str(tmp_path / "none"))


def test_a_disk_without_a_boot_sector(room: Room, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(65536))
    [sample] = room.start(tcg(Tiny(disk=disk), machine="pc", protocol="disk"), deadline=2)
    assert sample.ending is Ending.HUNG
    assert room.leftovers() == []


def test_more_memory_than_there_is(room: Room) -> None:
    whole_address_space = 1 << 27  # less is only promised, where the host overcommits
    failed(room, tcg(Tiny(READY), memory_mb=whole_address_space), "annot", "memory")


def test_a_build_without_the_exit_device(room: Room, tmp_path: Path) -> None:
    guest = Tiny(exits(0x3F0, 123), ready=None, exit_port=0x3F0, exit_code=123)
    with pytest.raises(Unsupported, match="no device isa-debug-exit"):
        room.start(tcg(guest, binary=_build_without(tmp_path, "isa-debug-exit")))
    assert room.leftovers() == []


def test_a_tap_that_is_taken(room: Room) -> None:
    machine = tcg(Tiny(READY))
    with commands_of(machine, 1, room.workspace) as [command]:
        room.batches += 1
        [first, other] = room.generator.run(room.batches, [command, command], deadline=60)
        room.generator.stop(room.batches, deadline=60)
    [refusal] = [each for each in (first.output, other.output) if "firstlight ready" not in each]
    assert "could not configure /dev/net/tun" in refusal
    assert room.leftovers() == []


def test_what_is_missing_is_reported_before_anything_starts(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for machine, words in [
        (tcg(Tiny(), binary=str(tmp_path / "none")), "is not installed"),
        (tcg(Tiny(), binary=_build_without(tmp_path, "virtio-rng")), "no device virtio-rng-device"),
        (tcg(Tiny(), binary=_build_without(tmp_path, "^microvm")), "no machine type microvm"),
        (tcg(Tiny(), protocol="direct"), "64-bit entry"),
        (tcg(Tiny(), protocol="disk"), "cannot boot from disk"),
        (tcg(Tiny(), console="vga"), "has no VGA"),
        (tcg(Tiny(), machine="isapc"), "unknown option 'isapc'"),
        (tcg(Tiny(), accel="kvm", icount=True), "cannot count instructions"),
    ]:
        with pytest.raises(Unsupported, match=words) as error:
            machine.probe()
        assert error.value.hint
    monkeypatch.setattr(vm, "_TUN", tmp_path / "tun")
    with pytest.raises(Unsupported, match="cannot make taps"):
        tcg(Tiny()).probe()
    monkeypatch.setattr(accel, "_chosen", {})
    monkeypatch.setattr(accel, "_KVM", tmp_path / "kvm")
    with pytest.raises(Unsupported, match=r"kvm: No such file"):
        tcg(Tiny(), accel="kvm").probe()
    chosen = accel.choose(QEMU)
    assert chosen.name == "tcg"
    assert "cannot open" in chosen.reason


def _build_without(directory: Path, pattern: str) -> str:
    """A QEMU that knows less."""
    program = directory / f"qemu-without-{pattern}"
    program.write_text(f"#!/bin/sh\nqemu-system-x86_64 \"$@\" | grep -v '{pattern}'\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("victim", ["vmrun", "qemu-system-x86_64"])
def test_a_kill_in_the_middle_leaves_nothing(room: Room, victim: str) -> None:
    machine = tcg(Tiny(says("up\r\n") + SPIN, ready="^up"))
    with commands_of(machine, 2, room.workspace) as commands:
        room.batches += 1
        outcomes = room.generator.run(room.batches, commands, deadline=60)
        children = [
            int(Path(f"/proc/{each.pid}/task/{each.pid}/children").read_text()) for each in outcomes
        ]
        for pid in [each.pid for each in outcomes] if victim == "vmrun" else children:
            os.kill(pid, signal.SIGKILL)
        room.generator.stop(room.batches, deadline=60)
    assert room.leftovers() == []


@pytest.mark.parametrize("death", ["its input ends", "it is killed"])
def test_no_machine_outlives_vmrun(tmp_path: Path, death: str) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(accel.elf(says("up\r\n") + SPIN))
    run = subprocess.Popen(
        [str(native("vmrun")), "--log", str(tmp_path / "log"), "--ready", "^up", "--qmp", "--",
         QEMU, "-nodefaults", "-machine", "microvm,accel=tcg", "-m", "64", "-display", "none",
         "-kernel", str(kernel), "-serial", "stdio", "-S",
         "-chardev", "socket,id=m,fd=3", "-mon", "chardev=m,mode=control"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stdout.readline().startswith(b"firstlight step hypervisor.init")
        assert run.stdout.readline().startswith(b"firstlight ready")
        child = int(Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text())
        machine = os.pidfd_open(child)
        if death == "it is killed":
            run.kill()
        else:
            run.stdin.close()  # as the kernel does when the load generator is killed
        gone = select.poll()
        gone.register(machine, select.POLLIN)
        assert gone.poll(20_000)
        os.close(machine)


def test_the_linkers_unit_is_found_by_known_work() -> None:
    """A linker's count that is off by a digit would say a tenth of this."""
    spun = qemu_build.linking(str(native("linkspin")))
    assert 19_900_000 < spun.relocation_ns <= spun.total_ns < 199_000_000


def test_what_a_build_is_made_of() -> None:
    linked = qemu_build.linking(QEMU)
    assert linked.shared_objects > 20
    assert linked.relocations < linked.relative_relocations
    assert 0 < linked.load_ns + linked.relocation_ns <= linked.total_ns
    assert qemu_build.features(QEMU).devices > 100
