"""What a node keeps of Python functions, so that they outlive a manager that is killed.

Of each zygote that has imported its handler, and of each fork, the node has the descriptors that
lead to it, and a memory file that says what they are: one byte, by which a fork that has its event
is marked, and JSON.
"""

import os

import msgspec
from msgspec import Struct

from firstlight.agile import coding
from firstlight.agile.function import Function

_WAITS, _BUSY = b"0", b"1"


class KeptZygote(Struct, frozen=True, tag="zygote"):
    """A zygote, by the number of its instance and the cgroup that it was born in.

    ``digest`` is of its files, and of the directories where imports are looked for.

    With it come its control socket and its outputs.
    """

    function: Function
    instance: int
    home: int
    files: tuple[str, ...]
    directories: tuple[str, ...]
    digest: str


class KeptFork(Struct, frozen=True, tag="fork"):
    """A fork, or a place that a zygote is to fork in; ``zygote`` is an instance, ``pid`` PID 1's.

    With it come the place's socket, its pidfd and its network, the fork's socket and its outputs.
    """

    zygote: int
    pid: int
    cgroup: int
    network: str


Kept = KeptZygote | KeptFork
_kept: msgspec.json.Decoder[Kept] = msgspec.json.Decoder(Kept)


def written(what: Kept) -> int:
    """The memory file."""
    descriptor = os.memfd_create("kept", os.MFD_CLOEXEC)
    os.write(descriptor, _WAITS + coding.encode(what))
    return descriptor


def mark_busy(descriptor: int) -> None:
    """The fork of this file is about to get its event."""
    os.pwrite(descriptor, _BUSY, 0)


def read(descriptor: int) -> tuple[Kept, bool]:
    """What it says, and whether the fork is busy."""
    text = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    return coding.decode(text[1:], _kept), text[:1] == _BUSY
