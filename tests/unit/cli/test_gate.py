"""The verb gate: its exit status, its table, JSON and Markdown."""

import json
from pathlib import Path

import pytest
from tests.support.counted_runs import USUAL, call, run_of
from typer.testing import CliRunner, Result

from firstlight.cli import main as cli

EXTRA = (*USUAL, call("mount", "/extra|path tmpfs"))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    run_of(tmp_path / "a", [USUAL] * 9)
    run_of(tmp_path / "b", [EXTRA] * 9)
    return str(tmp_path / "a"), str(tmp_path / "b")


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words))


def test_the_exit_status_says_whether_a_start_does_more(runs: tuple[str, str]) -> None:
    a, b = runs
    assert invoke("gate", a, a).exit_code == 0
    assert invoke("gate", a, b).exit_code == 1
    assert invoke("gate", b, a).exit_code == 0
    assert invoke("gate", b, a, "--exact").exit_code == 1
    assert invoke("gate", a, b, "--exact", "--allow", "call *").exit_code == 0
    assert invoke("compare", a, b, "--counts").exit_code == 1
    assert invoke("compare", a, b).exit_code == 0


def test_gate_names_unmatched_pattern(
    runs: tuple[str, str],
) -> None:
    # 'call read' is a count that did not change, 'call m[ou]*' matches that which did.
    fits = ("--allow", "call read", "--allow", "call m[ou]*")
    result = invoke("gate", *runs, *fits, "--allow", "call muont", "--json")
    assert (result.exit_code, result.stderr) == (
        0, "warning: --allow 'call muont' matches no count of these runs\n"
    )  # fmt: skip
    assert json.loads(result.stdout)["counts"]["unmatched"] == ["call muont"]
    assert invoke("gate", *runs, "--allow", "call muont").exit_code == 1
    assert not invoke("gate", *runs, *fits).stderr


def test_the_table_names_the_count_and_what_is_new(runs: tuple[str, str]) -> None:
    text = invoke("gate", *runs).stdout
    for words in ("call mount", "+1", "/extra|path tmpfs", "9 and 9 traced starts"):
        assert words in text


def test_json_has_counts_and_times(runs: tuple[str, str]) -> None:
    result = json.loads(invoke("gate", *runs, "--json").stdout)
    [change] = result["counts"]["points"][0]["changes"]
    assert (change["count"], change["b"]["usual"] - change["a"]["usual"]) == ("call mount", 1)
    assert result["counts"]["outcome"] == "more"
    assert "differences" in result["times"]


def test_json_of_compare_has_each_points_verdict(runs: tuple[str, str]) -> None:
    [difference] = json.loads(invoke("compare", *runs, "--json").stdout)["differences"]
    verdicts = ("regression", "improvement", "slower", "faster", "fails_more")
    assert {verdict: difference[verdict] for verdict in verdicts} == dict.fromkeys(verdicts, False)


def test_markdown_is_appended_and_its_cells_hold(runs: tuple[str, str], tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    invoke("gate", *runs, "--markdown", str(summary))
    lines = summary.read_text().splitlines()
    assert lines[:2] == ["before", "### firstlight: a start does more"]
    assert r"| `call mount` | 2 | 3 | +1 | `/extra\|path tmpfs` |" in lines
