"""The Lambda API, as far as an unmodified SDK or the AWS CLI needs it for functions.

Paths, names, limits and errors follow the API's reference, version 2015-03-31. An error's answer
names it in ``x-amzn-ErrorType``.
"""

import asyncio
import base64
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

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
from firstlight.agile.functions.records import LATEST, Registration
from firstlight.agile.functions.settings import qualified
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.http import access, event_stream
from firstlight.agile.http import lambda_shapes as shapes
from firstlight.agile.http.lambda_requests import (
    THROTTLED,
    Bad,
    as_json,
    body,
    check_json,
    check_origin,
    client_context,
    failure,
    name_of,
    named,
    page,
    read,
    whole,
)
from firstlight.agile.serving import Answer, Throttled
from firstlight.agile.serving.answer import PAYLOAD_MAX
from firstlight.errors import FirstlightError, UnknownName

ASYNCHRONOUS_MOST = 1 << 20
_TAIL_MOST = 4096
_DETAILS_MOST = 1 << 20
"""Bytes of an error in a streamed answer: SDKs take messages of 16 MiB, and JSON may need six bytes
for one."""
_FUNCTIONS, _NAME = "/2015-03-31/functions", "{name}"
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
_STORES_CODE = ("CreateFunction", "UpdateFunctionCode", "PublishVersion")
"""Only these have CodeStorageExceededException. A client of another tries again after a 500."""
_log = logging.getLogger(__name__)


class Operation(NamedTuple):
    """An operation: the API's name for it, the right that it needs, and what answers it."""

    name: str
    right: access.Right
    answer: Callable[[Functions, Request], Awaitable[Response]]


def routes(functions: Functions) -> list[BaseRoute]:
    """The routes of the API."""
    routes: list[BaseRoute] = []
    for path, methods in _OPERATIONS.items():
        endpoint = _Endpoint(functions, methods)
        routes += [Route(path, endpoint), Route(f"{path}/", endpoint)]
    return [*routes, Route("/2{rest:path}", _Endpoint(functions, {}))]


class _Endpoint:
    """A path of the API, as an ASGI application."""

    def __init__(self, functions: Functions, operations: dict[str, Operation]) -> None:
        self._functions, self._operations = functions, operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        identity = str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = identity
        response = await self._answer(request)
        if response is not None:
            response.headers["x-amzn-requestid"] = identity
            await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        operation = self._operations.get(request.method)
        try:
            if not self._operations:
                raise Bad(404, "UnknownOperationException", f"no operation has {request.url.path}")
            if operation is None:
                text = f"no operation is by {request.method} at {request.url.path}"
                raise Bad(405, "MethodNotAllowedException", text)
            check_origin(request)
            if "name" in request.path_params:
                access.check(request.scope, operation.right, operation.name, named(request)[0])
            return await operation.answer(self._functions, request)
        except ClientDisconnect:
            return None
        except Bad as error:
            return failure(error.status, error.name, str(error))
        except access.Refused as error:
            return failure(403, "AccessDeniedException", str(error))
        except FirstlightError as error:
            return _failure(error, operation)
        except Exception as error:  # an unanswered client would wait for ever
            _log.exception("a request failed")
            return failure(500, "ServiceException", f"the node failed: {error!r}")


def _failure(error: FirstlightError, operation: Operation | None) -> Response:
    words = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, DiskFull) and (not operation or operation.name not in _STORES_CODE):
        return failure(500, "ServiceException", words)
    for kind, status, name in _ERRORS:
        if isinstance(error, kind):
            more = THROTTLED if status == 429 else {}
            return failure(status, name, words, **more)
    return failure(500, "ServiceException", words)


