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
DASHBOARDS = sorted((HERE / "grafana").iterdir())
METRICS = "".join(
    (Path(firstlight.__file__).parent / module).read_text()
    for module in ("agile/http/metrics.py", "report/live/metrics.py")
)


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


def test_each_alert_fires_for_what_it_names_alone(tmp_path: Path) -> None:
    of = 'job="firstlight",instance="n"'
    failures, pool = "firstlight_function_failures_total", f'{{{of},pool="%s"}}'
    starts = f'firstlight_function_start_seconds_bucket{{{of},warmth="cold",le="%s"}}'
    series = {
        f"up{{{of}}}": "1x30 0x30",
        f'firstlight_function_requests_total{{{of},function="f"}}': "0+10x60",
        f'firstlight_function_requests_total{{{of},function="good"}}': "0+100x60",
        f'{failures}{{{of},function="f",cause="handler"}}': "0+1x60",
        f'{failures}{{{of},function="f",cause="node"}}': "0+1x60",
        f'{failures}{{{of},function="f",cause="throttled"}}': "0+90x60",
        f'{failures}{{{of},function="good",cause="handler"}}': "0+1x60",
        starts % "1": "0+9x60", starts % "2": "0+10x60", starts % "+Inf": "0+10x60",
        f'firstlight_function_waiting{{{of},function="f"}}': "11x60",
        f'firstlight_function_waiting{{{of},function="good"}}': "10x60",
        'up{job="firstlight-watch",instance="n"}': "1x30 0x30",
        'firstlight_lost_events_total{instance="n"}': "0+1x60",
        'firstlight_lost_events_total{instance="good"}': "3x60",
        **{
            f'firstlight_start_seconds_bucket{{instance="n",runtime="{which}",le="{end}"}}': value
            for which, quick in (("slow", 9), ("good", 10))
            for end, value in (("5", f"0+{quick}x60"), ("10", "0+10x60"), ("+Inf", "0+10x60"))
        },
        'firstlight_start_failures_total{instance="n",runtime="runc"}': "0+1x60",
        'firstlight_start_failures_total{instance="n",runtime="good"}': "0x30 1x30",
        **{
            f"firstlight_pool_{name}{pool % which}": value
            for which, high, misses in (("dry", 8, 5), ("unused", 0, 9), ("good", 8, 1))
            for name, value in (
                ("high", f"{high}x60"), ("hits_total", "0+9x60" if high else "0x60"),
                ("misses_total", f"0+{misses}x60"), ("failed_total", f"0+{misses == 5:d}x60"),
            )
        },
    }  # fmt: skip
    expected: dict[str, list[str]] = {
        "Down": [""], "FunctionFails": ['function: "f"'], "NodeFails": [""],
        "Throttles": ['function: "f"'], "ColdStartsSlow": [""], "PoolDry": ['pool: "dry"'],
        "PoolFails": ['pool: "dry"'], "RequestsWait": ['function: "f"'],
        "WatchDown": [""], "WatchLosesEvents": [""], "StartsSlow": ['runtime: "slow"'],
        "StartsFail": ['runtime: "runc"'],
    }  # fmt: skip
    given = [{"series": name, "values": value} for name, value in series.items()]
    (tmp_path / "tests.yml").write_text(json.dumps({
        "rule_files": [str(RULES)],
        "tests": [{"interval": "1m", "input_series": given, "promql_expr_test": [
            {
                "expr": f'count by (function, pool, runtime) (ALERTS{{alertstate="firing",'
                        f'alertname="Firstlight{name}"}})',
                "eval_time": "50m",
                "exp_samples": [
                    {"labels": f"{{{label.replace(': ', '=')}}}", "value": 1} for label in labels
                ],
            }
            for name, labels in expected.items()
        ]}],
    }))  # fmt: skip
    done = subprocess.run(
        [promtool(), "test", "rules", tmp_path / "tests.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert set(re.findall(r"alert: Firstlight(\w+)", RULES.read_text())) == expected.keys()


@pytest.mark.parametrize("path", [RULES, *DASHBOARDS])
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
            or any(f'{kind}("{what}"' in METRICS for kind in ("_counter", "_gauge"))
            or (pool != base and f'"{pool}":' in METRICS)
        )
        assert known or base.startswith("firstlight_process_"), name


@pytest.mark.parametrize("path", DASHBOARDS)
def test_each_panel_of_the_dashboard_has_a_query_of_its_own(path: Path) -> None:
    panels = json.loads(path.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(set(queries)) == len(queries) >= len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
