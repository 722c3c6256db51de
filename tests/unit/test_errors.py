"""The remedies of errors: a command that sudo finds, a name that was meant."""

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


@pytest.mark.parametrize(
    ("name", "hint"),
    [("agil", "did you mean agile? valid: agile, pod"), ("vm", "valid: agile, pod")],
)
def test_unknown_name_brings_the_most_similar(name: str, hint: str) -> None:
    error = errors.UnknownName("experiment", name, iter(("agile", "pod")))
    assert (error.message, error.hint) == (f"unknown experiment {name!r}", hint)
