"""Fits the libraries that read runs into a limit of virtual memory (``ulimit -v``).

Each reserves address space for every CPU, and polars aborts the process when it gets none.
"""

import os
import resource

from firstlight.errors import FirstlightError

_LEAST = 1536 << 20
"""Of address space, most of which is never used: enough for a small run."""
_THREADS = ("POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS")


def fit() -> None:
    """Where the memory is limited, have the libraries use one thread each.

    Raises FirstlightError if the limit is too low for them.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit < 0:
        return
    if limit < _LEAST:
        raise too_little(f"to read a run takes {_LEAST >> 20} MiB")
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    import numpy as np
    import polars as pl

    del np
    pl.thread_pool_size()  # it reads the variable now
    for name, value in before.items():  # measured commands get the user's environment
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def too_little(why: str) -> FirstlightError:
    """The error of a process that has used up its memory."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit < 0:
        return FirstlightError(f"out of memory: {why}", "free memory, or read fewer runs at once")
    return FirstlightError(
        f"virtual memory is limited to {limit >> 20} MiB: {why}",
        "raise the limit: ulimit -v unlimited",
    )
