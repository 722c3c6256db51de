"""The Helm chart has the objects of deploy/kubernetes, for any values."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from firstlight.lab.cluster import programs

yaml = pytest.importorskip("yaml")  # kubernetes needs it
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "kubernetes"
VALUES = (DEPLOY / "values" / "values.env").read_text().splitlines()
Objects = dict[tuple[str, str, str], dict[str, Any]]
OTHER = {"image": "registry.example/agent@sha256:0", "pullPolicy": "Never", "plugins": "/cni bin",
         "lists": "/run/cni.d", "cpu": "1", "memory": "1Gi"}  # fmt: skip


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chart") / "firstlight"
    script = str(ROOT / "mk" / "chart.py")
    subprocess.run([sys.executable, script, directory], check=True, cwd=ROOT, timeout=120)
    return directory


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Helm's own templates, without Helm: Go's text/template."""
    go = subprocess.run(
        [ROOT / "mk" / "go.sh"], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    if go.returncode:
        pytest.skip(f"there is no Go toolchain: {go.stderr}")
    built = tmp_path_factory.mktemp("renderer") / "render"
    subprocess.run(
        [go.stdout.strip(), "build", "-o", built, ROOT / "tests" / "support" / "render.go"],
        check=True, timeout=300, cwd=built.parent,
    )  # fmt: skip
    return built


def named(text: str) -> Objects:
    """The objects of a stream, by kind, namespace and name."""
    documents = [each for each in yaml.safe_load_all(text) if each]
    objects = {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each
               for each in documents}  # fmt: skip
    assert len(objects) == len(documents)
    return objects


def kustomized(folder: Path) -> Objects:
    done = subprocess.run(
        [programs.path("kubectl"), "kustomize", folder],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return named(done.stdout)


def rendered(renderer: Path, chart: Path, given: dict[str, Any]) -> Objects:
    values = yaml.safe_load((chart / "values.yaml").read_text())
    assert given.keys() <= values.keys()
    done = subprocess.run(
        [renderer, *sorted((chart / "templates").iterdir())],
        input=json.dumps(values | given), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return named(done.stdout)


@pytest.mark.parametrize(
    ("folders", "choices"),
    [(("base",), ()), (("remove",), ("remove",)),
     (("base", "functions", "runtimeclass"), ("functions", "runtimeclass")),
     (("base", "watch"), ("watch",))],
)  # fmt: skip
@pytest.mark.parametrize("values", [{}, OTHER], ids=["values.env", "others"])
def test_the_chart_has_the_objects_of_the_folders(
    chart: Path, renderer: Path, tmp_path: Path, folders: tuple[str, ...],
    choices: tuple[str, ...], values: dict[str, str],
) -> None:  # fmt: skip
    copy = tmp_path / "kubernetes"
    shutil.copytree(DEPLOY, copy)
    lines = {**dict(line.split("=", 1) for line in VALUES if "=" in line), **values}
    (copy / "values" / "values.env").write_text(
        "".join(f"{key}={each}\n" for key, each in lines.items())
    )
    wanted: Objects = {}
    for folder in folders:
        wanted |= kustomized(copy / folder)
    assert rendered(renderer, chart, {**values, **dict.fromkeys(choices, True)}) == wanted
    assert len(wanted) > 2
