"""Authenticates callers by AWS Signature Version 4, as AWS's SDKs sign requests.

The algorithm: docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import asyncio
import configparser
import hashlib
import hmac
import re
import time
from calendar import timegm
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_plus

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firstlight import files
from firstlight.agile.http.access import RIGHTS, Caller
from firstlight.errors import Failed

_SKEW_SECONDS = 300
_FILE_MOST = 1 << 20  # bytes of the callers' keys
BODY_MOST = 70 << 20  # a zip file of 50 MB in base64, and the JSON around it
_LARGE = 1 << 20  # hashing more bytes would block the event loop
_ALGORITHM = "AWS4-HMAC-SHA256"
_FIELDS = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=([^,\s]+),\s*SignedHeaders=([^,\s]+),\s*Signature=([0-9a-f]{64})"
)
_SCOPE = re.compile(r"([A-Za-z0-9_-]{1,128})/(\d{8})/([a-z0-9-]+)/(lambda)/aws4_request")
_OF_CLIENTS = ("region", "output")
_UNRESERVED = "-_.~"


@dataclass(frozen=True)
class Request:
    """A request as received. The path is still encoded."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    body: bytes


class Denied(Exception):
    """A request is not authenticated: the API's name for the error, and the reason."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def load(path: Path) -> dict[str, Caller]:
    """Read the callers, by access key, from a file like ~/.aws/credentials. Raises Failed.

    A profile can limit its key's rights: ``invoke``, ``read`` and ``write`` are lists of patterns
    for functions' names, separated by commas. Without any of them it has all rights.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        if path.stat().st_mode & 0o077:
            raise Failed(f"others may read the credentials {path}", f"chmod 600 {path}")
        parser.read_string(files.read_regular(path, _FILE_MOST).decode())
        callers = {parser[name]["aws_access_key_id"]: _caller(path, parser[name])
                 for name in parser.sections()}  # fmt: skip
    except OSError as error:
        raise Failed(f"cannot read the credentials {path}: {error.strerror}") from error
    except (configparser.Error, KeyError, UnicodeDecodeError) as error:
        raise Failed(f"the credentials {path} are invalid: {error}",
                     "write them like ~/.aws/credentials") from error  # fmt: skip
    if not callers:
        raise Failed(f"the credentials {path} have no key", "write them like ~/.aws/credentials")
    if len(callers) < len(parser.sections()):
        raise Failed(f"the credentials {path} give two profiles one access key",
                     "give each a key of its own")  # fmt: skip
    return callers


def _caller(path: Path, profile: configparser.SectionProxy) -> Caller:
    rights = {
        right: tuple(word.strip() for word in profile[right].split(",") if word.strip())
        for right in RIGHTS
        if right in profile
    }
    others = {name for name in profile if not name.startswith("aws_")} - {*RIGHTS, *_OF_CLIENTS}
    if others:  # a misspelt right must not count as unlimited
        raise Failed(f"the credentials {path} have the unknown key {min(others)!r}, of "
                     f"{profile.name}", f"what a key may do are {', '.join(RIGHTS)}")  # fmt: skip
    return Caller(profile.name, profile["aws_secret_access_key"], rights or None)


class Claim(NamedTuple):
    """The caller and signature that a request's head claims."""

    caller: Caller
    headers: dict[str, list[str]]
    signed: list[str]
    scope: re.Match[str]
    date: str
    signature: str


def caller(request: Request, known: dict[str, Caller], now: float) -> Caller:
    """Who signed a request. Raises Denied."""
    return proven(claim(request, known, now), request)


