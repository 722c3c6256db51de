"""What the runtime logs of functions."""

import logging

import pytest

from firstlight.agile.log_lines import log_lines


def test_words_of_functions_begin_no_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    log_lines("%(levelname)s %(message)s")
    try:
        raise ValueError("x\nERROR disk full\x1b[2J")
    except ValueError:
        logging.exception("f is dead: %s", "é\nERROR disk full\x1b[2J\x9b1m\r\u2028")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == r"ERROR f is dead: é\nERROR disk full\x1b[2J\x9b1m\r\u2028"
    assert rest[0].startswith("  Traceback")
    assert rest[-1] == r"  ERROR disk full\x1b[2J"
