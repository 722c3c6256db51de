"""Makes a Helm chart of deploy/kubernetes, build/chart/firstlight, with the values of values.env.

    .venv/bin/python mk/chart.py [DIRECTORY]

Its templates are what kustomize makes of the folders when each value is its own name, so there is
one source of the objects, and one of the values.
"""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from firstlight.errors import Unsupported
from firstlight.lab.cluster import programs

ROOT = Path(__file__).parents[1]
SOURCE, CHART = ROOT / "deploy" / "kubernetes", ROOT / "build" / "chart" / "firstlight"
FOLDERS = {
    "base": "not .Values.remove",
    "remove": ".Values.remove",
    "functions": "and .Values.functions (not .Values.remove)",
    "runtimeclass": "and .Values.runtimeclass (not .Values.remove)",
    "watch": "and .Values.watch (not .Values.remove)",
}
CHOICES = {
    "functions": "Whether the nodes serve objects of kind Function.",
    "runtimeclass": "Whether there is the RuntimeClass firstlight.",
    "watch": "Whether the nodes serve metrics of the container starts on them.",
    "remove": "Whether what is on the nodes is taken away, before the chart is uninstalled.",
}


def values() -> dict[str, str]:
    """Those of values.env, by their names."""
    lines = (SOURCE / "values" / "values.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def kubectl() -> str:
    """The one that is built, or the machine's own."""
    try:
        return str(programs.path("kubectl"))
    except Unsupported as error:
        return shutil.which("kubectl") or sys.exit(f"{error.message}: {error.hint}")


def template(folder: str, names: list[str]) -> str:
    """What kustomize makes of a folder, with each value as a reference to it."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "kubernetes"
        shutil.copytree(SOURCE, copy)
        (copy / "values" / "values.env").write_text(
            "".join(f"{name}={{{{ .Values.{name} }}}}\n" for name in names)
        )
        done = subprocess.run(
            [kubectl(), "kustomize", copy / folder],
            check=True, stdout=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    return f"{{{{- if {FOLDERS[folder]} }}}}\n{done.stdout}{{{{- end }}}}\n"


def main() -> None:
    """Write the chart."""
    [chart] = map(Path, sys.argv[1:]) if sys.argv[1:] else [CHART]
    version = importlib.metadata.version("firstlight")
    known = values()
    templates = {folder: template(folder, list(known)) for folder in FOLDERS}
    shutil.rmtree(chart, ignore_errors=True)
    (chart / "templates").mkdir(parents=True)
    for folder, text in templates.items():
        (chart / "templates" / f"{folder}.yaml").write_text(text)
    (chart / "values.yaml").write_text(
        "".join(f"{name}: {json.dumps(value)}\n" for name, value in known.items())
        + "".join(f"# {text}\n{name}: false\n" for name, text in CHOICES.items())
    )
    (chart / "Chart.yaml").write_text(
        "apiVersion: v2\nname: firstlight\ntype: application\n"
        "description: Prepared networks for pods, and functions on every node\n"
        f"version: {version}\nappVersion: {json.dumps(version)}\nkubeVersion: '>=1.30.0-0'\n"
    )
    print(chart)


if __name__ == "__main__":
    main()
