"""The catalogue: what is kept, what is refused, and what is noticed later."""

import gzip
import os
import shutil
import struct
import subprocess
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from firstlight.cli.main import app
from firstlight.errors import Failed, FirstlightError, UnknownName
from firstlight.lab.backends.accel import elf
from firstlight.lab.experiments import catalogue as experiments
from firstlight.lab.guests import BootConfig, catalogue
from firstlight.lab.guests.catalogue import Entry
from firstlight.lab.guests.generic import Generic
from firstlight.lab.guests.osv import Osv
from firstlight.lab.guests.osv_chart import MARK

OSV = Entry(name="mine", kind="osv")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIRSTLIGHT_GUESTS", str(tmp_path / "guests"))
    return tmp_path / "guests"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    file = tmp_path / "loader.elf"
    file.write_bytes(elf(b"\xf4" + MARK))
    return file


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty ext4 in the second partition, where OSv looks for its root."""
    bare, file = tmp_path / "ext.img", tmp_path / "usr.img"
    subprocess.run(["mke2fs", "-q", "-F", bare, "4M"], check=True)
    entry = struct.pack("<8B2I", 0, 0, 1, 0, 0x83, 0, 1, 0, 8, bare.stat().st_size // 512)
    sector = bytes(0x1CE) + entry.ljust(48, b"\0") + b"\x55\xaa"
    file.write_bytes(sector.ljust(8 * 512, b"\0") + bare.read_bytes())
    return file


def test_what_is_added_is_found_until_it_is_removed(kernel: Path, image: Path, own: Path) -> None:
    added = catalogue.add(msgspec.structs.replace(OSV, program="/hello"),
                          {"kernel": kernel, "disk.img": image})  # fmt: skip
    assert catalogue.entries() == [added]
    assert catalogue.find("mine") == added
    assert added.filesystem == "ext", "the image says so"
    assert added.sources == {"kernel": str(kernel), "disk.img": str(image)}
    home = own / "mine"
    expected = Osv("mine", "ext", home / "kernel", home / "disk.img", "/hello")
    assert catalogue.guest(added) == expected
    assert (home / "disk.img").read_bytes() == image.read_bytes()
    catalogue.remove("mine")
    assert catalogue.entries() == []
    assert list(own.iterdir()) == []


def test_unreadable_catalogue_does_not_stop_doctor(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "mine").mkdir(parents=True)
    (own / "mine" / "guest.json").write_text("{")
    [missing] = experiments.probe()["unikernel-boot"].missing
    assert missing.fact.startswith(f"cannot read the guest {own}/mine/guest.json")
    monkeypatch.setenv("FIRSTLIGHT_GUESTS", f"/{'x' * 300}")
    with pytest.raises(Failed, match=r"cannot read the guest catalogue /x+: File name too long"):
        catalogue.entries()


def test_packed_files_are_kept_unpacked(kernel: Path, image: Path, own: Path) -> None:
    if not shutil.which("qemu-img"):
        pytest.skip("qemu-img is not installed")
    packed, qcow2 = kernel.with_suffix(".elf.gz"), image.with_suffix(".qcow2")
    packed.write_bytes(gzip.compress(kernel.read_bytes()))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, qcow2], check=True)
    catalogue.add(OSV, {"kernel": packed, "disk.img": qcow2})
    assert (own / "mine/kernel").read_bytes() == kernel.read_bytes()
    assert (own / "mine/disk.img").read_bytes() == image.read_bytes()
    catalogue.remove("mine")
    os.truncate(qcow2, qcow2.stat().st_size - (64 << 10))
    with pytest.raises(Failed, match="qemu-img failed"):
        catalogue.add(OSV, {"kernel": packed, "disk.img": qcow2})


@pytest.mark.parametrize("kind", ["backing file", "data file"])
def test_image_that_names_another_file_is_refused(
    kind: str, kernel: Path, image: Path, tmp_path: Path
) -> None:
    """As CVE-2024-32498: the guest would be given what its author may not read."""
    if not shutil.which("qemu-img"):
        pytest.skip("qemu-img is not installed")
    secret, qcow2 = tmp_path / "secret", tmp_path / "part.qcow2"
    shutil.copy(image, secret)
    command = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if kind == "backing file":
        command += ["-b", str(secret), "-F", "raw", str(qcow2)]
    else:
        command += ["-o", f"data_file={secret}", str(qcow2), "1M"]
    subprocess.run(command, check=True)
    with pytest.raises(Failed, match=r"part\.qcow2 takes its content from another file"):
        catalogue.add(OSV, {"kernel": kernel, "disk.img": qcow2})


def test_initramfs_of_a_generic_kernel_is_kept_as_it_is(kernel: Path, own: Path) -> None:
    packed, entry = kernel.with_name("initrd"), Entry(name="mine", kind="generic", ready="x")
    packed.write_bytes(gzip.compress(b"070701"))
    added = catalogue.add(entry, {"kernel": kernel, "initrd": packed})
    assert (own / "mine/initrd").read_bytes() == packed.read_bytes()
    guest = catalogue.guest(added)
    assert guest == Generic("mine", "x", own / "mine/kernel", initrd=own / "mine/initrd")
    assert guest.boot(BootConfig(), own).initrd == own / "mine/initrd"
    catalogue.remove("mine")
    for files, kind, fact in (
        ({"kernel": kernel, "initrd": kernel}, "generic", "neither a cpio archive nor compressed"),
        ({"initrd": packed}, "generic", "has no kernel for an initramfs"),
        ({"kernel": kernel, "initrd": packed}, "linux", "kind linux cannot have an initramfs"),
    ):
        with pytest.raises(FirstlightError, match=fact):
            catalogue.add(msgspec.structs.replace(entry, kind=kind), files)
    assert catalogue.entries() == []


def test_what_a_link_names_is_copied(kernel: Path, own: Path, tmp_path: Path) -> None:
    """As Debian's /vmlinuz and /initrd.img are links: relative and absolute ones."""
    initrd, root, links = tmp_path / "initrd", tmp_path / "tree", tmp_path / "links"
    initrd.write_bytes(gzip.compress(b"070701"))
    initrd.chmod(0o600)
    root.mkdir()
    links.mkdir()
    for name, file in (("kernel", Path("../loader.elf")), ("initrd", initrd), ("root", root)):
        (links / name).symlink_to(file)
    generic = Entry(name="generic", kind="generic", ready="x")
    for entry, parts in ((OSV, ("kernel", "root")), (generic, ("kernel", "initrd"))):
        catalogue.add(entry, {part: links / part for part in parts})
        for part in parts:
            assert not (own / entry.name / part).is_symlink(), part
    assert (own / "generic/initrd").read_bytes() == initrd.read_bytes()
    assert initrd.stat().st_mode & 0o777 == 0o600, "the user's own file stays as it was"


