"""Words how to add what an extra of pyproject.toml brings, to this copy of firstlight."""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

DEBIAN = Path("/usr/lib/firstlight")
"""Where Debian's package lies, with every extra (mk/deb.py)."""


def install(extra: str) -> str:
    """The remedy where a package of an extra is missing."""
    if Path(__file__).is_relative_to(DEBIAN):
        return "install Debian's package firstlight again: it has the extra " + extra
    return add(f"firstlight[{extra}]")


def add(package: str) -> str:
    """The command that adds a package to the interpreter that runs, as pip, pipx and uv each have
    environments of their own; those of uv have no pip. zsh expands brackets.
    """
    pip = "{} -m pip install" if find_spec("pip") else "uv pip install --python {}"
    return f"{pip.format(shlex.quote(sys.executable))} '{package}'"
