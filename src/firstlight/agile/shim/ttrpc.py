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
    """gRPC's codes, as far as they are used; containerd has an error of its own for each."""

    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13


class Refused(Exception):
    """The answer to a call that cannot be served."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(stream: int, kind: int, payload: bytes) -> bytes:
    """A whole frame."""
    return HEADER.pack(len(payload), stream, kind, 0) + payload


def request(stream: int, service: str, method: str, payload: bytes, namespace: str) -> bytes:
    """A call's frame."""
    call = messages.Request(service=service, method=method, payload=payload)
    call.metadata.add(key=_NAMESPACE, value=namespace)
    return frame(stream, REQUEST, call.SerializeToString())


def response(stream: int, payload: bytes) -> bytes:
    """An answer's frame."""
    return frame(stream, RESPONSE, messages.Response(payload=payload).SerializeToString())


def refusal(stream: int, code: int, message: str) -> bytes:
    """The frame of an answer that is an error."""
    status = messages.Status(code=code, message=message)
    return frame(stream, RESPONSE, messages.Response(status=status).SerializeToString())


def namespace(call: Message) -> str:
    """containerd's namespace that a Request is about."""
    return next((each.value for each in call.metadata if each.key == _NAMESPACE), "default")


def timestamp(nanoseconds: int) -> Message:
    """A Timestamp of ns since 1970; 0 is none."""
    if not nanoseconds:
        return None
    return messages.Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def now() -> int:
    """Ns since 1970."""
    return time.time_ns()
