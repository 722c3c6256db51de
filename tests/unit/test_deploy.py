"""What is in deploy/ for others' programs: read by these, or for what it names."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

import firstlight
from firstlight import __version__
from firstlight.agile import config
from firstlight.agile.function import Reach
from firstlight.agile.functions import follow, objects, settings
from firstlight.agile.functions.version import Kind
from firstlight.agile.network import firewall
from firstlight.agile.shim import command
from firstlight.cli import watch

HERE = Path(firstlight.__file__).parent / "deploy"
DOCUMENTS = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
RULES = HERE / "prometheus/firstlight.rules.yml"
DASHBOARDS = sorted((HERE / "grafana").iterdir())
METRICS = "".join(
    (Path(firstlight.__file__).parent / module).read_text()
    for module in ("agile/http/metrics.py", "agile/functions/metrics.py", "agile/pods/metrics.py",
                   "report/live/metrics.py")
)  # fmt: skip


def objects_of(name: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")  # kubernetes needs it
    return list(yaml.safe_load_all((HERE / "kubernetes" / name).read_text()))


def containers(name: str) -> dict[str, dict[str, Any]]:
    """Those of a file's one DaemonSet, by name."""
    [made] = objects_of(name)
    return {each["name"]: each for each in made["spec"]["template"]["spec"]["containers"]}


def ports(container: dict[str, Any]) -> dict[str, int]:
    return {each["name"]: each["containerPort"] for each in container["ports"]}


def test_images_are_of_this_version() -> None:
    lines = (HERE / "kubernetes/values/values.env").read_text().splitlines()
    images = [line for line in lines if re.match(r"\w*[iI]mage=", line)]
    assert len(images) == 3
    assert all(line.endswith(f":{__version__}") for line in images)


def test_probes_and_services_use_the_ports_that_are_served() -> None:
    agent = config.load(HERE / "kubernetes/base/pods.toml")
    probed = containers("base/daemonset.yaml")["agent"]["readinessProbe"]["httpGet"]
    assert f"{probed['host']}:{probed['port']}" == agent.pods.metrics
    node = config.load(HERE / "kubernetes/functions/functions.toml").http
    made = containers("functions/daemonset.yaml")
    [service] = objects_of("functions/service.yaml")
    assert node
    assert {node.listen.rpartition(":")[2]} == {
        str(ports(made["runtime"])["lambda"]), str(service["spec"]["ports"][0]["port"])
    }  # fmt: skip
    for container in (made["follow"], containers("watch/daemonset.yaml")["watch"]):
        assert container["args"][-1].endswith(f":{ports(container)['metrics']}")


def test_watch_has_the_capabilities_that_it_keeps() -> None:
    made = containers("watch/daemonset.yaml")["watch"]["securityContext"]["capabilities"]
    assert {f"CAP_{each}" for each in made["add"]} == set(watch.NEEDED)
    [text] = [each.read_text() for each in DOCUMENTS if each.name == "watching.md"]
    [kept] = re.findall(r"It keeps the capabilities ([A-Z_, ]+) and ([A-Z_]+),", text)
    assert set(", ".join(kept).split(", ")) == set(watch.NEEDED)


def test_containerd_finds_the_shim_by_the_class() -> None:
    text = (HERE / "containerd/firstlight.toml").read_text()
    [runtime_class] = objects_of("runtimeclass/runtimeclass.yaml")
    assert f"containerd.runtimes.{runtime_class['handler']}]" in text
    [kind] = re.findall(r'runtime_type = "io\.containerd\.(\w+)\.(\w+)"', text)
    assert "containerd-shim-" + "-".join(kind) == command.START


def test_the_custom_resource_has_the_fields_of_a_function() -> None:
    [made] = objects_of("functions/crd.yaml")
    [version] = made["spec"]["versions"]
    assert f"/apis/{made['spec']['group']}/{version['name']}" == follow.API
    parts = version["schema"]["openAPIV3Schema"]["properties"]
    spec, status = parts["spec"]["properties"], parts["status"]["properties"]
    known = {each.encode_name for each in msgspec.structs.fields(objects.Spec)}
    assert spec.keys() == known
    assert spec["code"]["properties"].keys() == set(objects.CodeSpec.__struct_fields__)
    assert set(spec["kind"]["enum"]) == {*get_args(Kind)} - {"wasm"}  # no source has a module
    assert set(spec["network"]["enum"]) == {*get_args(Reach)}
    most = {"timeout": settings.TIMEOUT_MOST, "warm": settings.WARM_MOST,
            "perInstance": settings.PER_INSTANCE_MOST}  # fmt: skip
    assert {name: spec[name]["maximum"] for name in most} == most
    assert spec["description"]["maxLength"] == settings.DESCRIPTION_MOST
    nodes = status["nodes"]
    assert nodes["maxItems"] == objects.NODES_MOST
    assert nodes["items"]["properties"]["message"]["maxLength"] == objects.MESSAGE_MOST


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


@pytest.mark.parametrize("path", [RULES, *DASHBOARDS, *DOCUMENTS], ids=lambda path: path.name)
def test_each_metric_that_is_asked_for_is_served(path: Path) -> None:
    names = set(re.findall(r"\bfirstlight_[a-z_]+", path.read_text())) - {firewall.GUARD}
    assert names or path in DOCUMENTS
    for name in names:
        base = re.sub(r"_(bucket|count|sum|total)$", "", name)
        kinds = ("pool", "pods", "function", "functions")
        of_kind = {base.removeprefix(f"firstlight_{kind}_") for kind in kinds} - {base}
        known = f'"{base}"' in METRICS or any(
            f'"{what}":' in METRICS or f'("{what}"' in METRICS for what in of_kind
        )
        assert known or base.startswith("firstlight_process_"), name


@pytest.mark.parametrize("path", DASHBOARDS)
def test_each_panel_of_the_dashboard_has_a_query_of_its_own(path: Path) -> None:
    panels = json.loads(path.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(set(queries)) == len(queries) >= len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
