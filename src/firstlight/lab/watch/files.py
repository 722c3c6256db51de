"""Reads files whose paths other processes chose: of any kind and size, and gone at any time."""

import json
from pathlib import Path

from firstlight import files

_MOST = 16 << 20


def read_json(file: Path) -> object:
    """The document; None if it is not a regular file of JSON of at most 16 MiB."""
    try:
        return json.loads(files.read_regular(file, _MOST))
    except (OSError, ValueError, RecursionError):
        return None
