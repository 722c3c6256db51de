"""What becomes of a verb whose output cannot be written, or that is interrupted."""

import codecs
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from firstlight.cli import main as cli
from firstlight.cli import output

FIRSTLIGHT = Path(sys.executable).parent / "firstlight"


@pytest.mark.parametrize("words", [("--version",), ("list",), ("list", "--json"), ("run", "-h")])
def test_a_full_disk_is_an_error_without_a_traceback(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [FIRSTLIGHT, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error == "firstlight: No space left on device"
    assert hint.startswith("Hint: free space where the output goes")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "full", "FILE"), "FILE: full"),
        (OSError(errno.ENOSPC, "no more watches"), "no more watches"),
        (OSError(errno.EIO, "bad sector", "FILE"), "FILE: bad sector"),
        (OSError(errno.EPERM, "not allowed"), "a system call is refused: not allowed"),
    ],
)
def test_an_error_names_what_it_is_about(
    error: OSError,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", failing)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # main may take it away
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[0] == f"firstlight: {message}"


@pytest.mark.parametrize("words", ["list", "list --json", "--version"])
@pytest.mark.parametrize("closed", [">&-", "1< /dev/null"])
def test_closed_or_read_only_standard_output_takes_nothing(words: str, closed: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "{FIRSTLIGHT}" {words} {closed}'],
        stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_ends_the_verb_without_a_word() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [FIRSTLIGHT, "list", "--json"],
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_interrupt_is_exit_status_130(monkeypatch: pytest.MonkeyPatch, *, wrapped: bool) -> None:
    """Also while a class is made, where Python gives it as the cause of a RuntimeError."""

    def interrupted(**_: object) -> None:
        error = KeyboardInterrupt()
        if wrapped:
            raise RuntimeError("Error calling __set_name__") from error
        raise error

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


def test_the_list_of_experiments_as_json_is_all_of_the_output() -> None:
    done = subprocess.run([FIRSTLIGHT, "list", "--json"], capture_output=True, timeout=60)
    assert json.loads(done.stdout)[0]["name"] == "container-creation"


def test_signs_that_the_locale_lacks_are_written_in_ascii() -> None:
    """Of the width that tables reckon with, where one sign will do; and as JSON can read them."""
    text = '█ 4\xa0% (1–2) × µs · → ± "é\udcff\U0001f600"'
    code = (
        "import sys\nfrom firstlight.cli import main\n"
        f"main.app = lambda **_: [print({text!a}, file=f) for f in (sys.stdout, sys.stderr)]\n"
        "main.main()"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, env=environment
    )
    assert done.stdout == b'# 4 % (1-2) x us . > +- "\\u00e9\\udcff\\ud83d\\ude00"\n'
    assert done.stderr == done.stdout


def test_json_of_signs_that_the_locale_lacks_is_json() -> None:
    codecs.register_error("signs", output.in_any_locale)
    text = output.to_json(["".join(output._ASCII)])
    assert len(json.loads(text.encode("ascii", "signs"))) == 1