async def _create(functions: Functions, request: Request) -> Response:
    asked = await body(request, shapes.Create)
    source = msgspec.structs.replace(
        asked.code, architectures=asked.architectures or asked.code.architectures
    ).source()
    is_image = asked.code.image_uri is not None
    if is_image != (asked.package_type == "Image"):
        raise Invalid(f"PackageType is {asked.package_type}", "Zip for ZipFile, Image for ImageUri")
    if not is_image and (asked.runtime is None or asked.handler is None):
        raise Invalid("Runtime and Handler are mandatory parameters for functions created by zip")
    name, qualifier = name_of(asked.function_name)
    if qualifier:
        raise Invalid(f"FunctionName has the qualifier {qualifier}", "give the name alone")
    access.check(request.scope, "write", "CreateFunction", name)
    registered = await functions.add(
        name,
        source,
        asked.settings(),
        publish=asked.publish,
        tags=asked.tags,
        owner=access.name(request.scope),
    )
    version = str(registered.published) if asked.publish else LATEST
    return as_json(shapes.configuration(registered, registered.revisions[version]), 201)


def _changed(registered: Registration, is_published: bool) -> dict[str, Any]:
    """The result of a change: a version, or the newest code."""
    version = str(registered.published) if is_published else ""
    return shapes.configuration(registered, registered.revisions[version or LATEST], version)


async def _list(functions: Functions, request: Request) -> Response:
    every = request.query_params.get("FunctionVersion") == "ALL"
    functions_by_name = {
        (function.name, _number(version)): (function, revision, version if every else "")
        for function in map(functions.get, functions.names())
        if access.may(request.scope, "read", function.name)
        for version, revision in function.revisions.items()
        if every or version == LATEST
    }
    return page(request, "Functions", functions_by_name, lambda each: shapes.configuration(*each))


def _number(version: str) -> int:
    return 0 if version == LATEST else int(version)


async def _get(functions: Functions, request: Request) -> Response:
    name, qualifier = named(request)
    revision = functions.find(name, qualifier)
    return as_json(shapes.function(functions.get(name), revision, qualifier))


async def _delete(functions: Functions, request: Request) -> Response:
    name, qualifier = named(request)
    await functions.remove(name, qualifier)
    return Response(status_code=204)


async def _get_configuration(functions: Functions, request: Request) -> Response:
    name, qualifier = named(request)
    revision = functions.find(name, qualifier)
    return as_json(shapes.configuration(functions.get(name), revision, qualifier))


async def _put_configuration(functions: Functions, request: Request) -> Response:
    name = whole(request)
    asked = await body(request, shapes.Configuration)
    updated = await functions.update(
        name, given=asked.settings(), publish=False,
        expected=shapes.revision_number(asked.revision_id),
    )  # fmt: skip
    return as_json(shapes.configuration(updated, updated.latest))


async def _put_code(functions: Functions, request: Request) -> Response:
    name = whole(request)
    asked = await body(request, shapes.UpdateCode)
    source, expected = asked.source(), shapes.revision_number(asked.revision_id)
    if asked.dry_run:
        function = functions.expected(name, expected)
        return as_json(await asyncio.to_thread(shapes.tried, function, asked))
    updated = await functions.update(name, source, publish=asked.publish, expected=expected)
    return as_json(_changed(updated, asked.publish))


async def _publish(functions: Functions, request: Request) -> Response:
    name = whole(request)
    asked = await body(request, shapes.Publish)
    latest = shapes.configuration(functions.get(name), functions.get(name).latest)
    if asked.code_sha256 not in (None, latest["CodeSha256"]):
        raise Invalid(f"the code's SHA-256 is {latest['CodeSha256']}, not {asked.code_sha256}")
    revision = await functions.publish(
        name, asked.description, shapes.revision_number(asked.revision_id)
    )
    version = revision.version.version
    return as_json(shapes.configuration(functions.get(name), revision, version), 201)


async def _versions(functions: Functions, request: Request) -> Response:
    name = whole(request)
    function = functions.get(name)
    versions = {("", _number(version)): version for version in function.revisions}
    return page(
        request, "Versions", versions,
        lambda version: shapes.configuration(function, function.revisions[version], version),
    )  # fmt: skip


async def _create_alias(functions: Functions, request: Request) -> Response:
    name = whole(request)
    asked = await body(request, shapes.CreateAlias)
    asked.check()
    alias = await functions.set_alias(
        name, asked.name, asked.function_version, asked.description, new=True
    )
    return as_json(shapes.alias(name, alias), 201)


