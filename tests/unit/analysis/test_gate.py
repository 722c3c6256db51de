"""What starts did, counted and compared."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact
from tests.support.counted_runs import GRACE, IN_THE_QUEUE, POINT, USUAL, Row, call, run_of

from firstlight.analysis import counts, gate, sides
from firstlight.analysis.gate import Values, has_changed
from firstlight.errors import FirstlightError


def test_a_start_is_counted_up_to_its_end_point(tmp_path: Path) -> None:
    frame = counts.counts(run_of(tmp_path, [USUAL]))
    assert {name: value for _, name, value in frame.rows()} == {
        "call mount": 2,
        "call sendto": 1,
        "call read": 1,
        "call umount2": 1,
        "netlink route RTM_NEWLINK up": 1,
        "bytes read": 5000,
        "bytes written": 32,
        "processes": 1,
        "exec itself": 1,
        "RCU wait synchronize_rcu_expedited (namespace_unlock)": 1,
    }


def test_the_sleeps_of_one_grace_period_count_once(tmp_path: Path) -> None:
    twice = (*USUAL, ("blocked", "", "", IN_THE_QUEUE, 105, 109, None))
    again = (
        *twice,
        call("umount2", "/x", at=400, end=500),
        ("blocked", "", "", GRACE, 410, 450, 0),
    )
    frame = counts.counts(run_of(tmp_path, [twice, again]))
    waits = frame.filter(pl.col("count").str.starts_with(counts.RCU)).sort("sample")
    assert waits["value"].to_list() == [1, 2]


def test_what_the_host_makes_longer_is_not_counted(tmp_path: Path) -> None:
    longer = (*USUAL, call("read", "proc:mountinfo", result=4096), call("open", "/proc/self/x"))
    frame = counts.counts(run_of(tmp_path, [USUAL, longer])).sort("sample")
    assert frame.filter(pl.col("count") == "call read")["value"].to_list() == [1, 1]
    assert frame.filter(pl.col("count") == "bytes read")["value"].to_list() == [5000, 5000]
    assert frame.filter(pl.col("count") == "call open")["sample"].to_list() == [1]


def test_a_start_with_lost_events_is_not_counted(tmp_path: Path) -> None:
    assert counts.counts(run_of(tmp_path, [USUAL], lost=1)).is_empty()


FAULTS = (388, 390, 391, 386, 395, 389, 384, 388, 390)


@pytest.mark.parametrize(("more", "outcome"), [(0, "same"), (15, "same"), (50, "more")])
def test_gate_counts_page_faults_beyond_page_cache(tmp_path: Path, more: int, outcome: str) -> None:
    a = run_of(tmp_path / "a", [USUAL] * 9, faults=FAULTS)
    b = run_of(tmp_path / "b", [USUAL] * 9, faults=[each + more for each in reversed(FAULTS)])
    assert gate.compare(a, b).outcome == outcome


def test_a_run_that_does_not_know_page_faults_has_no_fewer(tmp_path: Path) -> None:
    older = run_of(tmp_path / "a", [USUAL] * 9, faults=[0] * 9)
    newer = run_of(tmp_path / "b", [USUAL] * 9, faults=FAULTS)
    assert gate.compare(older, newer).outcome == "same"


PLANTED = {
    "mount": (call("mount", "/extra tmpfs"), "call mount"),
    "process": (("fork", "process", "", "", 400, 400, None), "processes"),
    "request": (
        call("recvmsg", "socket:netlink.route RTM_GETLINK"),
        "netlink route RTM_GETLINK",
    ),
    "grace period": (
        ("blocked", "", "", "synchronize_rcu;__x64_sys_membarrier", 410, 450, None),
        "RCU wait synchronize_rcu (__x64_sys_membarrier)",
    ),
}


@pytest.mark.parametrize(("row", "count"), PLANTED.values(), ids=PLANTED)
def test_one_more_is_found_and_named(tmp_path: Path, row: Row, count: str) -> None:
    noisy = [(*USUAL, *[call("futex")] * (index % 4)) for index in range(9)]
    a = run_of(tmp_path / "a", noisy)
    b = run_of(tmp_path / "b", [(*rows, row) for rows in noisy])
    verdict = gate.compare(a, b)
    assert verdict.outcome == "more"
    changes = {change.count: change for point in verdict.points for change in point.changes}
    assert changes[count].b.usual == changes[count].a.usual + 1
    assert "call futex" not in changes
    assert gate.compare(b, a).outcome == "less"
    assert gate.compare(a, b, allow=[*changes]).outcome == "same"
    if count == "call mount":
        assert changes[count].evidence == ("/extra tmpfs",)


def test_equal_runs_are_the_same(tmp_path: Path) -> None:
    starts = [(*USUAL, *[call("kill")] * (index % 3)) for index in range(9)]
    a, b = (run_of(tmp_path / name, starts) for name in "ab")
    verdict = gate.compare(a, b)
    assert verdict.outcome == "same"
    assert verdict.points[0].varying == ("call kill",)


def test_a_runtime_may_have_another_file_name(tmp_path: Path) -> None:
    """What it executes besides itself counts by name."""
    old, new = (
        [("exec", "exec", file, "", at, at, None) for at, file in
         ((1, f"/opt/{name}"), (2, "/proc/self/exe"), (3, f"/opt/{name}"), (4, "/bin/true"))]
        for name in ("runc-1.2", "runc-1.3")
    )  # fmt: skip
    a, b = (run_of(tmp_path / name, [rows] * 9) for name, rows in (("a", old), ("b", new)))
    assert gate.compare(a, b).outcome == "same"
    values = dict(counts.counts(a).filter(pl.col("sample") == 0).select("count", "value").rows())
    assert values == {"exec itself": 3, "exec true": 1}


def test_too_few_starts_are_refused(tmp_path: Path) -> None:
    a, b = (run_of(tmp_path / name, [USUAL] * 8) for name in "ab")
    with pytest.raises(FirstlightError, match="has 8 whole traced starts"):
        gate.compare(a, b)


@given(
    st.lists(st.integers(0, 50), min_size=9, max_size=30),
    st.lists(st.integers(0, 50), min_size=9, max_size=30),
)
def test_gate_sees_change_either_way_but_not_noise(a: list[int], b: list[int]) -> None:
    left, right = gate._values(a), gate._values(b)
    changed = has_changed("call read", left, right)
    assert changed == has_changed("call read", right, left)
    if changed and not (left.steady and right.steady):
        assert max(a) < min(b) or max(b) < min(a)
    assert not has_changed("call read", left, gate._values(a))


@pytest.mark.parametrize(
    ("starts", "exceptions", "changed"),
    [(9, 0, True), (9, 1, False), (12, 1, True), (15, 2, True), (15, 3, False), (30, 4, True)],
)
def test_exceptions_are_allowed_where_there_are_starts_enough(
    starts: int, exceptions: int, changed: bool
) -> None:
    before = Values(33, 33, 33, starts, starts)
    after = Values(34, 33, 34, starts, starts - exceptions)
    assert has_changed("call mount", before, after) == changed


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_chance_is_that_of_fishers_exact_test(n: int, m: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    expected = fisher_exact([[a, n - a], [m - b, b]], alternative="greater").pvalue
    assert gate.chance(Values(0, 0, 1, n, a), Values(1, 0, 1, m, b)) == pytest.approx(
        min(1, 2 * expected)
    )


@pytest.mark.parametrize(
    ("usual", "changed"), [(20_757, False), (20_960, False), (21_100, True), (19_000, True)]
)
def test_bytes_need_a_change_of_a_percent(usual: int, changed: bool) -> None:
    before, after = Values(20_757, 20_736, 20_760, 9, 5), Values(usual, usual, usual, 9, 9)
    assert has_changed(counts.WRITTEN, before, after) == changed


def test_a_run_of_two_runtimes_is_its_own_baseline(tmp_path: Path) -> None:
    names = ("/old/crun", "/new/crun")
    starts = [USUAL if index % 2 == 0 else (*USUAL, call("mount", "/x")) for index in range(18)]
    both = run_of(tmp_path / "both", starts, [{**POINT, "runtime": name} for name in names])
    verdict = gate.compare(*sides.of_run(both))
    assert verdict.outcome == "more"
    assert [point.point for point in verdict.points] == [{"instances": 1}]
    assert [change.count for change in verdict.points[0].changes] == ["call mount"]


def test_runs_of_two_paths_have_the_same_points(tmp_path: Path) -> None:
    a, b = (
        run_of(tmp_path / name, [USUAL] * 9, [{"runtime": f"/{name}/crun", "instances": 1}])
        for name in ("old", "new")
    )
    assert gate.compare(*sides.of_runs(a, b)).outcome == "same"
    with pytest.raises(FirstlightError, match="no traced point in common"):
        gate.compare(a, b)


def test_starts_that_all_failed_are_named_so(tmp_path: Path) -> None:
    good = run_of(tmp_path / "good", [USUAL] * 9)
    bad = run_of(tmp_path / "bad", [USUAL] * 9, lost=1)
    for runs, name in (((bad, good), "A, the baseline,"), ((good, bad), "B")):
        with pytest.raises(FirstlightError, match=f"none of the 9 traced starts of {name} became"):
            gate.compare(*runs)


@pytest.mark.parametrize(
    ("left", "fact"),
    [(0, "has lost what its 9 traced starts did"), (8, "has 8 whole traced starts")],
)
def test_starts_whose_spans_are_gone_are_not_compared(tmp_path: Path, left: int, fact: str) -> None:
    a, b = (run_of(tmp_path / name, [USUAL] * 9) for name in "ab")
    for batch in range(left, 9):
        (b.path / "spans" / f"{batch}.arrow").unlink()
    with pytest.raises(FirstlightError, match=f"{b.path} {fact}"):
        gate.compare(a, b)


def test_a_run_of_one_thing_has_no_halves(tmp_path: Path) -> None:
    with pytest.raises(FirstlightError, match="has no two runtimes to compare"):
        sides.of_run(run_of(tmp_path, [USUAL]))
