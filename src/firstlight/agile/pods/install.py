"""Installs the CNI plugin and its list where a runtime looks for them, and removes them.

The plugin is installed before the list that names it, each by a rename, so a runtime never sees an
incomplete installation.
"""

from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from firstlight.errors import Failed
from firstlight.files import write_whole
from firstlight.native import native

PLUGIN = "firstlight"
CONFLIST = Path(str(files("firstlight"))) / "deploy" / "kubernetes" / "base" / "firstlight.conflist"
"""The usual list: portmap behind the plugin."""
LIST = "05-firstlight.conflist"


def install(conflist: Path, binaries: Path, lists: Path) -> None:
    """Install the plugin into ``binaries`` and the list into ``lists``. Raises Failed."""
    try:
        _copy(native(f"cni/{PLUGIN}"), binaries / PLUGIN, 0o755)
        _copy(conflist, lists / LIST, 0o644)
    except OSError as error:
        raise Failed(f"cannot install {error.filename}: {error.strerror}") from error


def uninstall(binaries: Path, lists: Path) -> None:
    """Remove both, the list first, so that no list names a missing plugin."""
    for path in (lists / LIST, binaries / PLUGIN):
        with suppress(FileNotFoundError):
            path.unlink()


def _copy(source: Path, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, source.read_bytes(), mode)