async def _aliases(functions: Functions, request: Request) -> Response:
    name = whole(request)
    version = request.query_params.get("FunctionVersion")
    aliases = {
        (each.name, 0): each
        for each in functions.get(name).aliases.values()
        if version in (None, each.version)
    }
    return page(request, "Aliases", aliases, lambda each: shapes.alias(name, each))


async def _get_alias(functions: Functions, request: Request) -> Response:
    name = whole(request)
    wanted = request.path_params["alias"]
    alias = functions.get(name).aliases.get(wanted)
    if alias is None:
        raise NotFound(f"{name} has no alias {wanted!r}")
    return as_json(shapes.alias(name, alias))


async def _put_alias(functions: Functions, request: Request) -> Response:
    name = whole(request)
    asked = await body(request, shapes.UpdateAlias)
    asked.check()
    alias = await functions.set_alias(
        name, request.path_params["alias"], asked.function_version, asked.description, new=False,
        expected=shapes.revision_number(asked.revision_id),
    )  # fmt: skip
    return as_json(shapes.alias(name, alias))


async def _delete_alias(functions: Functions, request: Request) -> Response:
    name = whole(request)
    alias = request.path_params["alias"]
    if alias in functions.get(name).aliases:  # as in the API, it need not exist
        await functions.remove_alias(name, alias)
    return Response(status_code=204)


async def _put_concurrency(functions: Functions, request: Request) -> Response:
    name = whole(request)
    asked = await body(request, shapes.Concurrency)
    await functions.reserve(name, asked.reserved_concurrent_executions)
    return as_json({"ReservedConcurrentExecutions": asked.reserved_concurrent_executions})


async def _get_concurrency(functions: Functions, request: Request) -> Response:
    name = whole(request)
    reserved = functions.get(name).concurrency
    return as_json({} if reserved is None else {"ReservedConcurrentExecutions": reserved})


async def _delete_concurrency(functions: Functions, request: Request) -> Response:
    name = whole(request)
    await functions.reserve(name, None)
    return Response(status_code=204)


async def _code_signing(functions: Functions, request: Request) -> Response:
    name = functions.get(named(request)[0]).name
    return as_json({"FunctionName": name, "CodeSigningConfigArn": ""})


def _has_none(what: str) -> Callable[[Functions, Request], Awaitable[Response]]:
    """What reads something that no function has here, but that tools look for."""

    async def read_none(functions: Functions, request: Request) -> Response:
        raise NotFound(f"{functions.get(named(request)[0]).name} has no {what}")

    return read_none


async def _put_provisioned(functions: Functions, request: Request) -> Response:
    name, qualifier = named(request)
    asked = await body(request, shapes.Provision)
    await functions.provision(name, qualifier, asked.provisioned_concurrent_executions)
    return as_json(_provisioned(functions, name, qualifier), 202)


async def _get_provisioned(functions: Functions, request: Request) -> Response:
    name, qualifier = named(request)
    if request.query_params.get("List") == "ALL":
        qualifiers = {(each, 0): each for each in functions.get(name).provisioned}
        return page(
            request, "ProvisionedConcurrencyConfigs", qualifiers,
            lambda each: {
                "FunctionArn": qualified(name, each),
                **_provisioned(functions, name, each),
            },
        )  # fmt: skip
    return as_json(_provisioned(functions, name, qualifier))


async def _delete_provisioned(functions: Functions, request: Request) -> Response:
    name, qualifier = named(request)
    _provisioned(functions, name, qualifier)
    await functions.provision(name, qualifier, None)
    return Response(status_code=204)


def _provisioned(functions: Functions, name: str, qualifier: str) -> dict[str, Any]:
    functions.find(name, qualifier)
    kept = functions.get(name).provisioned.get(qualifier)
    if kept is None:
        raise Bad(404, "ProvisionedConcurrencyConfigNotFoundException",
                   f"nothing is provisioned of {name}:{qualifier}")  # fmt: skip
    return shapes.provisioned(kept, functions.ready(name, qualifier))


