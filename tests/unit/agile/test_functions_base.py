"""The root below functions that bring only their code."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.agile.functions import base


@pytest.fixture
def narrow_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_every_user_can_read_it_whatever_the_umask(narrow_umask: None, tmp_path: Path) -> None:
    made = tmp_path / "base"
    base.make(made)
    for path in (made, *made.rglob("*")):
        if not path.is_symlink():
            wanted = 0o555 if path.is_dir() else 0o444
            assert stat.S_IMODE(path.stat().st_mode) & wanted == wanted, path
    assert (made / "etc/passwd").exists()


def test_the_hosts_choice_of_programs_is_kept_as_links(tmp_path: Path) -> None:
    """They lead into /usr, which is bound over the root."""
    host = Path("/etc/alternatives")
    if not host.is_dir():
        pytest.skip("/etc/alternatives is missing: Debian's choice of programs")
    base.make(tmp_path / "base")
    made = tmp_path / "base/etc/alternatives"
    assert {path.name: path.readlink() for path in made.iterdir() if path.is_symlink()} == {
        path.name: path.readlink() for path in host.iterdir() if path.is_symlink()
    }
