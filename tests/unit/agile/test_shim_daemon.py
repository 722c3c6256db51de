"""Which of the keeper's children a server ends when it takes over."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("grpc_tools", reason="needs grpcio-tools")

from firstlight.agile.shim import daemon


@pytest.mark.parametrize(
    ("program", "is_ours"),
    [("shim-sandbox", True), ("runc", True), ("pause", False), ("paused", False)],
)
def test_server_process_is_known_by_program(program: str, is_ours: bool, tmp_path: Path) -> None:
    path = tmp_path / program
    shutil.copy("/bin/sleep", path)
    process = subprocess.Popen([path, "60"])
    try:
        assert daemon._is_ours(process.pid, Path("/usr/sbin/runc")) == is_ours
        path.unlink()
        assert daemon._is_ours(process.pid, Path("/usr/sbin/runc")) == is_ours, "after an upgrade"
    finally:
        process.kill()
        process.wait(60)
    assert not daemon._is_ours(process.pid, Path("/usr/sbin/runc"))