async def _get_tags(functions: Functions, request: Request) -> Response:
    name = whole(request)
    return as_json({"Tags": functions.get(name).tags})


async def _put_tags(functions: Functions, request: Request) -> Response:
    name = whole(request)
    asked = await body(request, shapes.Tags)
    await functions.tag(name, {**functions.get(name).tags, **asked.tags})
    return Response(status_code=204)


async def _delete_tags(functions: Functions, request: Request) -> Response:
    name = whole(request)
    gone = request.query_params.getlist("tagKeys")
    tags = {key: value for key, value in functions.get(name).tags.items() if key not in gone}
    await functions.tag(name, tags)
    return Response(status_code=204)


async def _account(functions: Functions, request: Request) -> Response:
    access.check(request.scope, "read", "GetAccountSettings", "*")
    most = functions.config.instances
    return as_json({
        "AccountLimit": {"ConcurrentExecutions": most, "UnreservedConcurrentExecutions": most},
        "AccountUsage": {"FunctionCount": len(functions.names())},
    })  # fmt: skip


async def _invoke(functions: Functions, request: Request) -> Response:
    called = await _run_invocation(functions, request, ("RequestResponse", "Event", "DryRun"))
    if isinstance(called, Response):
        return called
    headers = {"x-amz-executed-version": called.version}
    if called.answer.error:
        headers["x-amz-function-error"] = called.answer.error
    if called.log:
        headers["x-amz-log-result"] = called.log
    return Response(called.answer.payload, 200, headers, "application/json")


async def _invoke_streamed(functions: Functions, request: Request) -> Response:
    """Invoke, with the answer in the form of a stream. It is sent when it is whole."""
    called = await _run_invocation(functions, request, ("RequestResponse", "DryRun"))
    if isinstance(called, Response):
        return called
    payload, complete = called.answer.payload, {}
    if called.answer.error:
        details = payload[:_DETAILS_MOST].decode(errors="replace")
        complete = {"ErrorCode": called.answer.error, "ErrorDetails": details}
        payload = b""
    if called.log:
        complete["LogResult"] = called.log
    headers = {"x-amz-executed-version": called.version}
    content = event_stream.answer(payload, complete)
    return Response(content, 200, headers, event_stream.MEDIA_TYPE)


class _Called(NamedTuple):
    version: str
    answer: Answer
    log: str


async def _run_invocation(
    functions: Functions, request: Request, kinds: tuple[str, ...]
) -> _Called | Response:
    """Invoke a function as a request says; a response where there is no answer to wait for."""
    headers = request.headers
    name, qualifier = named(request)
    kind = headers.get("x-amz-invocation-type", "RequestResponse")
    if kind not in kinds:
        raise Invalid(f"{kind[:60]!r} is not an InvocationType here", f"one of {', '.join(kinds)}")
    revision = functions.find(name, qualifier)
    event = await read(request, ASYNCHRONOUS_MOST if kind == "Event" else PAYLOAD_MAX)
    event = event if event.strip() else b"{}"
    check_json(event)
    context = client_context(headers.get("x-amz-client-context"))
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
    answer, version = await functions.invoke(
        name, event, qualifier, request_id=identity, client_context=context, trace=trace
    )
    tail = headers.get("x-amz-log-type") == "Tail"
    log = _log_result(identity, version, answer) if tail else ""
    return _Called(version.version, answer, log)


def _log_result(identity: str, version: FunctionVersion, answer: Answer) -> str:
    """The end of the log in CloudWatch's format, in base64."""
    spent = answer.duration_ns / 1e6
    start = f"START RequestId: {identity} Version: {version.version}\n".encode()
    end = (
        f"END RequestId: {identity}\nREPORT RequestId: {identity}\tDuration: {spent:.2f} ms\t"
        f"Billed Duration: {int(spent) + 1} ms\tMemory Size: {version.memory >> 20} MB"
        + (f"\tInit Duration: {answer.init_ns / 1e6:.2f} ms" if answer.cold else "")
    ).encode()
    written = answer.log_tail + (b"\n" if answer.log_tail[-1:] not in (b"", b"\n") else b"")
    return base64.b64encode((start + written + end)[-_TAIL_MOST:]).decode()


