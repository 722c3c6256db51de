"""Files are written whole, or stay as they were; and are read within bounds."""

import errno
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from firstlight import files
from firstlight.agile import apiserver, config
from firstlight.agile.functions import content, images
from firstlight.agile.http import sigv4
from firstlight.errors import FirstlightError
from firstlight.files import read_regular, unfinished, write_whole
from firstlight.lab.cni import conf
from firstlight.lab.watch.files import read_json


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    write_whole(file, b"a longer text")
    write_whole(file, b"a text")
    assert file.read_bytes() == b"a text"
    assert list(tmp_path.iterdir()) == [file]


def test_a_reader_keeps_what_it_opened(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    write_whole(file, b"before")
    with file.open("rb") as reader:
        write_whole(file, b"after")
        assert reader.read() == b"before"


@pytest.mark.parametrize("wanted", [0o600, 0o755])
def test_a_mode_is_given_whatever_the_umask_is(tmp_path: Path, wanted: int) -> None:
    file = tmp_path / "program"
    unfinished(file).touch(mode=0o640)  # a writer was killed
    before = os.umask(0o077)
    try:
        write_whole(file, b"", wanted)
    finally:
        os.umask(before)
    assert mode(file) == wanted


def test_what_cannot_be_written_leaves_the_file(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    write_whole(file, b"before")
    unfinished(file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        write_whole(file, b"after")
    assert file.read_bytes() == b"before"
    assert not (tmp_path / "elsewhere").exists()


def test_failed_rename_leaves_nothing(tmp_path: Path) -> None:
    """As of a network's file system. A directory cannot be replaced by a file on any."""
    (tmp_path / "record.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "record.json", b"text")
    assert list(tmp_path.iterdir()) == [tmp_path / "record.json"]


def test_failed_write_names_file_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            write_whole(file, b"more than that, as on a full disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(file)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_is_the_error_even_if_its_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "record.json"

    def fail(descriptor: int, mode: int) -> None:
        unfinished(file).unlink()
        raise OSError(errno.EIO, f"chmod {mode:o} of {descriptor}")

    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(OSError, match="chmod 600"):
        write_whole(file, b"", 0o600)


def test_only_a_regular_file_within_bounds_is_read(tmp_path: Path) -> None:
    file, fifo = tmp_path / "file", tmp_path / "fifo"
    file.write_bytes(b"123")
    os.mkfifo(fifo)
    assert read_regular(file, 3) == b"123"
    for path, words in (
        (file, "longer than 2 bytes"), (fifo, "not a regular file"), (tmp_path, "directory"),
        (Path("/dev/zero"), "not a regular file"), (tmp_path / "none", "No such file"),
    ):  # fmt: skip
        with pytest.raises(OSError, match=words):
            read_regular(path, 2)


@pytest.mark.parametrize(
    "read",
    [
        sigv4.load,
        conf.load,
        content._open_archive,
        lambda path: images.open_verified(path, "sha256:0", "the layer"),
        lambda path: apiserver.settings(str(path)),
    ],
)
def test_who_reads_a_named_file_waits_for_no_writer(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(FirstlightError, match="it is not a regular file"):
        read(fifo)
    assert read_json(fifo) is None


def test_a_configuration_may_be_a_pipe_to_which_somebody_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell's ``<(…)`` is one."""
    monkeypatch.setattr(files, "_PIPE_SECONDS", 0.05)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(FirstlightError, match="a pipe to which nobody writes"):
        config.load(fifo)
    reading, writing = os.pipe()
    os.write(writing, b'name = "mine"')
    with pytest.raises(FirstlightError, match="a pipe to which nobody writes"):
        config.load(Path(f"/dev/fd/{reading}"))
    os.write(writing, b'name = "mine"')
    os.close(writing)
    assert config.load(Path(f"/dev/fd/{reading}")).name == "mine"
    os.close(reading)
