"""The Lambda API, as far as an unmodified SDK or the AWS CLI needs it for functions.

Paths, names, limits and errors are those of the API's description, version 2015-03-31. An answer
for an error has its name in ``x-amzn-ErrorType``.
"""

import base64
import binascii
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.errors import (
    BadCode,
    Changed,
    Conflict,
    DiskFull,
    Invalid,
    NotFound,
    TooLarge,
)
from firstlight.agile.functions.records import LATEST
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.http import lambda_shapes as shapes
from firstlight.agile.serving import Answer, Throttled
from firstlight.errors import FirstlightError, UnknownName

EVENT_MOST, ASYNCHRONOUS_MOST = 6 << 20, 1 << 20
_REQUEST_MOST = 70 << 20  # a zip file of 50 MB in base64, and what is around it
_CONTEXT_MOST, _TAIL_MOST, _PAGE = 3583, 4096, 50
_FUNCTIONS, _NAME = "/2015-03-31/functions", "{name}"
_ARN = re.compile(
    r"(?:arn:aws[a-z-]*:lambda:[a-z0-9-]+:)?(?:\d{12}:)?(?:function:)?"
    r"([A-Za-z0-9_-]{1,64})(?::(\$LATEST|[A-Za-z0-9_-]{1,128}))?"
)
_ERRORS: tuple[tuple[type[FirstlightError], int, str], ...] = (
    (NotFound, 404, "ResourceNotFoundException"),
    (Changed, 412, "PreconditionFailedException"),
    (Conflict, 409, "ResourceConflictException"),
    (DiskFull, 400, "CodeStorageExceededException"),
    (TooLarge, 413, "RequestTooLargeException"),
    (Throttled, 429, "TooManyRequestsException"),
    (Invalid, 400, "InvalidParameterValueException"),
    (BadCode, 400, "InvalidParameterValueException"),
    (UnknownName, 400, "InvalidParameterValueException"),
)
_log = logging.getLogger(__name__)
Shape = TypeVar("Shape")
Operation = Callable[[Functions, Request], Awaitable[Response]]


class _Bad(Exception):
    """A request that is none: a status and the API's name for it."""

    def __init__(self, status: int, name: str, message: str) -> None:
        super().__init__(message)
        self.status, self.name = status, name


def routes(functions: Functions) -> list[BaseRoute]:
    """The routes of the API."""
    found: list[BaseRoute] = []
    for path, methods in _OPERATIONS.items():
        endpoint = _Endpoint(functions, methods)
        found += [Route(path, endpoint), Route(f"{path}/", endpoint)]
    return [*found, Route("/2{rest:path}", _Endpoint(functions, {}))]


class _Endpoint:
    """One path of the API: an ASGI application."""

    def __init__(self, functions: Functions, operations: dict[str, Operation]) -> None:
        self._functions, self._operations = functions, operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        identity = str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = identity
        response = await self._answered(request)
        if response is not None:
            response.headers["x-amzn-requestid"] = identity
            await response(scope, receive, send)

    async def _answered(self, request: Request) -> Response | None:
        operation = self._operations.get(request.method)
        try:
            if not self._operations:
                raise _Bad(404, "UnknownOperationException", f"no operation has {request.url.path}")
            if operation is None:
                raise _Bad(405, "MethodNotAllowedException", f"not by {request.method}")
            _check_origin(request)
            return await operation(self._functions, request)
        except ClientDisconnect:
            return None
        except _Bad as error:
            return failure(error.status, error.name, str(error))
        except FirstlightError as error:
            words = f"{error.message} ({error.hint})" if error.hint else error.message
            for kind, status, name in _ERRORS:
                if isinstance(error, kind):
                    more = _THROTTLED if status == 429 else {}
                    return failure(status, name, words, **more)
            return failure(500, "ServiceException", words)
        except Exception as error:  # a client must not wait for an answer that never comes
            _log.exception("a request failed")
            return failure(500, "ServiceException", f"the node failed: {error!r}")


_THROTTLED = {"Reason": "ReservedFunctionConcurrentInvocationLimitExceeded"}