_OPERATIONS: dict[str, dict[str, Operation]] = {  # searched in order: the most used first
    f"{_FUNCTIONS}/{_NAME}/invocations": {"POST": Operation("InvokeFunction", "invoke", _invoke)},
    _FUNCTIONS: {
        "POST": Operation("CreateFunction", "write", _create),
        "GET": Operation("ListFunctions", "read", _list),
    },
    f"{_FUNCTIONS}/{_NAME}": {
        "GET": Operation("GetFunction", "read", _get),
        "DELETE": Operation("DeleteFunction", "write", _delete),
    },
    f"{_FUNCTIONS}/{_NAME}/configuration": {
        "GET": Operation("GetFunctionConfiguration", "read", _get_configuration),
        "PUT": Operation("UpdateFunctionConfiguration", "write", _put_configuration),
    },
    f"{_FUNCTIONS}/{_NAME}/code": {"PUT": Operation("UpdateFunctionCode", "write", _put_code)},
    f"{_FUNCTIONS}/{_NAME}/versions": {
        "POST": Operation("PublishVersion", "write", _publish),
        "GET": Operation("ListVersionsByFunction", "read", _versions),
    },
    f"{_FUNCTIONS}/{_NAME}/aliases": {
        "POST": Operation("CreateAlias", "write", _create_alias),
        "GET": Operation("ListAliases", "read", _aliases),
    },
    f"{_FUNCTIONS}/{_NAME}/aliases/{{alias}}": {
        "GET": Operation("GetAlias", "read", _get_alias),
        "PUT": Operation("UpdateAlias", "write", _put_alias),
        "DELETE": Operation("DeleteAlias", "write", _delete_alias),
    },
    f"/2017-10-31/functions/{_NAME}/concurrency": {
        "PUT": Operation("PutFunctionConcurrency", "write", _put_concurrency),
        "DELETE": Operation("DeleteFunctionConcurrency", "write", _delete_concurrency),
    },
    f"/2019-09-30/functions/{_NAME}/concurrency": {
        "GET": Operation("GetFunctionConcurrency", "read", _get_concurrency)
    },
    f"/2019-09-30/functions/{_NAME}/provisioned-concurrency": {
        "PUT": Operation("PutProvisionedConcurrencyConfig", "write", _put_provisioned),
        "GET": Operation("GetProvisionedConcurrencyConfig", "read", _get_provisioned),
        "DELETE": Operation("DeleteProvisionedConcurrencyConfig", "write", _delete_provisioned),
    },
    f"/2017-03-31/tags/{_NAME}": {
        "GET": Operation("ListTags", "read", _get_tags),
        "POST": Operation("TagResource", "write", _put_tags),
        "DELETE": Operation("UntagResource", "write", _delete_tags),
    },
    f"/2021-11-15/functions/{_NAME}/response-streaming-invocations": {
        "POST": Operation("InvokeWithResponseStream", "invoke", _invoke_streamed)
    },
    f"{_FUNCTIONS}/{_NAME}/policy": {
        "GET": Operation("GetPolicy", "read", _has_none("policy")),
    },
    f"/2020-06-30/functions/{_NAME}/code-signing-config": {
        "GET": Operation("GetFunctionCodeSigningConfig", "read", _code_signing),
    },
    f"/2019-09-25/functions/{_NAME}/event-invoke-config": {
        "GET": Operation("GetFunctionEventInvokeConfig", "read", _has_none("EventInvokeConfig")),
    },
    f"/2021-10-31/functions/{_NAME}/url": {
        "GET": Operation("GetFunctionUrlConfig", "read", _has_none("FunctionUrlConfig")),
    },
    "/2016-08-19/account-settings": {"GET": Operation("GetAccountSettings", "read", _account)},
}
