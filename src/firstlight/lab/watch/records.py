"""Names of containers from their engines' records, if the bundle lacks them.

Empty if a record is missing, has another version, or was removed with its container.
"""

import json
from pathlib import Path
from typing import Any

from firstlight.lab.watch.files import read_json


def labels(container: str, bundle: str, config: object) -> dict[str, str]:
    """The names of a container whose bundle has this config.json."""
    return _of_storage(container, Path(bundle)) or _of_docker(container, config)


def _of_storage(container: str, bundle: Path) -> dict[str, str]:
    """Podman and Buildah: the bundle is ``STORAGE/DRIVER-containers/ID/userdata``."""
    if bundle.name != "userdata" or not bundle.parent.parent.name.endswith("-containers"):
        return {}
    records = read_json(bundle.parent.parent / "containers.json")
    for record in records if isinstance(records, list) else ():
        if isinstance(record, dict) and record.get("id") == container:
            metadata = _parsed(record.get("metadata"))
            return _words(container=metadata.get("name"), image=metadata.get("image-name"))
    return {}


def _of_docker(container: str, config: object) -> dict[str, str]:
    """Docker: /etc/hostname is mounted from ``ROOT/containers/ID``, where its record is too."""
    mounts = config.get("mounts") if isinstance(config, dict) else None
    for mount in mounts if isinstance(mounts, list) else ():
        source = Path(str(mount.get("source", ""))) if isinstance(mount, dict) else Path()
        if source.parts[-3:] != ("containers", container, "hostname"):
            continue
        record = read_json(source.parent / "config.v2.json")
        if isinstance(record, dict):
            about = record.get("Config")
            image = about.get("Image") if isinstance(about, dict) else None
            return _words(container=str(record.get("Name", "")).lstrip("/"), image=image)
    return {}


def _parsed(text: object) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _words(**labels: object) -> dict[str, str]:
    return {name: text for name, text in labels.items() if text and isinstance(text, str)}
