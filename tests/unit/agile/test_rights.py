"""What a runtime is refused for, where a host is not what it looks like."""

import errno
import os
import threading
from pathlib import Path

import pytest

from firstlight.agile import rights
from firstlight.agile.parts import cgroups
from firstlight.errors import WRITABLE_CGROUPS, Failed, Unsupported


def test_kernel_that_names_no_mount_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """gVisor's."""
    monkeypatch.setattr(Path, "read_text", lambda _: "pos:\t0\nflags:\t02\n")
    monkeypatch.setattr(threading, "Thread", None)
    with pytest.raises(Unsupported, match="does not say in which mount a file is"):
        rights._is_chrooted()


def test_cgroups_that_are_read_only_have_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of systemd-nspawn and of unprivileged containers."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    hierarchies = False, dict.fromkeys(cgroups.CONTROLLERS, tmp_path)
    monkeypatch.setattr(cgroups, "_hierarchies", lambda: hierarchies)
    groups = cgroups.Cgroups("top")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(Failed, match="Read-only file system") as refused:
        groups.open()
    assert WRITABLE_CGROUPS in str(refused.value.hint)
