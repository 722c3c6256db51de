"""Waits until the kernel has destroyed network namespaces whose processes have ended."""

import threading
import time
from socket import if_nametoindex

from firstlight.errors import Failed, longer
from firstlight.host.commands import run

_SETTLE_SECONDS = longer(60)


def settle() -> None:
    """Wait until the kernel has destroyed all network namespaces released so far.

    This work takes locks that the next batch would wait for. The kernel does it in batches on one
    ordered queue, and does not announce its end. So a namespace with the peer of a veth is
    released: when the veth is gone, its batch has begun; when a second one is gone, the first batch
    has ended. Raises Failed after a minute.
    """
    here = str(threading.get_native_id())
    deadline = time.monotonic() + _SETTLE_SECONDS
    for _ in range(2):
        run("unshare", "--net", "ip", "link", "add", "fl-t", "type", "veth",
             "peer", "name", "fl-s", "netns", here)  # fmt: skip
        while link_exists("fl-s"):
            if time.monotonic() > deadline:
                raise Failed(
                    f"the kernel has not destroyed old network namespaces in {_SETTLE_SECONDS:g} s",
                    "see dmesg for what holds them",
                )
            time.sleep(0.002)


def link_exists(link: str) -> bool:
    """Whether this network namespace has a link of that name."""
    try:
        return if_nametoindex(link) > 0
    except OSError:
        return False
