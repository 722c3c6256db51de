"""Reads requests of the Lambda API, and writes answers."""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from firstlight.agile import protocol
from firstlight.agile.functions.errors import Invalid, TooLarge
from firstlight.agile.functions.records import LATEST
from firstlight.agile.http.sigv4 import BODY_MOST
from firstlight.errors import Failed

_CONTEXT_MOST, _PAGE = 3583, 50
_ARN = re.compile(
    r"(?:arn:aws[a-z-]*:lambda:[a-z0-9-]+:)?(?:\d{12}:)?(?:function:)?"
    r"([A-Za-z0-9_-]{1,64})(?::(\$LATEST|[A-Za-z0-9_-]{1,128}))?"
)
_MARKER = re.compile(r"([$A-Za-z0-9_-]{0,128}):([0-9]{1,9})")
Shape = TypeVar("Shape")


class Bad(Exception):
    """A malformed request: a status and the API's name for the error."""

    def __init__(self, status: int, name: str, message: str) -> None:
        super().__init__(message)
        self.status, self.name = status, name


THROTTLED = {"Reason": "ReservedFunctionConcurrentInvocationLimitExceeded"}


def failure(status: int, name: str, message: str, **more: str) -> Response:
    """An error in the API's shape."""
    kind = "User" if status < 500 else "Service"
    body = msgspec.json.encode({"Type": kind, "Message": message, "message": message, **more})
    headers = {"x-amzn-errortype": name}
    if status == 429:
        headers["retry-after"] = "1"
    return Response(body, status, headers, "application/json")


def client_context(encoded: str | None) -> bytes | None:
    """The header X-Amz-Client-Context, decoded. Raises Invalid, Bad."""
    if encoded is None:
        return None
    try:
        context = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid(f"X-Amz-Client-Context is not base64: {error}") from error
    if len(context) > _CONTEXT_MOST:
        raise Invalid(f"X-Amz-Client-Context has {len(context)} bytes", f"at most {_CONTEXT_MOST}")
    check_json(context)
    return context


def check_json(text: bytes) -> None:
    """Raise Bad if it is not JSON."""
    try:
        protocol.check_json(text)
    except Failed as error:
        words = f"Could not parse request body into json: {error.message}"
        raise Bad(400, "InvalidRequestContentException", words) from error


async def read(request: Request, most: int) -> bytes:
    """A request's body. Raises TooLarge without reading more."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise TooLarge(f"the request has {declared} bytes", f"at most {most} are possible")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLarge(f"the request has more than {most} bytes")
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def body(request: Request, shape: type[Shape]) -> Shape:
    """A request's body, decoded as this type. Raises Invalid, Bad, TooLarge."""
    text = await read(request, BODY_MOST)
    try:
        return msgspec.json.decode(text or b"{}", type=shape)
    except msgspec.ValidationError as error:
        raise Invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Bad(400, "InvalidRequestContentException",
                   f"Could not parse request body into json: {error}") from error  # fmt: skip


def named(request: Request) -> tuple[str, str]:
    """The function of a request, and its qualifier."""
    name, inside = name_of(unquote(request.path_params["name"]))
    asked = request.query_params.get("Qualifier", "")
    if inside and asked and inside != asked:
        raise Invalid(f"the qualifiers {inside} and {asked} differ")
    return name, asked or inside


def whole(request: Request) -> str:
    """The function of a request that takes no version. Raises Invalid for another."""
    name, qualifier = named(request)
    if qualifier not in ("", LATEST):
        raise Invalid(f"{qualifier} of {name} cannot be named here", "give the function's name")
    return name


def name_of(text: str) -> tuple[str, str]:
    """Name and qualifier, from an ARN, a part of one, or a name. Raises Invalid."""
    match = _ARN.fullmatch(text)
    if not match:
        raise Invalid(
            f"{text[:170]!r} is not a function's name", "1 to 64 letters, digits, - and _"
        )
    return match[1], match[2] or ""


def check_origin(request: Request) -> None:
    """Refuse browsers' cross-site requests: a web page must not reach what listens on loopback."""
    if "origin" in request.headers and "authorization" not in request.headers:
        raise Bad(403, "AccessDeniedException", "requests of web pages need credentials")


Place = tuple[str, int]
"""Where an item is in a list: a name and a number."""
Item = TypeVar("Item")


def page(
    request: Request, key: str, items: Mapping[Place, Item], shown: Callable[[Item], dict[str, Any]]
) -> Response:
    """A page of a list; the marker is the last item of the page before.

    So a client that removes what a page lists finds all others on the following pages.
    """
    marker, most = request.query_params.get("Marker"), request.query_params.get("MaxItems")
    after = _MARKER.fullmatch(marker) if marker else None
    if marker and not after:
        raise Invalid(f"{marker[:60]!r} is not a Marker of this API")
    if most is not None and not (most.isascii() and most.isdecimal() and 0 < int(most) <= 10000):
        raise Invalid(f"MaxItems is {most[:60]!r}", "from 1 to 10000")
    many = int(most or _PAGE)
    places = sorted(each for each in items if not after or each > (after[1], int(after[2])))
    answer: dict[str, Any] = {key: [shown(items[place]) for place in places[:many]]}
    if many < len(places):
        name, number = places[many - 1]
        answer["NextMarker"] = f"{name}:{number}"
    return as_json(answer)


def as_json(answer: object, status: int = 200) -> Response:
    """An answer of the API."""
    return Response(msgspec.json.encode(answer), status, media_type="application/json")
