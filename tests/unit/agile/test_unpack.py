"""What archives are unpacked to, without the confinement."""

import bz2
import fcntl
import io
import lzma
import os
import resource
import signal
import struct
import subprocess
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from firstlight.agile.functions import unpack, unpack_main


def test_a_zip_file_may_name_its_files_oddly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice
        for name in ("", "/", "./", "app.py", "/abs.py", "a//b.py", "win\\", "win\\c.py", "app.py"):
            written.writestr(zipfile.ZipInfo(name), name)
    unpack_main._zip(unpack_main.Tree(1 << 20, 100), archive, "task")
    found = [str(each.relative_to("task")) for each in Path("task").rglob("*") if each.is_file()]
    assert sorted(found) == ["a/b.py", "abs.py", "app.py", "win/c.py"]


def layer(*members: tarfile.TarInfo) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return written.getvalue()


def entry(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in {"size": 3, **fields}.items():
        setattr(member, key, value)
    return member


def outcome(blob: bytes, into: str = "") -> dict[str, object]:
    Path("blob").write_bytes(blob)
    with Path("blob").open("rb") as archive:
        return unpack_main._outcome(
            {"archive": os.dup(archive.fileno()), "kind": "tar", "into": into, "layer": True,
             "bytes": 1 << 20, "entries": 100}
        )  # fmt: skip


def test_zstd_layer_may_begin_with_a_frame_to_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zstandard = pytest.importorskip("zstandard")
    monkeypatch.chdir(tmp_path)
    skipped = struct.pack("<II", 0x184D2A5F, 5) + b"12345"
    for blob in (b"%s", skipped + b"%s", skipped + b"%s" + skipped):
        done = outcome(blob % zstandard.ZstdCompressor().compress(layer(entry("app.py"))))
        assert done["entries"] == 1, done
        Path("app.py").unlink()


def test_entry_of_an_unknown_type_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert outcome(layer(entry("app.py", type=b"Z"), entry("b")))["entries"] == 2
    assert Path("app.py").read_bytes() == bytes(3)


@pytest.mark.parametrize("white_out", ["d/.wh..wh..opq", ".wh..wh..opq", ".wh.d"])
@pytest.mark.parametrize("named", [True, False])
def test_white_outs_hide_nothing_of_their_own_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, white_out: str, named: bool
) -> None:
    """Also where they come last, and the layer does not name a directory of what it has."""
    monkeypatch.chdir(tmp_path)
    assert "refused" not in outcome(layer(entry("d/e/lower"), entry("d/lower")))
    own = [entry("d/e/own"), entry("d/own"), entry(white_out, size=0)]
    directory = entry("d", type=tarfile.DIRTYPE, size=0)
    assert "refused" not in outcome(layer(*([directory] if named else []), *own))
    found = {str(each.relative_to("d")) for each in Path("d").rglob("*") if each.is_file()}
    assert found == {"e/own", "own"}


def test_white_outs_reach_the_deepest_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deep = "/".join(["d"] * 499)
    assert "refused" not in outcome(layer(entry(f"{deep}/own"), entry(".wh..wh..opq", size=0)))
    assert Path(deep, "own").is_file()


def test_link_below_which_a_layer_writes_can_be_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "refused" not in outcome(
        layer(entry("d/lower"), entry("l", type=tarfile.SYMTYPE, linkname="d", size=0))
    )
    assert "refused" not in outcome(layer(entry("l/own"), entry(".wh.l", size=0)))
    assert not Path("l").is_symlink()
    assert Path("d/own").exists()


@pytest.mark.parametrize("into", ["", "var/task"])
def test_hard_links_stay_within_an_archives_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, into: str
) -> None:
    monkeypatch.chdir(tmp_path)
    link = entry("bin/b", type=tarfile.LNKTYPE, linkname="./bin/a", size=0)
    assert "refused" not in outcome(layer(entry("bin/a"), link), into)
    assert Path(into, "bin/a").samefile(Path(into, "bin/b"))


@pytest.mark.parametrize(
    ("blob", "why"),
    [
        (layer(entry("/")), "'/' is the root"),
        (layer(entry("./", size=0, type=tarfile.SYMTYPE, linkname="x")), "is the root"),
        (bz2.compress(layer()), "bzip2"),
        (lzma.compress(layer()), "xz"),
    ],
)
def test_layer_that_cannot_be_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blob: bytes, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = outcome(blob)
    assert done["refused"] == "format"
    assert why in str(done["why"])


@pytest.mark.parametrize(
    ("blob", "refused"),
    [
        (layer(entry("a"), entry("b"))[: 1024 + 188], "format"),
        (layer(entry("a"))[:1024] + b"x" * 512 + layer(entry("b")), "format"),
        (layer(entry("a", size=1000))[: 512 + 999], "truncated"),
        (layer(entry("a", size=1000))[: 512 + 1000], None),  # without its padding and its end
    ],
)
def test_layer_that_ends_early_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blob: bytes, refused: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    assert outcome(blob).get("refused") == refused


@pytest.mark.parametrize(
    ("extra", "when"),
    [
        (b"", 315532800), (struct.pack("<HHBi", 0x5455, 5, 1, 1700000001), 1700000001),
        (struct.pack("<HHQHHBi", 0x7875, 8, 0, 0x5455, 5, 3, 1700000001), 1700000001),
        (struct.pack("<HHBi", 0x5455, 5, 2, 1700000001), 315532800),
        (struct.pack("<HHBi", 0x5455, 5, 1, -1), 0), (struct.pack("<HHBi", 1, 0, 1, 1), 315532800),
        (struct.pack("<HH", 0x5455, 0), 315532800), (b"\x55\x54\xff", 315532800),
    ],
)  # fmt: skip
def test_zipped_file_has_its_time_if_that_is_said_in_utc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: bytes, when: int
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = io.BytesIO()
    member = zipfile.ZipInfo("app.py", (2026, 11, 30, 2, 0, 0))
    member.extra = extra
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr(member, "")
    unpack_main._zip(unpack_main.Tree(1 << 20, 100), archive, "task")
    assert Path("task/app.py").stat().st_mtime == when


@pytest.mark.parametrize("damage", ["its data", "its offset"])
def test_a_damaged_zip_file_is_refused_as_such(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bz2 raises an OSError without a number, and so does a seek before the file with one."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("damaged.zip", "w", zipfile.ZIP_BZIP2) as written:
        written.writestr("app.py", "def main(event):\n    return event\n")
    content = bytearray(Path("damaged.zip").read_bytes())
    if damage == "its data":
        content[30 + len("app.py") + 12] ^= 0xFF
    else:
        content[-6:-2] = (1 << 20).to_bytes(4, "little")  # where its directory begins
    Path("damaged.zip").write_bytes(content)
    with Path("damaged.zip").open("rb") as archive:
        result = unpack_main._outcome(
            {"archive": os.dup(archive.fileno()), "kind": "zip", "into": "task", "bytes": 1 << 20,
             "entries": 100}
        )  # fmt: skip
    assert result["refused"] == "format"
    assert result["why"] in (
        "it cannot be read: Invalid data stream",
        "it cannot be read: Invalid argument",
    )


def test_process_is_ended_by_a_descriptor_of_any_number() -> None:
    """A manager of some 30 functions with their pools has more than 1,024 descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            low = os.pidfd_open(process.pid)
            high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1024)
            os.close(low)
            unpack._end(high)
            assert process.wait(10) == -signal.SIGKILL
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
