"""Messages of ``application/vnd.amazon.eventstream``, in which streamed answers are sent.

A message: its length, that of its headers, and a checksum of both; the headers; the payload; a
checksum of all before. A header: its name, the type 7 for text, and its value.
"""

from struct import pack
from zlib import crc32

import msgspec

MEDIA_TYPE = "application/vnd.amazon.eventstream"
_CHUNK_MOST = 1 << 20


def answer(payload: bytes, complete: dict[str, str]) -> bytes:
    """The events that answer InvokeWithResponseStream: the payload, then how it ended."""
    chunks = [
        _event("PayloadChunk", payload[at : at + _CHUNK_MOST], "application/octet-stream")
        for at in range(0, len(payload), _CHUNK_MOST)
    ]
    end = _event("InvokeComplete", msgspec.json.encode(complete), "application/json")
    return b"".join((*chunks, end))


def _event(kind: str, payload: bytes, content_type: str) -> bytes:
    named = {":message-type": "event", ":event-type": kind, ":content-type": content_type}
    headers = b"".join(
        pack(">B", len(name)) + name.encode() + pack(">BH", 7, len(value)) + value.encode()
        for name, value in named.items()
    )
    lengths = pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = lengths + pack(">I", crc32(lengths)) + headers + payload
    return message + pack(">I", crc32(message))
