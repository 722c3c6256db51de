"""Messages between the CNI plugin and the agent: ``native/cni/agent.h`` in Python.

The text of an answer to STATUS is the pool's counts, which the plugin ignores.
"""

import socket
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import msgspec

from firstlight.errors import Failed, longer

MAGIC = 0x31504C46
REQUEST = Struct("=IIII128s256s16s64s256s64s")
ANSWER = Struct("=IiII4s4s16s16s6s6s16s444s")
ATTACHMENT = Struct("=256s16s")
_TEXT_MAX = 443
_ASK_SECONDS = longer(10.0)


class Verb(IntEnum):
    """The plugin's requests."""

    ADD = 1
    DEL = 2
    CHECK = 3
    GC = 4
    STATUS = 5


class Flag(IntFlag):
    """Flags: FILL in a request, IPV6 in an answer."""

    FILL = 1
    IPV6 = 2


_VERBS, _FILL = {verb.value: verb for verb in Verb}, Flag.FILL.value


class Code(IntEnum):
    """The specification's errors that the agent returns; WRONG is the plugin's own."""

    UNKNOWN_CONTAINER = 3
    TRY_AGAIN = 11
    UNAVAILABLE = 50
    WRONG = 102


class Key(NamedTuple):
    """An attachment, as the specification identifies it."""

    network: str
    container: str
    interface: str


class Request(NamedTuple):
    """A request from the plugin. ``pod`` is ``namespace/name``, the name alone, or "".

    ``fills``: an ADD whose link is made in the namespace sent with it.
    """

    verb: Verb
    fills: bool
    key: Key
    pod: str
    uid: str


class PoolCounts(msgspec.Struct, frozen=True):
    """Networks made in advance, the time that took, and requests that found none."""

    made: int
    make_seconds: float
    misses: int


class Answer(NamedTuple):
    """The answer to the plugin. If ``code`` is set, only the text is read."""

    code: int = 0
    text: str = ""
    flags: Flag = Flag(0)
    mtu: int = 0
    address: IPv4Address = IPv4Address(0)
    gateway: IPv4Address = IPv4Address(0)
    address6: IPv6Address = IPv6Address(0)
    gateway6: IPv6Address = IPv6Address(0)
    mac: bytes = bytes(6)
    host_mac: bytes = bytes(6)
    link: str = ""

    def encode(self) -> bytes:
        """The record; a text that is too long is truncated."""
        text = self.text.encode()[:_TEXT_MAX].decode(errors="ignore").encode()
        return ANSWER.pack(
            MAGIC, self.code, self.flags, self.mtu, self.address.packed, self.gateway.packed,
            self.address6.packed, self.gateway6.packed, self.mac, self.host_mac,
            self.link.encode(), text,
        )  # fmt: skip


def decode(message: bytes) -> Request:
    """A request. Raises Failed for one of another version."""
    if len(message) != REQUEST.size:
        raise Failed("the CNI plugin and the agent have different versions", "install both again")
    magic, number, flags, _, *texts = REQUEST.unpack(message)
    verb = _VERBS.get(number)
    if magic != MAGIC or verb is None:
        raise Failed("the CNI plugin and the agent have different versions", "install both again")
    network, container, interface, namespace, name, uid = map(_text, texts)
    pod = f"{namespace}/{name}" if namespace else name
    return Request(verb, bool(flags & _FILL), Key(network, container, interface), pod, uid)


def attachments(data: bytes) -> set[tuple[str, str]]:
    """The container and interface of each record in a list."""
    whole = data[: len(data) - len(data) % ATTACHMENT.size]
    return {(_text(c), _text(i)) for c, i in ATTACHMENT.iter_unpack(whole)}


def encode(counts: PoolCounts) -> str:
    """The counts as the text of an answer."""
    return msgspec.json.encode(counts).decode()


def ask_counts(path: Path) -> PoolCounts:
    """Ask the agent at this socket for its counts. Blocks. Raises Failed, or OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.settimeout(_ASK_SECONDS)
        agent.connect(str(path))
        agent.send(REQUEST.pack(MAGIC, Verb.STATUS, 0, 0, *[b""] * 6))
        answer = agent.recv(ANSWER.size)
    if len(answer) != ANSWER.size:
        raise Failed("the agent has another version", "install both again")
    _, code, *_, text = ANSWER.unpack(answer)
    if code:
        raise Failed(_text(text))
    return msgspec.json.decode(_text(text), type=PoolCounts)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")
