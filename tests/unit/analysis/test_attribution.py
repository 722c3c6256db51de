"""The rules that charge calls, and the time between them, by their neighbours."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.analysis import attribution, phases
from firstlight.analysis.attribution import CODE, NEUTRAL, PHASE, Calls, Execs
from firstlight.store import SPAN_SCHEMA

NAMES = {code: name for name, code in PHASE.items()}
LONG = 10_000


def executed(times: list[int]) -> Execs:
    """One process's execve calls."""
    return Execs(np.zeros(len(times), np.int64), np.array(sorted(times), np.int64))


def charge(
    words: list[str], execs: list[int] | None = None, end: int = LONG, took: tuple[int, ...] = ()
) -> tuple[list[str], list[str]]:
    """The phases of calls and of the gaps before them: the call at place n lasts from 10n to 10n+5.

    A word is a phase, ``-`` for a neutral call, or one of phases.ANSWER and phases.MASK.
    """
    codes = np.array([NEUTRAL if word == "-" else CODE[word] for word in words])
    starts = np.arange(len(words), dtype=np.int64) * 10
    took_in = np.isin(np.arange(len(words)), took)
    calls = Calls(np.zeros(len(words), np.int64), starts, starts + 5, codes, took_in)
    charged, gaps = attribution.charge(calls, executed(execs or []), np.array([end]))
    return [NAMES[code] for code in charged], [NAMES[code] for code in gaps]


def test_a_neutral_call_goes_with_what_it_prepares() -> None:
    calls, gaps = charge(["cgroup", "-", "-", "mount"])
    assert calls == gaps == ["cgroup", "mount", "mount", "mount"]


def test_language_start_lasts_to_first_own_call() -> None:
    words = ["process.start", "-", "signals", "-", "cgroup", "signals", "mount"]
    calls, gaps = charge(words)
    assert calls == [*["process.start"] * 4, "cgroup", "signals", "mount"]
    assert gaps == [*["process.start"] * 5, "signals", "mount"]


def test_start_without_execve_is_known_by_runtime_calls() -> None:
    calls, gaps = charge(["handshake", "security", "process.start", "signals", "-", "config"])
    assert calls[2:] == ["process.start"] * 3 + ["config"]
    assert gaps[2:] == ["process.start"] * 4


def test_signal_resets_before_execve_belong_to_start() -> None:
    calls, _ = charge(["fork", "signals", "-", "signals", "process.start"])
    assert calls == ["fork", *["process.start"] * 4]


def test_a_mask_is_part_of_setting_handlers_and_else_neutral() -> None:
    calls, _ = charge(["signals", phases.MASK, "-", phases.MASK, "cgroup", phases.MASK, "mount"])
    assert calls == [*["signals"] * 4, "cgroup", "mount", "mount"]


def test_data_that_was_read_is_used_before_the_next_call() -> None:
    _, gaps = charge(["config", "cgroup", "mount"], took=(0,))
    assert gaps == ["config", "config", "mount"]


def test_charge_ignores_read_still_going_on() -> None:
    codes = np.array([PHASE["config"], PHASE["mount"]])
    starts, ends = np.array([0, 10]), np.array([50, 15])
    calls = Calls(np.array([0, 0]), starts, ends, codes, np.array([True, False]))
    _, gaps = attribution.charge(calls, executed([]), np.array([LONG]))
    assert NAMES[gaps[1]] == "mount"


def test_from_its_execve_to_the_end_point_the_payload_is_exec() -> None:
    words = ["security", "process.start", "-", "process.start", "handshake"]
    calls, gaps = charge(words, execs=[12], end=35)
    assert calls == ["security", "exec", "exec", "exec", "handshake"]
    assert gaps == ["security", "exec", "exec", "exec", "exec"]


def test_program_before_end_point_is_no_payload() -> None:
    calls, _ = charge(["process.start", "mount", "handshake"], execs=[2], end=25)
    assert calls == ["process.start", "mount", "handshake"]


def test_the_time_before_an_exit_is_explained_by_nothing() -> None:
    assert charge(["mount", "process.exit"])[1] == ["mount", "unattributed"]


def test_an_answer_goes_with_its_request() -> None:
    codes = np.array([CODE[phases.ANSWER], PHASE["veth"], NEUTRAL, CODE[phases.ANSWER]])
    assert attribution.answered(codes, np.zeros(4, np.int64)).tolist() == [
        NEUTRAL,
        PHASE["veth"],
        NEUTRAL,
        PHASE["veth"],
    ]


@pytest.mark.parametrize(
    ("rows", "alone"),
    [
        ([("write", 1, 8), ("read", 1, 8)], True),
        ([("write", 1, 8), ("read", 2, 8)], False),
        ([("write", 1, 8), ("read", 1, -11)], False),
        ([("read", 1, 8), ("read", 1, 8)], False),
    ],
    ids=["one process", "two processes", "nothing was read", "nothing was written"],
)
def test_a_pipe_to_itself_is_no_handshake(rows: list[tuple[str, int, int]], alone: bool) -> None:
    table = [
        {"sample": 0, "kind": "call", "name": name, "pid": pid, "result": result, "peer": 77}
        for name, pid, result in rows
    ]
    assert attribution.to_itself(pl.DataFrame(table, schema=SPAN_SCHEMA)).any() == alone


@given(
    st.lists(st.sampled_from([*phases.ORDER, "-", phases.MASK]), min_size=1, max_size=40),
    st.lists(st.integers(0, 400), max_size=3),
    st.integers(0, 400),
    st.sets(st.integers(0, 39)),
)
def test_every_call_and_every_gap_gets_a_phase(
    words: list[str], execs: list[int], end: int, took: set[int]
) -> None:
    calls, gaps = charge(words, execs, end, tuple(took))
    assert len(calls) == len(gaps) == len(words)
    if not execs:
        message = {"process.start", "signals", "-", phases.MASK}
        assert [a for a in words if a not in message] == [
            b for a, b in zip(words, calls, strict=True) if a not in message
        ]
