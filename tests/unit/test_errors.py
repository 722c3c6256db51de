"""The remedy where root is needed: a command that sudo finds."""

import pytest

from firstlight import errors


@pytest.mark.parametrize(
    ("program", "found", "words"),
    [
        ("/usr/bin/firstlight", ["/usr/bin/firstlight"], "run firstlight with sudo"),
        ("/home/a b/firstlight", [], "run firstlight with sudo: sudo '/home/a b/firstlight'"),
        ("/x/firstlight/__main__.py", [], "run firstlight with sudo: sudo /py -m firstlight"),
    ],
)
def test_sudo_is_given_a_path_where_it_finds_no_name(
    program: str, found: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [program, "run"])
    monkeypatch.setattr("sys.executable", "/py")
    monkeypatch.setattr("os.access", lambda path, _: path in found)
    assert errors._with_sudo() == words
