"""Functions as Lambda runs them: handlers by awslambdaric, and bootstraps that call curl."""

import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.agile_host import on_host
from tests.support.python_functions import python_root

from firstlight.agile import Config, Runtime
from firstlight.agile.config import Pools
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.serving import Answer, Serving

_AWS = Path(".venv/aws")
_PACKAGES = ("awslambdaric", "runtime_client*", "simplejson", "snapshot_restore_py*")


def packages() -> Path:
    """Where boto3 and awslambdaric are installed; the test is skipped where they are not."""
    import firstlight

    places = [_AWS, *(parent / "aws" for parent in Path(firstlight.__file__).parents)]
    for place in places:
        for package in place.glob("lib/python3.*/site-packages/awslambdaric"):
            return package.parent
    pytest.skip("awslambdaric is missing: make setup")


def lambda_root(where: Path, files: dict[str, str]) -> Path:
    """A root file system with this machine's Python and curl, awslambdaric, and /var/task."""
    root = python_root(where, {})
    for name in _PACKAGES:
        for path in packages().glob(name):
            to = root / "opt/python" / path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(path, to) if path.is_dir() else shutil.copy(path, to)
    task = root / "var/task"
    task.mkdir(parents=True)
    for name, text in files.items():
        (task / name).write_text(text)
        (task / name).chmod(0o755)
    return root


def function(root: Path, handler: str, **more: Any) -> FunctionVersion:
    """A function of Python's runtime."""
    return FunctionVersion(
        name=handler, kind="python", root=str(root), handler=handler, directory="/var/task",
        environment={"PYTHONPATH": "/opt/python", "PYTHONDONTWRITEBYTECODE": "1"},
        **{"timeout": 30.0, **more},
    )  # fmt: skip


def with_serving(
    root: Path, main: Callable[[Serving], Awaitable[None]], pools: Pools | None = None
) -> None:
    """Run a coroutine beside a runtime whose functions are of this root."""

    async def on() -> None:
        subprocess.run(["mount", "--bind", "/usr", root / "usr"], check=True)
        config = Config(name="t4", pools=pools or Pools())
        async with Runtime(config) as runtime, Serving(runtime) as serving:
            await main(serving)

    on_host(on)


async def call(serving: Serving, version: FunctionVersion, event: bytes = b"{}") -> Answer:
    """The answer to an event."""
    return await serving.invoke(version, event, request_id="11111111-2222-3333-4444-555555555555")
