"""What a plain installation can do, and how it says what to add to it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import firstlight
from firstlight import errors

PACKAGE = Path(firstlight.__file__).parent
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

EXTRAS = (
    "wasmtime", "h11", "httptools", "prometheus_client", "starlette", "uvicorn", "zstandard",
    "awslambdaric", "boto3", "botocore", "opentelemetry", "grpc", "kubernetes",
)  # fmt: skip

SCRIPT = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {extras}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
importlib.import_module({module!r})
"""


@pytest.mark.parametrize(
    "module",
    [
        "firstlight.cli.main",
        "firstlight.agile.daemon",
        "firstlight.agile.runtime",
        "firstlight.lab.experiments.catalogue",
        "firstlight.lab.watch.keep",
        "firstlight.claims.catalogue",
        "firstlight.report.page",
        "firstlight.report.terminal",
        "firstlight.lab.doctor",
        "firstlight.cli.host",
        "firstlight.cli.watch",
        "firstlight.cli.function",
    ],
)
def test_no_extra_is_needed_to_import(module: str) -> None:
    script = SCRIPT.format(extras=EXTRAS, module=module)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("has_pip", [True, False])
def test_an_extra_is_added_to_the_copy_that_runs(
    monkeypatch: pytest.MonkeyPatch, *, has_pip: bool
) -> None:
    """By a command that any shell takes: an environment of uv has no pip."""
    monkeypatch.setattr(sys, "executable", "/srv/my tools/python")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: has_pip or None)
    command = ("'/srv/my tools/python' -m pip install" if has_pip else
               "uv pip install --python '/srv/my tools/python'")  # fmt: skip
    assert errors.install_extra("wasm") == f"{command} 'firstlight[wasm]'"


def test_debians_package_has_every_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path("/usr/lib/firstlight") == errors.DEBIAN
    monkeypatch.setattr(errors, "DEBIAN", PACKAGE)
    assert errors.install_extra("http").startswith("install Debian's package firstlight again")
    script = (PYPROJECT.parent / "mk" / "deb.py").read_text()
    [listed] = re.findall(r'^EXTRAS = "(.*)"$', script, re.MULTILINE)
    known = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert {*listed.split(",")} == {*known} - {"dev"}
    assert 'LIBRARY = "usr/lib/firstlight"' in script


def test_each_remedy_names_an_extra_that_there_is() -> None:
    known = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    sources = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    named = [
        name for text in sources.values() for name in re.findall(r'install_extra\("(\w+)"\)', text)
    ]
    assert len(named) > 10
    assert {*named} <= {*known}
    assert [path.name for path, text in sources.items() if "pip install" in text] == ["errors.py"]