def test_name_of_a_file_may_be_any_bytes(kernel: Path) -> None:
    odd = kernel.rename(kernel.with_name("b\udcff"))
    catalogue.add(OSV, {"kernel": odd})
    assert catalogue.find("mine").sources["kernel"].endswith("/b\\xff")


def test_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Failed, match="pipe is a pipe"):
        catalogue.add(OSV, {"kernel": tmp_path / "pipe"})


@pytest.mark.parametrize("part", ["kernel", "disk.img"])
def test_a_later_change_is_refused(part: str, kernel: Path, image: Path, own: Path) -> None:
    catalogue.add(OSV, {"kernel": kernel, "disk.img": image})
    with (own / "mine" / part).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    with pytest.raises(Failed, match=rf"mine/{part} changed since guest .* SHA-256 differs"):
        catalogue.find("mine")
    (own / "mine" / part).unlink()
    with pytest.raises(Failed, match="No such file"):
        catalogue.find("mine")


def test_a_directory_is_kept_as_a_root_and_watched(kernel: Path, own: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "hello").write_text("program")
    (root / "etc/link").symlink_to("../hello")
    added = catalogue.add(OSV, {"kernel": kernel, "root": root})
    kept = own / "mine/root"
    assert added.filesystem == "virtiofs"
    assert catalogue.guest(added) == Osv("mine", "virtiofs", own / "mine/kernel", share=kept)
    assert (kept / "etc/link").read_text() == "program"
    assert catalogue.find("mine") == added
    (kept / "etc/link").unlink()
    with pytest.raises(Failed, match="mine/root changed since guest mine was added"):
        catalogue.find("mine")


def test_the_users_file_may_change_or_go(kernel: Path, own: Path) -> None:
    catalogue.add(OSV, {"kernel": kernel})
    kernel.unlink()
    assert catalogue.find("mine").filesystem == "ramfs", "there is no image"


