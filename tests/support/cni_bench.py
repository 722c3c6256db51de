import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstlight.lab.cni import conf
from firstlight.lab.cni.runtime import Runtime

RECORDER = Path(__file__).with_name("cni_recorder.py")


@dataclass
class Bench:
    """A directory of recording plugins, a runtime over it, and what the plugins were given."""

    directory: Path
    runtime: Runtime

    @property
    def calls(self) -> list[dict[str, Any]]:
        record = self.directory / "record"
        return (
            [json.loads(line) for line in record.read_text().splitlines()]
            if record.exists()
            else []
        )

    @property
    def order(self) -> list[tuple[str, str]]:
        return [(call["plugin"], call["env"]["CNI_COMMAND"]) for call in self.calls]

    def network(self, *plugins: dict[str, Any] | str, **keys: Any) -> conf.Network:
        listed = [{"type": one} if isinstance(one, str) else one for one in plugins]
        document = {"cniVersion": "1.0.0", "name": "net", "plugins": listed, **keys}
        return conf.parse(json.dumps(document), "test")


def install(directory: Path, *names: str) -> None:
    directory.mkdir(exist_ok=True)
    for name in names:
        program = directory / name
        program.write_text(f"#!{sys.executable} -ISE\n{RECORDER.read_text()}")
        program.chmod(0o755)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    plugins = tmp_path / "bin"
    install(plugins, "one", "two", "three")
    environment = {**os.environ, "RECORD": str(tmp_path / "record")}
    runtime = Runtime((plugins,), tmp_path / "cache", timeout=20, environment=environment)
    return Bench(tmp_path, runtime)
