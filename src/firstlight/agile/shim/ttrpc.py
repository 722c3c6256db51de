"""ttrpc's frames, and the messages of ``shim.proto``.

A frame is a header (length, stream, type, flags), and a Request or a Response; see PROTOCOL.md of
https://github.com/containerd/ttrpc. Only unary calls are made of shims.
"""

import time
from enum import IntEnum
from struct import Struct
from typing import Any

HEADER = Struct(">IIBB")
REQUEST, RESPONSE = 1, 2
_NAMESPACE = "containerd-namespace-ttrpc"


Message = Any
"""One of ``shim.proto``: it has no type before the file is read."""


def _messages() -> Message:
    import grpc

    return grpc.protos("firstlight/agile/shim/shim.proto")


messages: Message = _messages()


class Code(IntEnum):
    """The gRPC codes in use; containerd maps each to an error, and tries a task's call again with
    the API before this one if it is UNIMPLEMENTED.
    """

    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13


class Refused(Exception):
    """A call fails with this code and message."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(stream: int, kind: int, payload: bytes) -> bytes:
    """A whole frame."""
    return HEADER.pack(len(payload), stream, kind, 0) + payload


def request(stream: int, service: str, method: str, payload: bytes, namespace: str) -> bytes:
    """Encode a call as a frame."""
    call = messages.Request(service=service, method=method, payload=payload)
    call.metadata.add(key=_NAMESPACE, value=namespace)
    return frame(stream, REQUEST, call.SerializeToString())


def response(stream: int, payload: bytes) -> bytes:
    """Encode an answer as a frame."""
    return frame(stream, RESPONSE, messages.Response(payload=payload).SerializeToString())


def refusal(stream: int, code: int, message: str) -> bytes:
    """Encode an error as a frame."""
    status = messages.Status(code=code, message=message)
    return frame(stream, RESPONSE, messages.Response(status=status).SerializeToString())


def namespace(call: Message) -> str:
    """The containerd namespace of a Request."""
    return next((each.value for each in call.metadata if each.key == _NAMESPACE), "default")


def timestamp(nanoseconds: int) -> Message:
    """A Timestamp from ns since 1970; 0 gives none."""
    if not nanoseconds:
        return None
    return messages.Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def now() -> int:
    """The ns since 1970 of a Timestamp."""
    return time.time_ns()
