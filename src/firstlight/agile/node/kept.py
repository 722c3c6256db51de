"""Descriptors of handlers that a node keeps, so that they survive their manager.

The node has the descriptors of each zygote that has imported its handler, of each fork, and of each
WebAssembly worker that has compiled its module. A memory file describes them: one byte, which marks
a fork with an event and a worker that was left, and JSON.
"""

import logging
import os

import msgspec
from msgspec import Struct

from firstlight.agile import coding
from firstlight.agile.function import Function
from firstlight.agile.node.process import Keepsake

_UNMARKED, _MARKED = b"0", b"1"
_log = logging.getLogger(__name__)


class KeptZygote(Struct, frozen=True, tag="zygote"):
    """A zygote, by the number of its instance and the cgroup that it was born in.

    ``digest`` covers its files and the directories that imports search.

    With it come its control socket and its outputs.
    """

    function: Function
    instance: int
    home: int
    files: tuple[str, ...]
    directories: tuple[str, ...]
    digest: str


class KeptFork(Struct, frozen=True, tag="fork"):
    """A fork, or a place for one; ``zygote`` is an instance's number, ``pid`` is PID 1's.

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
    """Mark a fork that is about to get its event, or a worker that gets no more connections."""
    os.pwrite(descriptor, _MARKED, 0)


class Item(Struct, frozen=True):
    """A kept record with its descriptors."""

    what: Kept
    marked: bool
    keepsake: Keepsake
    descriptors: list[int]

    def drop(self) -> None:
        """Forget it, here and at the node."""
        self.keepsake.drop()
        for descriptor in self.descriptors:
            os.close(descriptor)


def read(kept: list[tuple[Keepsake, list[int]]]) -> list[Item]:
    """All records that a node has kept; those that another version cannot read are dropped."""
    items = []
    for keepsake, (note, *descriptors) in kept:
        text = os.pread(note, os.fstat(note).st_size, 0)
        try:
            what = coding.decode(text[1:], _kept)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.warning("an interpreter or worker of another version ends: %s", error)
            keepsake.drop()
            for descriptor in (note, *descriptors):
                os.close(descriptor)
            continue
        if isinstance(what, KeptWorker):
            descriptors.insert(0, note)
        else:
            os.close(note)
        items.append(Item(what, text[:1] == _MARKED, keepsake, descriptors))
    return items
