"""Paths of firstlight's native programs, as installed with the package."""

from functools import cache
from pathlib import Path

from firstlight.errors import Failed

_PACKAGE = Path(__file__).parent


def native(name: str) -> Path:
    """The path of a native program. Raises Failed if it is not built."""
    path = _PACKAGE / "_native" / name
    if not path.exists():
        raise Failed(f"the native program {path} is missing", make("setup"))
    return path


@cache
def checkout() -> Path | None:
    """firstlight's own checkout, if this is its package or is installed in its environment."""
    for parent in _PACKAGE.parents:
        if (parent / "src/firstlight/native.py").is_file() and (parent / "Makefile").is_file():
            return parent
    return None


def make(target: str) -> str:
    """A hint to run ``make target``, for a user of a checkout or of an installed package."""
    if checkout():
        return f"make {target}"
    if target == "setup":
        return "install firstlight again, from a wheel for this machine"
    return f"in a checkout of firstlight: make {target}"
