"""Reads files whose paths other processes chose: of any kind and size, and gone at any time."""

import json
import os
import stat
from pathlib import Path

_MOST = 16 << 20


def read_json(file: Path) -> object:
    """The document; None if it is not a regular file of JSON of at most 16 MiB.

    A FIFO would be waited for, and a device may have no end.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST:
                return None
            return json.loads(stream.read(_MOST))
    except (OSError, ValueError, RecursionError):
        return None
