"""Linux kernels: what is taken, what is refused, and that what was packed comes out whole."""

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.linux_files import VMLINUX, bzimage, module

from firstlight.errors import Failed, Unsupported
from firstlight.lab.guests import linux_kernel
from firstlight.lab.guests.linux_kernel import Kernel

PACKERS = {
    "gzip": ["gzip", "-c"],
    "xz": ["xz", "-c"],
    "bzip2": ["bzip2", "-c"],
    "lzma": ["xz", "-c", "--format=lzma"],
    "lz4": ["lz4", "-lcq"],
    "zstd": ["zstd", "-cq"],
}


def packed(packer: str, raw: bytes) -> bytes:
    if not shutil.which(PACKERS[packer][0]):
        pytest.skip(f"needs {PACKERS[packer][0]}")
    return subprocess.run(PACKERS[packer], input=raw, capture_output=True, check=True).stdout


def file(directory: Path, content: bytes) -> Path:
    made = directory / "vmlinuz"
    made.write_bytes(content)
    return made


def test_a_kernel_is_known_by_its_header(tmp_path: Path) -> None:
    image = file(tmp_path, bzimage(version="5.10.9-odd"))
    assert linux_kernel.load(image) == Kernel(image, True, "5.10.9-odd", None)


@pytest.mark.parametrize("version", ["", "\0", "../../etc", "6.1\n", "6" * 100, "\xff"])
def test_a_bzimage_that_names_no_release_of_linux_is_not_linux(
    tmp_path: Path, version: str
) -> None:
    with pytest.raises(Failed, match="is not Linux"):
        linux_kernel.load(file(tmp_path, bzimage(version=version)))


def test_an_unpacked_kernel_is_known_by_its_banner(tmp_path: Path) -> None:
    image = file(tmp_path, VMLINUX)
    kernel = linux_kernel.load(image)
    assert kernel == Kernel(image, False, "6.1.0-test", None)
    assert linux_kernel.uncompress(kernel, tmp_path) == image


@pytest.mark.parametrize("packer", PACKERS)
def test_what_a_kernel_unpacks_itself_to_is_had_without_it(tmp_path: Path, packer: str) -> None:
    """Its length follows the packed kernel, except where the format has one (gzip)."""
    image = file(tmp_path, bzimage(packed(packer, VMLINUX), sized=packer != "gzip"))
    elf = linux_kernel.uncompress(linux_kernel.load(image), tmp_path)
    assert elf.read_bytes() == VMLINUX
    before = elf.stat().st_mtime_ns
    assert linux_kernel.uncompress(linux_kernel.load(image), tmp_path) == elf
    assert elf.stat().st_mtime_ns == before, "once a directory"


def test_modules_lie_beside_their_kernel(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    beside = tmp_path / "lib/modules/6.1.0-test"
    beside.mkdir(parents=True)
    assert linux_kernel.load(file(tmp_path / "boot", bzimage())).modules == beside


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (bzimage()[:-64], "truncated"),
        (bzimage()[:700], "truncated"),
        (bzimage(flags=0), "i386"),
        (VMLINUX.replace(b"Linux", b"Hurds"), "not Linux"),
        (VMLINUX[:18] + (183).to_bytes(2, "little") + VMLINUX[20:], "aarch64"),
        (VMLINUX[:-30], "truncated"),
        (b"#!/bin/sh\n", "neither"),
        (b"", "is empty or not a regular file"),
    ],
)
def test_what_cannot_boot_is_refused(tmp_path: Path, content: bytes, fact: str) -> None:
    with pytest.raises(Failed, match=fact) as failure:
        linux_kernel.load(file(tmp_path, content))
    assert str(tmp_path / "vmlinuz") in failure.value.message
    assert failure.value.hint


def test_a_damaged_payload_is_reported(tmp_path: Path) -> None:
    image = file(tmp_path, bzimage(b"\x1f\x8b" + b"\xff" * 50))
    with pytest.raises(Failed, match="cannot unpack"):
        linux_kernel.uncompress(linux_kernel.load(image), tmp_path)


def test_modules_are_loaded_after_what_they_depend_on(tmp_path: Path) -> None:
    module(tmp_path, "virtio_net", "net_failover", "virtio", "virtio_ring")
    module(tmp_path, "net_failover", "failover")
    module(tmp_path, "failover")
    module(tmp_path, "virtio", "virtio_ring")
    module(tmp_path, "virtio_ring")
    module(tmp_path, "virtio-rng", "virtio")
    module(tmp_path, "never-asked-for")
    kernel = Kernel(tmp_path, True, "x", tmp_path)
    names = ["virtio_net", "virtio_rng", "built_in"]
    result = [name for name, _ in linux_kernel.modules(kernel, names)]
    assert result == ["failover", "net_failover", "virtio_ring", "virtio", "virtio_net",
                     "virtio_rng"]  # fmt: skip
    assert linux_kernel.modules(Kernel(tmp_path, True, "x", None), names) == []


def test_a_packed_module_is_unpacked(tmp_path: Path) -> None:
    plain = module(tmp_path, "erofs")
    content = plain.read_bytes()
    plain.with_name("erofs.ko.xz").write_bytes(packed("xz", content))
    plain.unlink()
    kernel = Kernel(tmp_path, True, "x", tmp_path)
    assert linux_kernel.modules(kernel, ["erofs"]) == [("erofs", content)]


def test_the_newest_of_debians_kernels_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux_kernel, "_PLACES", (tmp_path / "no", tmp_path))
    with pytest.raises(Unsupported, match="no Linux kernel"):
        linux_kernel.newest()
    for version in ("6.1.0-9", "6.1.0-56", "5.10.0-100"):
        (tmp_path / f"vmlinuz-{version}-cloud-amd64").touch()
    assert linux_kernel.newest().name == "vmlinuz-6.1.0-56-cloud-amd64"
