"""Each verb has a man page that shows every option of its help."""

import re
import subprocess
import sys
from pathlib import Path

from tests.unit.cli.test_main import commands

MAN = Path(__file__).parents[3] / "mk" / "man.py"


def test_each_verb_has_a_page_with_its_options(tmp_path: Path) -> None:
    subprocess.run([sys.executable, MAN, tmp_path], check=True)
    verbs = commands()
    for verb, command in verbs.items():
        text = (tmp_path / f"firstlight-{verb.replace(' ', '-')}.1").read_text()
        for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES"):
            assert f".SH {title}\n" in text, verb
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert re.search(re.escape(option.replace("-", r"\-")) + r"\b", text), option
    top = (tmp_path / "firstlight.1").read_text()
    assert r".BR firstlight\-run (1)" in top
