"""Names of containers from their engines' records, if the bundle lacks them.

Empty if a record is missing, has another version, or was removed with its container.
"""

import json
from pathlib import Path
from typing import Any

from firstlight.lab.watch.files import read_json


def labels(container: str, bundle: str, record: object) -> dict[str, str]:
    """The names of a container with this bundle, and this record if it is Docker's."""
    return _of_storage(container, Path(bundle)) or _of_docker(container, record)


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


def _of_docker(container: str, record: object) -> dict[str, str]:
    if not isinstance(record, dict) or record.get("ID") != container:
        return {}
    about = record.get("Config")
    image = about.get("Image") if isinstance(about, dict) else None
    return _words(container=str(record.get("Name", "")).lstrip("/"), image=image)


def _parsed(text: object) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _words(**labels: object) -> dict[str, str]:
    return {name: text for name, text in labels.items() if text and isinstance(text, str)}
