"""What is in deploy/ for others' programs: read by these, or for what it names."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import firstlight

HERE = Path(firstlight.__file__).parent / "deploy"
RULES = HERE / "prometheus/firstlight.rules.yml"
DASHBOARD = HERE / "grafana/functions.json"
METRICS = (Path(firstlight.__file__).parent / "agile/http/metrics.py").read_text()


def promtool() -> str:
    for parent in Path(firstlight.__file__).parents:
        if (result := parent / "libexec/prometheus/usr/bin/promtool").exists():
            return str(result)
    if found_in_path := shutil.which("promtool"):
        return found_in_path
    pytest.skip("promtool is missing: make setup")


def test_the_rules_are_prometheus_rules() -> None:
    done = subprocess.run([promtool(), "check", "rules", RULES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "SUCCESS" in done.stdout


@pytest.mark.parametrize("path", [RULES, DASHBOARD])
def test_each_metric_that_is_asked_for_is_served(path: Path) -> None:
    text = path.read_text()
    names = set(re.findall(r"\bfirstlight_[a-z_]+", text))
    assert names
    for name in names:
        base = re.sub(r"_(bucket|count|sum|total)$", "", name)
        pool = base.removeprefix("firstlight_pool_")
        what = base.removeprefix("firstlight_function_")
        known = (
            f'"{base}"' in METRICS
            or f'_counter("{what}"' in METRICS
            or (pool != base and f'"{pool}":' in METRICS)
        )
        assert known or base.startswith("firstlight_process_"), name


def test_each_panel_of_the_dashboard_has_a_query_of_its_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(set(queries)) == len(queries) >= len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
