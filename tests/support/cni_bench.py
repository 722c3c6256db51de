import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstlight.lab.cni import conf
from firstlight.lab.cni.attachment import Attachment, request
from firstlight.native import native

RECORDER = Path(__file__).with_name("cni_recorder.py")


@dataclass
class Bench:
    """A directory of recording plugins, ``cnirun`` over it, and what the plugins were given."""

    directory: Path
    under: tuple[str, ...] = ()
    """The command that ``cnirun`` runs under."""

    program: Path | None = None
    """Another build of ``cnirun``."""

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

    @property
    def result(self) -> Any:
        """What is kept of the last ADD; None if nothing is."""
        kept = self.directory / "kept"
        text = kept.read_text() if kept.exists() else ""
        return json.loads(text) if text else None

    def network(self, *plugins: dict[str, Any] | str, **keys: Any) -> conf.NetworkList:
        listed = [{"type": plugin} if isinstance(plugin, str) else plugin for plugin in plugins]
        document = {"cniVersion": "1.0.0", "name": "net", "plugins": listed, **keys}
        return conf.parse(json.dumps(document), "test")

    def run(self, verb: str, network: conf.NetworkList, pod: Attachment) -> str:
        """Have the plugins called; returns why that failed, empty if it did not."""
        file = self.directory / "request"
        environment = {**os.environ, "RECORD": str(self.directory / "record")}
        path = (self.directory / "bin",)
        file.write_text(request(network, pod, path, self.directory / "kept", environment))
        done = subprocess.run(
            [*self.under, self.program or native("cnirun"), verb, file],
            stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=60,
        )  # fmt: skip
        *_, message = (done.stderr or done.stdout).removesuffix("\n").split("\n")  # cnirun's own
        return message.removeprefix("firstlight error ") if done.returncode else ""


def install(directory: Path, *names: str) -> None:
    directory.mkdir(exist_ok=True)
    for name in names:
        program = directory / name
        program.write_text(f"#!{sys.executable} -ISE\n{RECORDER.read_text()}")
        program.chmod(0o755)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    install(tmp_path / "bin", "one", "two", "three")
    return Bench(tmp_path)