def failure(status: int, name: str, message: str, **more: str) -> Response:
    """An error as the API words it."""
    kind = "User" if status < 500 else "Service"
    body = msgspec.json.encode({"Type": kind, "Message": message, "message": message, **more})
    headers = {"x-amzn-errortype": name}
    if status == 429:
        headers["retry-after"] = "1"
    return Response(body, status, headers, "application/json")


async def _create(functions: Functions, request: Request) -> Response:
    asked = await _body(request, shapes.Create)
    source = msgspec.structs.replace(
        asked.code, architectures=asked.architectures or asked.code.architectures
    ).source()
    is_image = asked.code.image_uri is not None
    if is_image != (asked.package_type == "Image"):
        raise Invalid(f"PackageType is {asked.package_type}", "Zip for ZipFile, Image for ImageUri")
    if not is_image and (asked.runtime is None or asked.handler is None):
        raise Invalid("Runtime and Handler are mandatory parameters for functions created by zip")
    name, qualifier = _name(asked.function_name)
    if qualifier:
        raise Invalid("a function's name has no qualifier")
    found = await functions.add(
        name,
        source,
        asked.settings(),
        publish=asked.publish,
        tags=asked.tags,
        owner=request.scope["state"].get("owner", ""),
    )
    version = str(found.published) if asked.publish else LATEST
    return _json(shapes.configuration(found, found.revisions[version]), 201)


async def _list(functions: Functions, request: Request) -> Response:
    every = request.query_params.get("FunctionVersion") == "ALL"
    found = [
        shapes.configuration(function, revision)
        for function in map(functions.get, functions.names())
        for revision in (function.revisions.values() if every else [function.latest])
    ]
    return _page(request, "Functions", found)


async def _get(functions: Functions, request: Request) -> Response:
    name, qualifier = _named(request)
    revision = functions.find(name, qualifier)
    return _json(shapes.function(functions.get(name), revision))


async def _delete(functions: Functions, request: Request) -> Response:
    name, qualifier = _named(request)
    await functions.remove(name, qualifier)
    return Response(status_code=204)


async def _get_configuration(functions: Functions, request: Request) -> Response:
    name, qualifier = _named(request)
    revision = functions.find(name, qualifier)
    return _json(shapes.configuration(functions.get(name), revision))


