"""The limit of open files a runtime begins with, where its caller or the kernel has a low one."""

import errno
import os
import resource
from pathlib import Path

import pytest

from firstlight.agile import rights
from firstlight.errors import Unsupported

MOST = 1 << 20


@pytest.mark.parametrize(
    ("hard", "nr_open", "is_privileged", "expected"),
    [
        (64, MOST, True, MOST),
        (64, 524288, True, 524288),
        (2 * MOST, 4 * MOST, True, 2 * MOST),
        (4096, MOST, False, 4096),  # as root of a user namespace too
        (64, MOST, False, None),
    ],
)
def test_a_low_limit_of_open_files_is_raised_or_refused_by_name(
    hard: int, nr_open: int, is_privileged: bool, expected: int | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    now = [hard, hard]

    def set_limit(_: int, wanted: tuple[int, int]) -> None:
        if wanted[1] > nr_open or (wanted[1] > hard and not is_privileged):
            raise ValueError(os.strerror(errno.EPERM))
        now[:] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    monkeypatch.setattr(rights, "_OPEN_MOST", tmp_path / "nr_open")
    (tmp_path / "nr_open").write_text(f"{nr_open}\n")
    if expected is None:
        with pytest.raises(Unsupported, match="at most 64 files may be open"):
            rights.raise_open_files()
    else:
        rights.raise_open_files()
        assert now == [expected, expected]
