"""A real virtiofsd, asked as a hypervisor asks it."""

import os
import socket
import struct
from pathlib import Path

import pytest

from firstlight.errors import Unsupported
from firstlight.lab.backends import virtiofs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
GET_FEATURES, VERSION_1 = 1, 1  # of vhost-user's messages, docs/interop/vhost-user.rst in QEMU


@pytest.mark.parametrize("name", ["root", "a,b", "a b"])
def test_a_directory_is_served_until_the_block_ends(tmp_path: Path, name: str) -> None:
    try:
        virtiofs.program()
    except Unsupported as error:
        pytest.skip(error.message)
    (tmp_path / name).mkdir()
    at = tmp_path / "socket"
    with virtiofs.serving(tmp_path / name, at, os.environ) as pid:
        with socket.socket(socket.AF_UNIX) as hypervisor:
            hypervisor.settimeout(60)
            hypervisor.connect(str(at))
            hypervisor.sendall(struct.pack("<III", GET_FEATURES, VERSION_1, 0))
            assert hypervisor.recv(4) == struct.pack("<I", GET_FEATURES)
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
    assert not at.exists()
