"""Fits the libraries that read runs into limits of virtual memory and of threads.

Each reserves address space for every CPU, and starts threads; polars aborts or panics when it gets
none.
"""

import os
import resource
import threading

from firstlight.errors import FirstlightError

_LEAST = 1536 << 20
"""Of address space, most of which is never used: enough for a small run."""
_FOR_PICTURES = 72 << 30
"""Of address space, which the JavaScript engine that draws them reserves: it aborts without."""
_THREADS = ("POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS")
_OWN_THREADS = 12
"""Threads that the libraries start in any case."""


def fit() -> None:
    """Have the libraries use one thread each: more cost CPU time, and save none of small runs.

    Raises FirstlightError if a limit is too low for them.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < _LEAST:
        raise too_little(f"to read a run takes {_LEAST >> 20} MiB")
    if limit < 0 and not _can_start(_OWN_THREADS):  # where memory is limited, trying takes it
        raise FirstlightError(
            f"{_OWN_THREADS} threads cannot be started, which it takes to read a run",
            "raise the limit of processes: ulimit -u, or the container's or cgroup's pids limit",
        )
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


def allow_pictures() -> None:
    """Raise FirstlightError if virtual memory is limited so that no picture can be drawn."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < _FOR_PICTURES:
        raise too_little(f"pictures take {_FOR_PICTURES >> 30} GiB, most of it never used")


def _can_start(count: int) -> bool:
    """Whether as many threads can be had at once."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(count)]
    started = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
    except RuntimeError:
        return False
    finally:
        end.set()
        for thread in started:
            thread.join()
    return True


def too_little(why: str) -> FirstlightError:
    """The error of a process that has used up its memory."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit < 0:
        return FirstlightError(f"out of memory: {why}", "free memory, or read fewer runs at once")
    return FirstlightError(
        f"virtual memory is limited to {limit >> 20} MiB: {why}",
        "raise the limit: ulimit -v unlimited",
    )
