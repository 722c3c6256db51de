"""The words that points use for machines, and what they stand for."""

import shutil
from pathlib import Path

import pytest
from tests.support.tinyguest import bz_image

from firstlight.errors import UnknownName, Unsupported
from firstlight.lab.backends.accel import elf
from firstlight.lab.backends.firecracker import Firecracker
from firstlight.lab.backends.qemu import Qemu
from firstlight.lab.experiments import Options, hypervisor_builds, machines
from firstlight.lab.experiments.catalogue import ALL
from firstlight.lab.experiments.machines import QEMU, Hypervisor, Machine
from firstlight.lab.guests import built_in, catalogue
from firstlight.lab.guests.catalogue import Entry
from firstlight.lab.guests.linux import Linux
from firstlight.lab.guests.probe import Probe

PC, FIRECRACKER = Hypervisor(QEMU, "pc"), Hypervisor("firecracker")
NAMES = ("unikernel-boot", "boot-protocol", "driver-loading", "unikernel-scale", "platforms")


@pytest.fixture(autouse=True)
def _no_guests_of_the_users(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLIGHT_GUESTS", str(tmp_path))


def test_a_point_is_a_machine() -> None:
    result = machines.backend(Machine(PC, "linux", "ext4", "vga", clock="counted"))
    assert result == Qemu(
        Linux("ext4"), machine="pc", protocol="kernel", console="vga", icount=True
    )


@pytest.mark.parametrize(
    ("hypervisor", "word", "way"),
    [
        (FIRECRACKER, "firecracker", "config"),
        (
            Hypervisor("/opt/a b/firecracker-1.12", snapshot=True),
            "/opt/a b/firecracker-1.12 snapshot",
            "snapshot",
        ),
    ],
)
def test_a_firecracker_boots_or_restores(hypervisor: Hypervisor, word: str, way: str) -> None:
    result = machines.backend(Machine(hypervisor, "probe", "erofs"))
    assert isinstance(result, Firecracker)
    assert hypervisor.name == word
    assert (result.way, result.binary) == (way, hypervisor.binary)
    assert result.guest == Probe(packet=False)


def test_a_path_of_qemu_may_have_blanks() -> None:
    [hypervisor, _] = machines.hypervisors(Options((1,), hypervisors=("/a b/qemu",)), "microvm")
    assert hypervisor.name == "/a b/qemu microvm"
    result = machines.backend(Machine(hypervisor, "probe", "none"))
    assert isinstance(result, Qemu)
    assert (result.binary, result.machine, result.protocol) == ("/a b/qemu", "microvm", "pvh")


@pytest.mark.parametrize("name", NAMES)
def test_every_point_has_all_axes_once_and_a_backend(name: str) -> None:
    experiment = ALL[name]
    cases = list(experiment.cases(Options(instances=(1, 2))))
    assert len({tuple(case.point.items()) for case in cases}) == len(cases)
    for case in cases:
        assert set(case.point) == set(experiment.axes)
        assert case.backend.name


def test_guests_are_those_that_were_asked_for() -> None:
    assert machines.guests(Options((1,), guests=("probe",)), "ext4") == [("probe", "erofs")]
    both = Options((1,), guests=("probe", "linux"))
    assert machines.guests(both, "ext4", "btrfs") == [
        ("probe", "erofs"), ("linux", "ext4"), ("linux", "btrfs")
    ]  # fmt: skip
    assert {name for name, _ in machines.guests(Options((1,)), "ext4")} == set(built_in.ALL)
    with pytest.raises(UnknownName, match="osv"):
        machines.guests(Options((1,), guests=("osv",)))


@pytest.mark.parametrize(
    ("hypervisor", "files", "way"),
    [
        (PC, {"kernel": elf(b"\xf4")}, "pvh"),
        (PC, {"kernel": bz_image()}, "kernel"),
        (Hypervisor(QEMU, "microvm"), {"kernel": bz_image()}, "kernel"),
        (PC, {"disk.img": b"\xeb".ljust(510, b"\0") + b"\x55\xaa"}, "disk"),
        (PC, {"kernel": elf(b"\xf4").replace(b"Xen", b"Xem")}, "pvh"),
        (FIRECRACKER, {"kernel": elf(b"\xf4")}, "direct"),
    ],
    ids=["ELF", "bzImage", "bzImage on microvm", "disk", "no entry", "Firecracker"],
)
def test_a_users_guest_is_booted_as_its_files_can_be(
    tmp_path: Path, hypervisor: Hypervisor, files: dict[str, bytes], way: str
) -> None:
    for part, content in files.items():
        (tmp_path / part).write_bytes(content)
    entry = Entry(name=tmp_path.name.replace("_", "-"), kind="generic", ready="^up")
    catalogue.add(entry, {part: tmp_path / part for part in files})
    machine = Machine(hypervisor, entry.name, "")
    assert machines.protocol(machine) == way
    result = machines.backend(machine)
    assert isinstance(result, Qemu | Firecracker)
    assert result.protocol == way


@pytest.mark.parametrize(("asked", "taken"), [("auto", "tcg"), ("kvm", "kvm")])
def test_mixed_accelerators_are_noted(
    asked: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(program: str, accel: str) -> None:
        if accel == "kvm" or "microvm" in program:
            raise Unsupported("not here")

    monkeypatch.setattr(hypervisor_builds, "choose", choose)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    cases = ALL["hypervisor-builds"].cases(Options((1,), accel=asked))
    assert {case.point["accel"] for case in cases} == {taken}
