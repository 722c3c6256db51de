"""Python functions for the tests: a root file system with the host's Python, and a runtime."""

import json
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.agile_host import on_host

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import Pools
from firstlight.agile.function import Result

Make = Callable[..., Function]
Main = Callable[[Runtime, Make], Awaitable[None]]


def python_root(where: Path, modules: dict[str, str]) -> Path:
    """A root file system with Debian's Python, which is bound in on the test's own host."""
    if not Path("/usr/bin/python3").exists():
        pytest.skip("/usr/bin/python3 is missing")
    root = where / "root"
    for name in ("usr", "srv", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    for name, text in modules.items():
        (root / "srv" / f"{name}.py").write_text(text)
    where.chmod(0o755)
    return root


def value(result: Result) -> Any:
    """What a handler returned."""
    return json.loads(bytes(result.value))


def with_handlers(root: Path, main: Main, pools: Pools | None = None, host: str = "") -> None:
    """Run a coroutine beside a runtime; ``host`` is a command that changes the root before."""

    def function(name: str, module: str = "handlers", **more: Any) -> Function:
        return Function(
            rootfs=str(root), kind="python", handler=f"{module}:{name}", directory="/srv", **more
        )

    async def on() -> None:
        subprocess.run(["mount", "--bind", "/usr", root / "usr"], check=True)
        subprocess.run(["sh", "-ec", host], cwd=root, check=True)
        async with Runtime(Config(name="t4", pools=pools or Pools())) as runtime:
            await main(runtime, function)

    on_host(on)