async def _put_configuration(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    asked = await _body(request, shapes.Configuration)
    found = await functions.update(
        name, given=asked.settings(), publish=False,
        expected=shapes.revision_number(asked.revision_id),
    )  # fmt: skip
    return _json(shapes.configuration(found, found.latest))


async def _put_code(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    asked = await _body(request, shapes.UpdateCode)
    source = asked.source()
    if asked.dry_run:
        found = functions.get(name)
        return _json(shapes.configuration(found, found.latest))
    found = await functions.update(
        name, source, publish=asked.publish, expected=shapes.revision_number(asked.revision_id)
    )
    version = str(found.published) if asked.publish else LATEST
    return _json(shapes.configuration(found, found.revisions[version]))


async def _publish(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    asked = await _body(request, shapes.Publish)
    latest = shapes.configuration(functions.get(name), functions.get(name).latest)
    if asked.code_sha256 not in (None, latest["CodeSha256"]):
        raise Invalid(f"the code's SHA-256 is {latest['CodeSha256']}, not {asked.code_sha256}")
    revision = await functions.publish(
        name, asked.description, shapes.revision_number(asked.revision_id)
    )
    return _json(shapes.configuration(functions.get(name), revision), 201)


async def _versions(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    function = functions.get(name)
    found = [shapes.configuration(function, one) for one in function.revisions.values()]
    return _page(request, "Versions", found)


async def _create_alias(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    asked = await _body(request, shapes.CreateAlias)
    found = await functions.set_alias(
        name, asked.name, asked.function_version, asked.description, new=True
    )
    return _json(shapes.alias(name, found), 201)


async def _aliases(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    version = request.query_params.get("FunctionVersion")
    found = [
        shapes.alias(name, one)
        for one in functions.get(name).aliases.values()
        if version in (None, one.version)
    ]
    return _page(request, "Aliases", found)


async def _get_alias(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    wanted = request.path_params["alias"]
    found = functions.get(name).aliases.get(wanted)
    if found is None:
        raise NotFound(f"{name} has no alias {wanted!r}")
    return _json(shapes.alias(name, found))


async def _put_alias(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    asked = await _body(request, shapes.UpdateAlias)
    found = await functions.set_alias(
        name, request.path_params["alias"], asked.function_version, asked.description, new=False,
        expected=shapes.revision_number(asked.revision_id),
    )  # fmt: skip
    return _json(shapes.alias(name, found))


async def _delete_alias(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    await functions.remove_alias(name, request.path_params["alias"])
    return Response(status_code=204)


async def _put_concurrency(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    asked = await _body(request, shapes.Concurrency)
    await functions.reserve(name, asked.reserved_concurrent_executions)
    return _json({"ReservedConcurrentExecutions": asked.reserved_concurrent_executions})


async def _get_concurrency(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    reserved = functions.get(name).concurrency
    return _json({} if reserved is None else {"ReservedConcurrentExecutions": reserved})


async def _delete_concurrency(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    await functions.reserve(name, None)
    return Response(status_code=204)


async def _get_tags(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    return _json({"Tags": functions.get(name).tags})


async def _put_tags(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    asked = await _body(request, shapes.Tags)
    await functions.tag(name, {**functions.get(name).tags, **asked.tags})
    return Response(status_code=204)


async def _delete_tags(functions: Functions, request: Request) -> Response:
    name, _ = _named(request)
    gone = request.query_params.getlist("tagKeys")
    tags = {key: value for key, value in functions.get(name).tags.items() if key not in gone}
    await functions.tag(name, tags)
    return Response(status_code=204)


async def _account(functions: Functions, request: Request) -> Response:
    del request
    most = functions.config.instances
    return _json({
        "AccountLimit": {"ConcurrentExecutions": most, "UnreservedConcurrentExecutions": most},
        "AccountUsage": {"FunctionCount": len(functions.names())},
    })  # fmt: skip


async def _invoke(functions: Functions, request: Request) -> Response:
    headers = request.headers
    name, qualifier = _named(request)
    kind = headers.get("x-amz-invocation-type", "RequestResponse")
    if kind not in ("RequestResponse", "Event", "DryRun"):
        raise Invalid(f"{kind[:60]!r} is no InvocationType", "RequestResponse, Event or DryRun")
    revision = functions.find(name, qualifier)
    event = await _read(request, ASYNCHRONOUS_MOST if kind == "Event" else EVENT_MOST)
    event = event if event.strip() else b"{}"
    _check_json(event)
    context = _context(headers.get("x-amz-client-context"))
    trace = headers.get("traceparent") or headers.get("x-amzn-trace-id")
    if kind == "DryRun":
        return Response(
            status_code=204, headers={"x-amz-executed-version": revision.version.version}
        )
    identity = request.scope["state"]["request_id"]
    if kind == "Event":
        await functions.accept(name, event, qualifier, request_id=identity,
                               client_context=context, trace=trace)  # fmt: skip
        return Response(status_code=202)
    tail = headers.get("x-amz-log-type") == "Tail"
    answer, version = await functions.invoke(
        name, event, qualifier, request_id=identity, client_context=context, trace=trace
    )
    more = {"x-amz-executed-version": version.version}
    if answer.error:
        more["x-amz-function-error"] = answer.error
    if tail:
        more["x-amz-log-result"] = _log_result(identity, version, answer)
    return Response(answer.payload, 200, more, "application/json")


def _log_result(identity: str, version: FunctionVersion, answer: Answer) -> str:
    """The end of the log as CloudWatch words it, in base64."""
    spent = answer.duration_ns / 1e6
    start = f"START RequestId: {identity} Version: {version.version}\n".encode()
    end = (
        f"END RequestId: {identity}\nREPORT RequestId: {identity}\tDuration: {spent:.2f} ms\t"
        f"Billed Duration: {int(spent) + 1} ms\tMemory Size: {version.memory >> 20} MB"
        + (f"\tInit Duration: {answer.init_ns / 1e6:.2f} ms" if answer.cold else "")
    ).encode()
    written = answer.log_tail + (b"\n" if answer.log_tail[-1:] not in (b"", b"\n") else b"")
    return base64.b64encode((start + written + end)[-_TAIL_MOST:]).decode()


def _context(encoded: str | None) -> bytes | None:
    if encoded is None:
        return None
    try:
        context = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid(f"X-Amz-Client-Context is not base64: {error}") from error
    if len(context) > _CONTEXT_MOST:
        raise Invalid(f"X-Amz-Client-Context has {len(context)} bytes", f"at most {_CONTEXT_MOST}")
    _check_json(context)
    return context


def _check_json(text: bytes) -> None:
    try:
        text.decode()
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Bad(400, "InvalidRequestContentException",
                   f"Could not parse request body into json: {error}") from error  # fmt: skip


async def _read(request: Request, most: int) -> bytes:
    """A request's body. Raises TooLarge before more than that is here."""
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


async def _body(request: Request, shape: type[Shape]) -> Shape:
    text = await _read(request, _REQUEST_MOST)
    try:
        return msgspec.json.decode(text or b"{}", type=shape)
    except msgspec.ValidationError as error:
        raise Invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Bad(400, "InvalidRequestContentException",
                   f"Could not parse request body into json: {error}") from error  # fmt: skip


def _named(request: Request) -> tuple[str, str]:
    """The function of a request, and its qualifier."""
    name, inside = _name(unquote(request.path_params["name"]))
    asked = request.query_params.get("Qualifier", "")
    if inside and asked and inside != asked:
        raise Invalid(f"the qualifiers {inside} and {asked} differ")
    return name, asked or inside


def _name(text: str) -> tuple[str, str]:
    """A name and qualifier; from an ARN, a part of it, or a name. Raises Invalid."""
    found = _ARN.fullmatch(text)
    if not found:
        raise Invalid(f"{text[:170]!r} is no function's name", "1 to 64 letters, digits, - and _")
    return found[1], found[2] or ""


def _check_origin(request: Request) -> None:
    """A page in the user's browser must not call what listens on the user's loopback."""
    if "origin" in request.headers and "authorization" not in request.headers:
        raise _Bad(403, "AccessDeniedException", "requests of web pages need credentials")


def _page(request: Request, key: str, found: list[dict[str, Any]]) -> Response:
    """A part of a list, from the marker on."""
    marker, most = request.query_params.get("Marker") or "0", request.query_params.get("MaxItems")
    if not (marker.isascii() and marker.isdecimal() and len(marker) < 10):
        raise Invalid(f"{marker[:60]!r} is no Marker of ours")
    if most is not None and not (most.isascii() and most.isdecimal() and 0 < int(most) <= 10000):
        raise Invalid(f"MaxItems is {most[:60]!r}", "from 1 to 10000")
    begin, many = int(marker), int(most or _PAGE)
    answer: dict[str, Any] = {key: found[begin : begin + many]}
    if begin + many < len(found):
        answer["NextMarker"] = str(begin + many)
    return _json(answer)


def _json(answer: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


_OPERATIONS: dict[str, dict[str, Operation]] = {
    _FUNCTIONS: {"POST": _create, "GET": _list},
    f"{_FUNCTIONS}/{_NAME}": {"GET": _get, "DELETE": _delete},
    f"{_FUNCTIONS}/{_NAME}/configuration": {"GET": _get_configuration, "PUT": _put_configuration},
    f"{_FUNCTIONS}/{_NAME}/code": {"PUT": _put_code},
    f"{_FUNCTIONS}/{_NAME}/versions": {"POST": _publish, "GET": _versions},
    f"{_FUNCTIONS}/{_NAME}/aliases": {"POST": _create_alias, "GET": _aliases},
    f"{_FUNCTIONS}/{_NAME}/aliases/{{alias}}": {
        "GET": _get_alias, "PUT": _put_alias, "DELETE": _delete_alias,
    },
    f"{_FUNCTIONS}/{_NAME}/invocations": {"POST": _invoke},
    f"/2017-10-31/functions/{_NAME}/concurrency": {
        "PUT": _put_concurrency, "DELETE": _delete_concurrency,
    },
    f"/2019-09-30/functions/{_NAME}/concurrency": {"GET": _get_concurrency},
    f"/2017-03-31/tags/{_NAME}": {"GET": _get_tags, "POST": _put_tags, "DELETE": _delete_tags},
    "/2016-08-19/account-settings": {"GET": _account},
}  # fmt: skip
