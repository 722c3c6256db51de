"""A sandbox of a run that cannot be made."""

import ctypes
import errno
from types import SimpleNamespace

import pytest

from firstlight.errors import Unsupported
from firstlight.host import workspace


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EPERM, "CAP_SYS_ADMIN"), (errno.EINVAL, "in no chroot")]
)
def test_mounts_that_cannot_be_private_have_remedy(
    number: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a chroot, or under gVisor, root has all rights."""
    monkeypatch.setattr(workspace, "_libc", SimpleNamespace(mount=lambda *_: -1))
    monkeypatch.setattr(ctypes, "get_errno", lambda: number)
    with pytest.raises(Unsupported, match="cannot make private the mounts of /: ") as refused:
        workspace._mount(None, "/", None, 0)
    assert remedy in str(refused.value.hint)
