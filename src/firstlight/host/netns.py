"""Network namespaces that the kernel still ends after the last process has left them."""

import subprocess
import threading
import time
from socket import if_nametoindex

from firstlight.errors import Failed

_SETTLE_SECONDS = 60


def settle() -> None:
    """Wait until the kernel has ended every network namespace that was let go before.

    That work holds the locks that the next batch is measured on.

    It ends them on one ordered queue, by batches, and says nothing. So let go of one that holds
    the peer of a link of ours: when the link is gone, its batch has begun, and when that of a
    second one is gone, the first one's batch has ended. Raises Failed after a minute.
    """
    here = str(threading.get_native_id())
    deadline = time.monotonic() + _SETTLE_SECONDS
    for _ in range(2):
        _run("unshare", "--net", "ip", "link", "add", "fl-t", "type", "veth",
             "peer", "name", "fl-s", "netns", here)  # fmt: skip
        while link_exists("fl-s"):
            if time.monotonic() > deadline:
                raise Failed(
                    f"the kernel has not ended old network namespaces in {_SETTLE_SECONDS} s",
                    "dmesg may say what holds them",
                )
            time.sleep(0.002)


def link_exists(link: str) -> bool:
    """Whether this network namespace has a link of that name."""
    try:
        return if_nametoindex(link) > 0
    except OSError:
        return False


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(argv)} failed: {done.stderr.strip()}")
