"""What a node keeps of handlers, so that they outlive a manager that is killed.

Of each zygote that has imported its handler, of each fork, and of each WebAssembly worker that has
compiled its module, the node has the descriptors that lead to it, and a memory file that says what
they are: one byte, which marks a fork that has its event and a worker that was left, and JSON.
"""

import os

import msgspec
from msgspec import Struct

from firstlight.agile import coding
from firstlight.agile.function import Function
from firstlight.agile.node.process import Keepsake

_UNMARKED, _MARKED = b"0", b"1"


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


class KeptWorker(Struct, frozen=True, tag="worker"):
    """A WebAssembly worker, by the number of its instance; ``identity`` is of its module's file.

    With it come the memory file, its control socket and its standard error.
    """

    function: Function
    instance: int
    identity: tuple[int, ...]


Kept = KeptZygote | KeptFork | KeptWorker
_kept: msgspec.json.Decoder[Kept] = msgspec.json.Decoder(Kept)


def written(what: Kept) -> int:
    """The memory file."""
    descriptor = os.memfd_create("kept", os.MFD_CLOEXEC)
    os.write(descriptor, _UNMARKED + coding.encode(what))
    return descriptor


def mark(descriptor: int) -> None:
    """The fork of this file is about to get its event, or the worker no more connections."""
    os.pwrite(descriptor, _MARKED, 0)


class Item(Struct, frozen=True):
    """What a node has kept, and what that leads to."""

    what: Kept
    marked: bool
    keepsake: Keepsake
    descriptors: list[int]

    def drop(self) -> None:
        """What it leads to has ended."""
        self.keepsake.drop()
        for descriptor in self.descriptors:
            os.close(descriptor)


def read(kept: list[tuple[Keepsake, list[int]]]) -> list[Item]:
    """All that a node has kept."""
    items = []
    for keepsake, (note, *descriptors) in kept:
        text = os.pread(note, os.fstat(note).st_size, 0)
        what = coding.decode(text[1:], _kept)
        if isinstance(what, KeptWorker):
            descriptors.insert(0, note)
        else:
            os.close(note)
        items.append(Item(what, text[:1] == _MARKED, keepsake, descriptors))
    return items
