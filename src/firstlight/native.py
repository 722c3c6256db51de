"""The programs of firstlight's native part, as the package installs them."""

from importlib.resources import files
from pathlib import Path

from firstlight.errors import Failed


def native(name: str) -> Path:
    """The path of one of firstlight's own native programs. Raises Failed where it is not built."""
    path = Path(str(files("firstlight"))) / "_native" / name
    if not path.exists():
        raise Failed(f"firstlight's own program {path} is missing", "build it: make setup")
    return path
