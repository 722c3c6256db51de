"""The OCI runtime's program is executed from a sealed copy, as runc would make one itself."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from firstlight.agile.shim.program import Program


@pytest.fixture
def program(tmp_path: Path) -> Program:
    shutil.copy("/bin/cat", tmp_path / "runc")
    (tmp_path / "scratch").mkdir()
    return Program(tmp_path / "runc", tmp_path / "scratch")


def output(program: Program, *words: str) -> str:
    path = program.path()
    theirs, ours = os.memfd_create("out", 0), -1
    try:
        actions = [(os.POSIX_SPAWN_DUP2, theirs, 1)]
        pid = os.posix_spawn(path, [path, *words], {}, file_actions=actions)
        assert os.waitpid(pid, 0)[1] == 0
        ours = os.open(f"/proc/self/fd/{theirs}", os.O_RDONLY)
        return os.read(ours, 1 << 16).decode()
    finally:
        os.close(theirs)
        if ours >= 0:
            os.close(ours)


def test_program_runs_from_sealed_memory(program: Program) -> None:
    assert output(program, "/proc/self/comm") == "runc\n"
    assert "/memfd:runc (deleted)" in output(program, "/proc/self/maps")
    with pytest.raises(PermissionError):
        Path(program.path()).write_bytes(b"")


def test_a_program_that_was_replaced_is_copied_again(program: Program, tmp_path: Path) -> None:
    output(program, "/proc/self/comm")
    shutil.copy("/bin/echo", tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / "runc")
    assert output(program, "again") == "again\n"


def test_a_script_runs_by_its_path(program: Program, tmp_path: Path) -> None:
    (tmp_path / "runc").write_text("#!/bin/sh\necho $0\n")
    assert output(program) == f"{tmp_path / 'runc'}\n"


def test_program_runs_by_path_with_noexec_memfd(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_name: str, _flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert program.path() == str(tmp_path / "runc")
