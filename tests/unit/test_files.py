"""Files are written whole, or stay as they were."""

import errno
import os
import resource
import stat
from pathlib import Path

import pytest

from firstlight.files import unfinished, write_whole


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
