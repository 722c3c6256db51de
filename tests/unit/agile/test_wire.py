"""Messages to and from the native programs."""

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.agile import wire
from firstlight.errors import Failed

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(words, min_size=1, max_size=5), st.dictionaries(words, words, max_size=4), words)
def test_a_start_reads_back(argv: list[str], env: dict[str, str], directory: str) -> None:
    message = wire.start(tuple(argv), env, directory)
    argc, envc = wire.START.unpack_from(message)
    strings = message[wire.START.size :].decode().split("\0")
    assert (argc, envc) == (len(argv), len(env))
    assert strings == [*argv, *(f"{k}={v}" for k, v in env.items()), directory, ""]


def test_a_nul_and_too_long_a_start_are_refused() -> None:
    with pytest.raises(Failed, match="NUL"):
        wire.start(("/bin/x", "a\0b"), {}, "/")
    with pytest.raises(Failed, match="131"):
        wire.start(("/bin/x", "x" * wire.START_MAX), {}, "/")
    with pytest.raises(Failed, match="10002 bytes"):
        wire.start(("x",) * 5000, {}, "/")


def test_a_report_names_its_step_and_drops_steps_that_were_not_taken() -> None:
    report = wire.report(pack("=Ii16q", 12, 1, *([5] * 13), 0, 0, 0))
    assert (report.step, report.error) == (wire.Step.SECCOMP, 1)
    assert set(report.stamps) == set(wire.Step) - {
        wire.Step.WAIT, wire.Step.STREAMS, wire.Step.EXEC
    }  # fmt: skip