def test_what_cannot_boot_is_refused_and_leaves_nothing(
    kernel: Path, image: Path, own: Path, tmp_path: Path
) -> None:
    cut, foreign = tmp_path / "cut.gz", Path("/bin/true")
    cut.write_bytes(gzip.compress(kernel.read_bytes())[:-20])
    for entry, files, fact in (
        (OSV, {"kernel": tmp_path / "absent"}, "absent: No such file"),
        (OSV, {"kernel": cut}, r"cut\.gz is truncated or damaged"),
        (OSV, {"kernel": foreign}, "is not an OSv kernel"),
        (OSV, {}, "has neither a kernel nor an image"),
        (
            Entry(name="mine", kind="linux"),
            {"root": tmp_path},
            "cannot have a directory as its image",
        ),
        (Entry(name="mine", kind="osv", filesystem="zfs"), {"disk.img": image}, "holds ext, not"),
        (Entry(name="mine", kind="osv"), {"disk.img": Path("/etc/passwd")}, "no boot loader"),
        (Entry(name="mine", kind="generic", ready="up"), {"disk.img": image}, "no boot loader"),
        (
            Entry(name="mine", kind="linux"),
            {"kernel": kernel, "disk.img": image},
            "takes a kernel only",
        ),
        (Entry(name="mine", kind="generic"), {"kernel": kernel}, "has no ready line"),
        (Entry(name="mine", kind="generic", ready="a(b"), {"kernel": kernel}, r"'a\(b' is not a"),
        (Entry(name="mine", kind="plan9"), {"kernel": kernel}, "unknown kind of guest"),
        (Entry(name="../mine", kind="osv"), {"kernel": kernel}, "is not a valid guest name"),
        (Entry(name="linux", kind="osv"), {"kernel": kernel}, "linux is one of firstlight's own"),
        (Entry(name="probe-verbose", kind="osv"), {"kernel": kernel}, "one of firstlight's own"),
    ):
        with pytest.raises(FirstlightError, match=fact) as error:
            catalogue.add(entry, files)
        assert error.value.hint
        assert not own.exists() or list(own.iterdir()) == []


def test_generic_kernel_needs_end_pattern(kernel: Path, own: Path) -> None:
    entry = Entry(name="mine", kind="generic", ready="^up( |$)", arguments="ip={ip}")
    added = catalogue.add(entry, {"kernel": kernel})
    expected = Generic("mine", "^up( |$)", own / "mine/kernel", arguments="ip={ip}")
    assert catalogue.guest(added) == expected


def test_a_name_is_given_once(kernel: Path) -> None:
    catalogue.add(OSV, {"kernel": kernel})
    with pytest.raises(FirstlightError, match="guest mine already exists"):
        catalogue.add(OSV, {"kernel": kernel})


def test_unknown_names_list_those_there_are(kernel: Path) -> None:
    catalogue.add(OSV, {"kernel": kernel})
    for ask in (catalogue.find, catalogue.remove):
        for name in ("other", "..", ""):
            with pytest.raises(UnknownName, match="unknown guest") as error:
                ask(name)
            assert error.value.hint == "valid: mine"


def test_a_killed_adding_is_no_guest(own: Path) -> None:
    (own / ".mine.7").mkdir(parents=True)
    (own / ".mine.7/guest.json").write_bytes(msgspec.json.encode(OSV))
    assert catalogue.entries() == []


def test_a_damaged_entry_is_named(own: Path) -> None:
    (own / "mine").mkdir(parents=True)
    (own / "mine/guest.json").write_text("{")
    with pytest.raises(Failed, match=r"cannot read the guest .*mine/guest\.json"):
        catalogue.entries()


def test_the_verbs_add_list_and_remove(kernel: Path, own: Path) -> None:
    verb = CliRunner()
    done = verb.invoke(
        app, ["guest", "add", "osv", "--kernel", str(kernel), "--name", "mine", "--json"]
    )
    assert done.exit_code == 0, done.output
    added = msgspec.json.decode(done.stdout, type=Entry)
    listed = verb.invoke(app, ["guest", "list", "--json"])
    assert msgspec.json.decode(listed.stdout, type=list[Entry]) == [added]
    assert "mine" in verb.invoke(app, ["guest", "list"]).stdout
    assert verb.invoke(app, ["guest", "remove", "mine"]).exit_code == 0
    assert list(own.iterdir()) == []
