"""Paths of firstlight's native programs, as installed with the package."""

from importlib.resources import files
from pathlib import Path

from firstlight.errors import Failed


def native(name: str) -> Path:
    """The path of a native program. Raises Failed if it is not built."""
    path = Path(str(files("firstlight"))) / "_native" / name
    if not path.exists():
        raise Failed(f"the native program {path} is missing", "build it: make setup")
    return path
