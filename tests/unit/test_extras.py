"""What a plain installation can do: nothing of an extra is imported before it is used."""

import subprocess
import sys

import pytest

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
