"""How OSv is booted: command lines, end points, images refused; and which clock its chart has."""

import struct
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from firstlight.errors import Failed, Unsupported
from firstlight.lab.backends.accel import elf
from firstlight.lab.guests import BootConfig, Line, clock, osv
from firstlight.lab.guests.osv import Osv
from firstlight.lab.guests.osv_chart import MARK
from firstlight.model import Step

ADDRESS = BootConfig(address="172.31.0.9/16", gateway="172.31.0.1")
NETWORK = "--ip=eth0,172.31.0.9,255.255.0.0 --defaultgw=172.31.0.1"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    file = tmp_path / "loader.elf"
    file.write_bytes(elf(b"\xf4" + MARK))
    return file


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk of ROFS as scripts/build makes it: boot loader, command line, one partition."""
    entry = struct.pack("<8B2I", 0, 0, 1, 0, 0x83, 0, 1, 0, 64, 9)
    sector = b"\xea\x1e\x7c".ljust(0x1CE, b"\0") + entry.ljust(48, b"\0") + b"\x55\xaa"
    line = b"--rootfs=rofs --verbose /java.so -jar /app.jar\0"
    rofs = struct.pack("<8Q", 0xDEADBEAD, 1, 512, 8, 1, 9, 1, 10).ljust(9 * 512, b"\0")
    file = tmp_path / "usr.img"
    file.write_bytes(sector + line.ljust(63 * 512, b"\xee") + rofs)
    return file


@pytest.fixture(autouse=True)
def counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "tsc_hertz", lambda: 2e9)


@pytest.mark.parametrize(
    ("console", "chart", "words"),
    [
        ("serial", "console", "--bootchart --console=serial"),
        ("serial", "memory", "--console=serial"),
        ("vga", "console", "--bootchart --console=all"),
        ("vga", "memory", "--console=vga"),
    ],
)
def test_each_way_of_booting_has_its_command_line_and_end_point(
    console: str, chart: str, words: str, kernel: Path, disk: Path, tmp_path: Path
) -> None:
    wanted = replace(ADDRESS, console=console, chart=chart)
    guest = Osv("mine", "rofs", kernel, disk, "/hello 7")
    guest.probe(wanted)
    boot = guest.boot(wanted, tmp_path)
    assert boot.arguments == f"{words} --rootfs=rofs {NETWORK} /hello 7"
    assert (boot.kernel, boot.disk, boot.writable) == (kernel, disk, False)
    if chart == "memory":
        assert (boot.ready, boot.exit_port, boot.exit_code) == (None, 0x3F0, 123)
    else:
        assert (boot.ready, boot.last, boot.exit_port) == (osv.READY, osv.LAST, None)


def test_without_a_program_the_images_own_runs(kernel: Path, disk: Path, tmp_path: Path) -> None:
    boot = Osv("mine", "rofs", kernel, disk).boot(ADDRESS, tmp_path)
    assert boot.arguments.endswith(f"{NETWORK} /java.so -jar /app.jar")


@pytest.mark.parametrize("raw", [bytes(9 * 512), b"\xff" * 9999, b"x"])
def test_an_image_without_a_command_line_runs_nothing(
    raw: bytes, kernel: Path, tmp_path: Path
) -> None:
    (tmp_path / "any.img").write_bytes(raw)
    boot = Osv("mine", "ramfs", kernel, tmp_path / "any.img").boot(ADDRESS, tmp_path)
    assert boot.arguments.endswith(NETWORK)
    assert boot.disk is None


def test_a_directory_is_shared_as_the_root(kernel: Path, tmp_path: Path) -> None:
    guest = Osv("mine", "virtiofs", kernel, program="/hello", share=tmp_path)
    guest.probe(replace(ADDRESS, machine="pc", accel="tcg"))
    boot = guest.boot(ADDRESS, tmp_path)
    assert "--rootfs=virtiofs" in boot.arguments
    assert (boot.share, boot.disk) == (tmp_path, None)


def test_disk_boots_from_copy_with_own_command_line(disk: Path, tmp_path: Path) -> None:
    before = disk.read_bytes()
    wanted = replace(ADDRESS, protocol="disk")
    other = replace(wanted, address="172.31.0.10/16")
    guest = Osv("mine", "rofs", disk=disk, program="/hello")
    guest.probe(wanted)
    boots = [guest.boot(each, tmp_path) for each in (wanted, other)]
    for boot, address in zip(boots, ("172.31.0.9", "172.31.0.10"), strict=True):
        assert boot.kernel is None
        assert boot.disk is not None
        after = boot.disk.read_bytes()
        line = after[512:].partition(b"\0")[0].decode()
        assert line == boot.arguments
        assert address in line.replace(",", " ").split()
        assert (after[:512], after[64 * 512 :]) == (before[:512], before[64 * 512 :])
    assert disk.read_bytes() == before


def test_a_command_line_longer_than_its_place_is_reported(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="is too long"):
        Osv("mine", "rofs", disk=disk, program="/x " * 12_000).boot(
            replace(ADDRESS, protocol="disk"), tmp_path
        )


def test_what_it_cannot_boot_is_reported_with_the_remedy(
    kernel: Path, disk: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat.img"
    flat.write_bytes(struct.pack("<8Q", 0xDEADBEAD, 1, 512, 8, 1, 9, 1, 10).ljust(9 * 512, b"\0"))
    plain = tmp_path / "plain.elf"
    plain.write_bytes(Path("/bin/true").read_bytes() + MARK)
    for guest, protocol, fact in (
        (Osv("mine", "rofs", disk=disk), "pvh", "no kernel for the protocol pvh"),
        (Osv("mine", "rofs", kernel, flat), "disk", "no disk with a boot loader"),
        (Osv("mine", "rofs", kernel), "disk", "no disk with a boot loader"),
        (Osv("mine", "rofs", kernel, disk), "kernel", "no real-mode entry"),
        (Osv("mine", "rofs", plain, disk), "pvh", "no entry for the protocol pvh"),
        (Osv("mine", "virtiofs", kernel, share=tmp_path), "pvh", "virtio-fs, which needs QEMU"),
    ):
        with pytest.raises(Unsupported, match=fact) as error:
            guest.probe(replace(ADDRESS, protocol=protocol))
        assert error.value.hint


def test_a_machine_without_a_clock_is_refused_before_it_halts(kernel: Path, disk: Path) -> None:
    guest = Osv("mine", "rofs", kernel, disk)
    guest.probe(replace(ADDRESS, machine="microvm", accel="kvm"))
    guest.probe(replace(ADDRESS, machine="pc", accel="tcg"))
    with pytest.raises(Unsupported, match="no clock"):
        guest.probe(replace(ADDRESS, machine="microvm", accel="tcg"))


def test_foreign_files_are_refused(kernel: Path, disk: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat.img"
    flat.write_bytes(disk.read_bytes()[64 * 512 :])
    for guest, fact in (
        (Osv("mine", "zfs", kernel, disk), "holds rofs, not zfs"),
        (Osv("mine", "virtiofs", kernel), "no directory for its root"),
        (Osv("mine", "rofs", kernel, flat), "not in its second partition"),
        (Osv("mine", "rofs", Path("/bin/true"), disk), "/bin/true is not an OSv kernel"),
        (Osv("mine", "rofs", tmp_path / "absent", disk), "absent: No such file"),
        (Osv("mine", "rofs", kernel, tmp_path / "absent"), "absent: No such file"),
    ):
        with pytest.raises(Failed, match=fact):
            guest.boot(ADDRESS, tmp_path)


@pytest.mark.parametrize("icount", [False, True])
def test_a_tick_is_the_hosts_or_a_nanosecond(icount: bool, tmp_path: Path) -> None:
    names = [bytes(8), MARK, b"uncompress\0", b"Total time\0"]
    table = b"".join(
        struct.pack("<QQ", sum(map(len, names[:at])) or 7, 1000 * (at + 1)) for at in range(4)
    )
    memory = b"".join(names)
    (tmp_path / "memory").write_bytes(memory.ljust(64, b"\0") + table.ljust(256, b"\0"))
    wanted = replace(ADDRESS, chart="memory", icount=icount)
    reading = Osv("mine", "rofs").read(wanted, [], tmp_path / "memory")
    tick = 1.0 if icount else 0.5
    assert reading.spans[-1] == Step("Total time", round(3000 * tick), round(4000 * tick))


@pytest.mark.parametrize(
    ("filesystem", "events", "fault"),
    [
        ("zfs", ["drivers loaded", "Total time"], "OSv did not mount its root, zfs"),
        ("zfs", ["drivers loaded", "ZFS mounted", "Total time"], None),
        ("ext", ["drivers loaded", "Extfs mounted", "Total time"], None),
        ("ramfs", ["drivers loaded", "Total time"], None),
        ("zfs", ["drivers loaded"], None),
        ("zfs", [], None),
    ],
)
def test_a_root_that_is_not_mounted_is_a_fault(
    filesystem: str, events: list[str], fault: str | None
) -> None:
    message = [Line(1, f"\t{name}: {at}.00ms, (+1.00ms)") for at, name in enumerate(events, 1)]
    assert Osv("mine", filesystem).read(ADDRESS, message, None).fault == fault


@pytest.mark.parametrize(("chart", "memory"), list(product(("console", "memory"), (False, True))))
def test_nothing_to_read_is_nothing_read(chart: str, memory: bool, tmp_path: Path) -> None:
    wanted = replace(ADDRESS, chart=chart)
    reading = Osv("mine", "rofs").read(
        wanted, [Line(1, "panic")], tmp_path / "absent" if memory else None
    )
    assert (reading.spans, reading.anchors) == ((), ())
