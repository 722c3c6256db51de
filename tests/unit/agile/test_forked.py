"""How a fork that serves ended, by what it said."""

import pytest

from firstlight.agile.python import forked
from firstlight.agile.python.fork import Line


@pytest.mark.parametrize(
    ("exited", "status"),
    [("0", 0), ("3", 3), ("256", 0), ("300", 44), ("-1", 255), ("None", 0), ("'words'", 1),
     ("True", 1), ("False", 0), (str(2**63 - 1), 255), (str(2**63), 255), (str(-(2**63)), 0),
     (str(-(2**63) - 8), 255), (str(2**64), 255), ("8" * 5000, 255), (None, 1)],
)  # fmt: skip
def test_an_exit_has_the_status_that_python_gives_it(exited: str | None, status: int) -> None:
    assert forked._ended(Line(exited=exited), False).status == status
