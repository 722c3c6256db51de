"""The environment of a process that is there, whatever it is doing."""

import subprocess
from pathlib import Path

from firstlight.agile import environment


def test_a_process_that_executes_a_program_has_its_environment(tmp_path: Path) -> None:
    script = tmp_path / "again"
    script.write_text('#!/bin/sh\nexec "$0"\n')
    script.chmod(0o755)
    with subprocess.Popen([script], env={"OF": "start"}) as process:
        try:
            seen = [environment.of(process.pid) for _ in range(300)]
        finally:
            process.kill()
    assert [each for each in seen if each.get("OF") != "start"] == []


def test_a_process_that_is_gone_has_none() -> None:
    assert environment.of(2**22 + 1) == {}
