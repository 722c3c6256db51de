"""What of a node cannot be seen from here, as in a container with fewer rights than it needs."""

from collections.abc import Iterator

from firstlight.host import capabilities
from firstlight.host.facts import PROC
from firstlight.trace import kallsyms

_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_FOR_NAMES = ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")


def unseen() -> Iterator[str]:
    """What is not seen, each with its cause or remedy."""
    if str((PROC / "self/ns/pid").readlink()) != _FIRST_PID_NAMESPACE:
        yield (
            "only starts in this PID namespace are seen; a container sees the node's with "
            "--pid=host, a pod with hostPID: true"
        )
    if lacking := capabilities.lacking(_FOR_NAMES):
        yield f"containers may lack their names: this process lacks {' and '.join(lacking)}"
    if kallsyms.are_hidden():
        yield (
            "waits inside the kernel have no names: sysctl kernel.kptr_restrict=1, and in a "
            "container CAP_SYSLOG"
        )