def claim(request: Request, known: dict[str, Caller], now: float) -> Claim:
    """Parse the claim in a request's head; ignores the body. Raises Denied."""
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        headers.setdefault(name.lower(), []).append(" ".join(value.split()))
    authorization = " ".join(headers.get("authorization", ()))
    if not authorization:
        raise Denied("MissingAuthenticationTokenException", "the request is not signed")
    fields = _FIELDS.fullmatch(authorization)
    scope = _SCOPE.fullmatch(fields[1]) if fields else None
    if not fields or not scope:
        raise Denied("IncompleteSignatureException", "Authorization is not as Signature Version 4")
    signed = fields[2].split(";")
    date = " ".join(headers.get("x-amz-date", ()))
    if "host" not in signed or "x-amz-date" not in signed:
        raise Denied("IncompleteSignatureException", "host and x-amz-date must be signed")
    if not _is_recent(date, scope[2], now):
        raise Denied("InvalidSignatureException", f"Signature expired or of another day: {date}")
    caller = known.get(scope[1])
    if caller is None:
        raise Denied("UnrecognizedClientException", "The security token included in the request "
                     "is invalid.")  # fmt: skip
    return Claim(caller, headers, signed, scope, date, fields[3])


def proven(claim: Claim, request: Request) -> Caller:
    """Check the signature over the whole request; returns the caller. Raises Denied."""
    canonical = _canonical(request, claim.headers, claim.signed)
    expected = _signature(claim.caller.secret, claim.scope, claim.date, canonical)
    if not hmac.compare_digest(expected, claim.signature):
        raise Denied("InvalidSignatureException", "The request signature we calculated does not "
                     "match the signature you provided.")  # fmt: skip
    return claim.caller


def _is_recent(date: str, day: str, now: float) -> bool:
    try:
        signed_at = timegm(time.strptime(date, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return False
    return date.startswith(day) and abs(now - signed_at) <= _SKEW_SECONDS


def _canonical(request: Request, headers: dict[str, list[str]], signed: list[str]) -> str:
    pairs = sorted(
        tuple(quote(unquote_plus(part.replace("+", "%2B")), safe=_UNRESERVED) for part in
              (word.partition("=")[0], word.partition("=")[2]))
        for word in request.query.split("&") if word
    )  # fmt: skip
    return "\n".join((
        request.method,
        quote(request.path or "/", safe="/~"),
        "&".join(f"{name}={value}" for name, value in pairs),
        *(f"{name}:{','.join(headers.get(name, ()))}" for name in signed),
        "",
        ";".join(signed),
        hashlib.sha256(request.body).hexdigest(),
    ))  # fmt: skip


def _signature(secret: str, scope: re.Match[str], date: str, canonical: str) -> str:
    key = f"AWS4{secret}".encode()
    for part in (scope[2], scope[3], scope[4], "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join((_ALGORITHM, date, scope[0].partition("/")[2], digest))
    return hmac.new(key, text.encode(), "sha256").hexdigest()


class Verified:
    """An application that only authenticated callers reach; ``state.caller`` is the caller."""

    def __init__(self, application: ASGIApp, known: dict[str, Caller]) -> None:
        self._application, self._known = application, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a signed request, or answer with an error. The protocol: asgi.readthedocs.io."""
        if scope["type"] != "http":
            return
        body: bytes | None = b""
        try:
            raw: bytes = scope.get("raw_path") or scope["path"].encode()
            head = Request(
                scope["method"], raw.decode("latin-1"), scope["query_string"].decode("latin-1"),
                [(key.decode("latin-1"), value.decode("latin-1"))
                 for key, value in scope["headers"]], b"",
            )  # fmt: skip
            claimed = claim(head, self._known, time.time())  # a stranger's body is not read
            body = await _body(receive)
            if body is None:
                raise Denied(
                    "RequestTooLargeException", f"the request has more than {BODY_MOST} bytes"
                )
            request = replace(head, body=body)
            if len(body) > _LARGE:
                caller = await asyncio.to_thread(proven, claimed, request)
            else:
                caller = proven(claimed, request)
        except Denied as error:
            status = 413 if body is None else 403
            text = msgspec.json.encode({"Message": str(error), "message": str(error)})
            response = Response(text, status, {"x-amzn-errortype": error.name}, "application/json")
            await response(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._application(scope, _again(body, receive), send)


async def _body(receive: Receive) -> bytes | None:
    """A request's body; None if it is too long."""
    parts, size = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_MOST:
            return None
        parts.append(part)
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """As it was received."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return messages.pop() if messages else await receive()

    return received
