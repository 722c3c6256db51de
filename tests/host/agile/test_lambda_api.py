"""An unmodified boto3 against the node's Lambda API."""

import asyncio
import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.lambda_host import ENDPOINT, Boto, boto, with_functions, zipped

from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.records import Settings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ARN = "arn:aws:lambda:us-east-1:000000000000:function:"
ROLE = "arn:aws:iam::000000000000:role/none"
ECHO = "def main(event):\n    print('seen')\n    return {'got': event}\n"
LAMBDA = """
import os, sys, time, urllib.request
def main(event, context):
    print("a line of", context.function_name)
    return {"got": event, "version": context.function_version, "word": os.environ.get("WORD")}
def fails(event, context):
    raise ValueError("no such cow")
def garbles(event, context):
    api = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}/2018-06-01/runtime"
    error = b"\\xff" + bytes(5 << 20)
    urllib.request.urlopen(f"{api}/invocation/{context.aws_request_id}/error", error)
def leaves(event, context):
    os._exit(3)
def hangs(event, context):
    time.sleep(600)
def writes(event, context):
    while True:
        print("y" * 1000)
def object(event, context):
    return {1, 2}
"""


def create(name: str, text: str = ECHO, **more: Any) -> dict[str, Any]:
    return {
        "FunctionName": name, "Runtime": "python3.11", "Handler": "app:main", "Role": ROLE,
        "Timeout": 30, "Code": {"ZipFile": zipped(app=text)}, **more,
    }  # fmt: skip


def test_the_life_of_a_function(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        async with boto() as call:
            more = {"Handler": "app.main", "Environment": {"Variables": {"WORD": "one"}}}
            made = await call("create_function", **create("hello", LAMBDA, **more))
            assert (made["FunctionName"], made["Version"]) == ("hello", "$LATEST")
            assert made["Environment"] == {"Variables": {"WORD": "one"}}
            await call("wait", waiter="function_active_v2", FunctionName="hello")
            answer = await call(
                "invoke", FunctionName="hello", Payload=b'{"a": [1]}', LogType="Tail"
            )
            assert json.loads(answer["Payload"]) == {
                "got": {"a": [1]}, "version": "$LATEST", "word": "one"}  # fmt: skip
            assert (answer["StatusCode"], answer["ExecutedVersion"]) == (200, "$LATEST")
            log = base64.b64decode(answer["LogResult"]).decode()
            assert "a line of hello" in log
            assert "REPORT RequestId" in log
            first = await call("publish_version", FunctionName="hello")
            assert first["Version"] == "1"
            again = await call("publish_version", FunctionName="hello")
            assert again["Version"] == "1"  # nothing has changed
            await call("create_alias", FunctionName="hello", Name="live", FunctionVersion="1")
            await call("update_function_configuration", FunctionName="hello",
                       Environment={"Variables": {"WORD": "two"}})  # fmt: skip
            answers = [
                json.loads((await call("invoke", FunctionName=name))["Payload"])
                for name in ("hello", "hello:live", f"{ARN}hello:1")
            ]
            assert [(each["version"], each["word"]) for each in answers] == [
                ("$LATEST", "two"), ("1", "one"), ("1", "one")]  # fmt: skip
            newer = zipped(app="def main(e, c):\n    return 'new'\n")
            changed = await call(
                "update_function_code", FunctionName="hello", Publish=True, ZipFile=newer
            )
            assert changed["Version"] == "2"
            await call("update_alias", FunctionName="hello", Name="live", FunctionVersion="2")
            answer = await call("invoke", FunctionName="hello", Qualifier="live")
            assert (answer["Payload"], answer["ExecutedVersion"]) == (b'"new"', "2")
            versions = await call("list_versions_by_function", FunctionName="hello")
            assert [each["Version"] for each in versions["Versions"]] == ["$LATEST", "1", "2"]
            await call("put_function_concurrency", FunctionName="hello",
                       ReservedConcurrentExecutions=0)  # fmt: skip
            refused = await call("invoke", FunctionName="hello")
            assert (refused["$error"], refused["status"]) == ("TooManyRequestsException", 429)
            await call("delete_function_concurrency", FunctionName="hello")
            dry = await call("invoke", FunctionName="hello", InvocationType="DryRun")
            assert dry["StatusCode"] == 204
            await call("delete_function", FunctionName="hello")
            gone = await call("get_function", FunctionName="hello")
            assert (gone["$error"], gone["status"]) == ("ResourceNotFoundException", 404)
            assert (await call("list_functions"))["Functions"] == []
        [store] = tmp_path.iterdir()
        assert not list((store / "trees").iterdir())

    with_functions(tmp_path, main)


def test_what_a_function_has_not_is_read_as_none(tmp_path: Path) -> None:
    async def main(_: Functions) -> None:
        async with boto() as call:
            await call("create_function", **create("f"))
            signing = await call("get_function_code_signing_config", FunctionName="f")
            assert signing["CodeSigningConfigArn"] == ""
            for operation, more in (
                ("get_policy", {}), ("get_function_url_config", {}),
                ("get_function_event_invoke_config", {}), ("delete_function", {"Qualifier": "7"}),
            ):  # fmt: skip
                none = await call(operation, FunctionName="f", **more)
                assert (none["$error"], none["status"]) == ("ResourceNotFoundException", 404)

    with_functions(tmp_path, main)


def test_function_name_accepts_full_and_partial_arn(tmp_path: Path) -> None:
    account = "000000000000:function:f"

    async def main(_: Functions) -> None:
        named = "def main(e, c):\n    return c.invoked_function_arn\n"
        async with boto() as call:
            made = await call(
                "create_function", **create("f", named, Handler="app.main", Publish=True)
            )
            assert (made["FunctionArn"], made["Version"]) == (f"{ARN}f", "1")
            await call("create_alias", FunctionName="f", Name="live", FunctionVersion="1")
            for qualifier, version in (
                ("", "$LATEST"), (":$LATEST", "$LATEST"), (":1", "1"), (":live", "1"),
            ):  # fmt: skip
                for name in ("f", account, f"{ARN}f"):
                    given = {"FunctionName": name + qualifier}
                    result = await call("get_function_configuration", **given)
                    assert result["FunctionArn"] == f"{ARN}f{qualifier}"
                    assert result["Version"] == version
                    whole = await call("get_function", **given)
                    assert whole["Configuration"]["FunctionArn"] == result["FunctionArn"]
                    answer = await call("invoke", **given)
                    assert answer["ExecutedVersion"] == version
                    assert json.loads(answer["Payload"]) == f"{ARN}f{qualifier}"
            differ = await call("get_function", FunctionName="f:1", Qualifier="live")
            assert differ["$error"] == "InvalidParameterValueException"
            for method, more in (
                ("update_function_configuration", {"Timeout": 3}),
                ("update_function_code", {"ZipFile": zipped(app="")}),
                ("publish_version", {}),
                ("list_aliases", {}),
                ("put_function_concurrency", {"ReservedConcurrentExecutions": 1}),
            ):
                refused = await call(method, FunctionName="f:1", **more)
                assert refused["$error"] == "InvalidParameterValueException", method

    with_functions(tmp_path, main)


def test_removal_of_a_page_keeps_the_next_page_whole(tmp_path: Path) -> None:
    async def pages(call: Boto, method: str, key: str, **named: Any) -> list[list[dict[str, Any]]]:
        result: list[list[dict[str, Any]]] = []
        marker: dict[str, str] = {}
        while True:
            page = await call(method, MaxItems=2, **named, **marker)
            result.append(page[key])
            for each in page[key] if method == "list_functions" else []:
                await call("delete_function", FunctionName=each["FunctionName"])
            if "NextMarker" not in page:
                return result
            marker = {"Marker": page["NextMarker"]}

    async def main(functions: Functions) -> None:
        async with boto() as call:
            for name in ("b", "a", "d", "c", "e"):
                await call("create_function", **create(name))
            for seconds in range(10, 21):
                await call("update_function_configuration", FunctionName="a", Timeout=seconds)
                await call("publish_version", FunctionName="a")
            for name in ("y", "x", "z"):
                await call("create_alias", FunctionName="a", Name=name, FunctionVersion="1")
            versions = await pages(call, "list_versions_by_function", "Versions", FunctionName="a")
            assert [each["Version"] for page in versions for each in page] == [
                "$LATEST", *map(str, range(1, 12))]  # fmt: skip
            assert versions[0][0]["FunctionArn"] == f"{ARN}a:$LATEST"
            aliases = await pages(call, "list_aliases", "Aliases", FunctionName="a")
            assert [[each["Name"] for each in page] for page in aliases] == [["x", "y"], ["z"]]
            every = await call("list_functions", FunctionVersion="ALL", MaxItems=5)
            assert {each["FunctionName"] for each in every["Functions"]} == {"a"}
            assert every["NextMarker"]
            strange = await call("list_functions", Marker="1")
            assert strange["$error"] == "InvalidParameterValueException"
            result = await pages(call, "list_functions", "Functions")
            assert [[each["FunctionName"] for each in page] for page in result] == [
                ["a", "b"], ["c", "d"], ["e"]]  # fmt: skip
            assert functions.names() == []

    with_functions(tmp_path, main)


def test_a_change_names_the_revision_that_it_changes(tmp_path: Path) -> None:
    async def main(_: Functions) -> None:
        async with boto() as call:
            old = (await call("create_function", **create("f")))["RevisionId"]
            newer = zipped(app="def main(event): return 2")
            digest = base64.b64encode(hashlib.sha256(newer).digest()).decode()
            dry = await call("update_function_code", FunctionName="f", ZipFile=newer, DryRun=True)
            assert (dry["CodeSha256"], dry["RevisionId"]) == (digest, old)
            changed = await call(
                "update_function_code", FunctionName="f", ZipFile=newer, RevisionId=old
            )
            assert (changed["CodeSha256"], changed["CodeSize"]) == (digest, len(newer))
            for waiter in ("function_active_v2", "function_updated_v2", "function_updated"):
                await call("wait", waiter=waiter, FunctionName="f")
            for method, more in (
                ("update_function_code", {"ZipFile": newer}),
                ("update_function_code", {"ZipFile": newer, "DryRun": True}),
                ("update_function_configuration", {"Timeout": 9}),
                ("publish_version", {}),
            ):
                refused = await call(method, FunctionName="f", RevisionId=old, **more)
                assert refused["$error"] == "PreconditionFailedException", method
            other = base64.b64encode(bytes(32)).decode()
            refused = await call("publish_version", FunctionName="f", CodeSha256=other)
            assert refused["$error"] == "InvalidParameterValueException"
            made = await call("publish_version", FunctionName="f", CodeSha256=digest)
            assert made["FunctionArn"] == f"{ARN}f:1"
            first = await call("create_alias", FunctionName="f", Name="live", FunctionVersion="1")
            await call("update_alias", FunctionName="f", Name="live", Description="new")
            refused = await call(
                "update_alias", FunctionName="f", Name="live", RevisionId=first["RevisionId"]
            )
            assert refused["$error"] == "PreconditionFailedException"
            for _time in range(2):
                assert "$error" not in await call("delete_alias", FunctionName="f", Name="live")

    with_functions(tmp_path, main)


def test_unsupported_settings_are_refused(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        async with boto() as call:
            await call("create_function", **create("f", Publish=True))
            for given in (
                {"Layers": ["arn:aws:lambda:us-east-1:000000000000:layer:one:1"]},
                {"VpcConfig": {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}},
                {"DeadLetterConfig": {"TargetArn": "arn:aws:sqs:us-east-1:000000000000:dead"}},
                {"FileSystemConfigs": [{
                    "Arn": "arn:aws:elasticfilesystem:us-east-1:000000000000:access-point/"
                           "fsap-00000000000000000", "LocalMountPath": "/mnt/data"}]},
                {"Environment": {"Variables": {"AWS_REGION": "eu-west-1"}}},
                {"Environment": {"Variables": {"LAMBDA_TASK_ROOT": "/"}}},
            ):  # fmt: skip
                refused = await call("create_function", **create("g"), **given)
                assert refused["$error"] == "InvalidParameterValueException", given
                refused = await call("update_function_configuration", FunctionName="f", **given)
                assert refused["$error"] == "InvalidParameterValueException", given
            weights = {"AdditionalVersionWeights": {"1": 0.5}}
            refused = await call("create_alias", FunctionName="f", Name="live",
                                 FunctionVersion="1", RoutingConfig=weights)  # fmt: skip
            assert refused["$error"] == "InvalidParameterValueException"
            refused = await call("create_function", **create("g") | {"Code": {"ZipFile": b""}})
            assert "ZipFile is empty" in refused["message"]
            made = await call("create_function", **create("g"), Layers=[], VpcConfig={},
                              DeadLetterConfig={}, FileSystemConfigs=[])  # fmt: skip
            assert made["EphemeralStorage"] == {"Size": 512}
            assert functions.names() == ["f", "g"]

    with_functions(tmp_path, main)


def test_credentials_limit_key_to_its_profile(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text("".join(
        f"[{name}]\naws_access_key_id = {name}\naws_secret_access_key = s\n{rights}\n"
        for name, rights in (
            ("admin", ""),
            ("shop", "invoke = shop-*\nread = shop-*\nwrite = shop-[0-9]"),
            ("caller", "invoke = shop-1"),
        )
    ))  # fmt: skip
    path.chmod(0o600)

    async def main(functions: Functions) -> None:
        async with boto(key="admin", secret="s") as admin:
            await admin("create_function", **create("other"))
        for key, secret, name in (
            ("admin", "other", "InvalidSignatureException"),
            ("nobody", "s", "UnrecognizedClientException"),
        ):
            async with boto(key=key, secret=secret) as call:
                item = await call("delete_function", FunctionName="other")
                assert (item["$error"], item["status"]) == (name, 403)
        async with httpx.AsyncClient(base_url=ENDPOINT) as client:
            unsigned = await client.delete("/2015-03-31/functions/other")
            assert unsigned.status_code == 403
            assert unsigned.headers["x-amzn-errortype"] == "MissingAuthenticationTokenException"
        async with boto(key="shop", secret="s") as shop:
            await shop("create_function", **create("shop-1"))
            assert functions.get("shop-1").owner == "shop"
            listed = await shop("list_functions")
            assert [item["FunctionName"] for item in listed["Functions"]] == ["shop-1"]
            refused = [
                await shop("create_function", **create("other-2")),
                await shop("create_function", **create("shop-x")),
                await shop("get_function", FunctionName="other"),
                await shop("get_function", FunctionName="no-such"),
                await shop("delete_function", FunctionName=f"{ARN}other"),
                await shop("invoke", FunctionName="other:1", InvocationType="Event"),
                await shop("get_account_settings"),
            ]
        async with boto(key="caller", secret="s") as caller:
            answer = await caller("invoke", FunctionName="shop-1")
            assert json.loads(answer["Payload"]) == {"got": {}}
            refused += [
                await caller("invoke", FunctionName="shop-2"),
                await caller("get_function", FunctionName="shop-1"),
                await caller("update_function_code", FunctionName="shop-1", ZipFile=zipped(app="")),
            ]
            assert (await caller("list_functions"))["Functions"] == []
        for item in refused:
            assert (item["$error"], item["status"]) == ("AccessDeniedException", 403)
        assert functions.names() == ["other", "shop-1"]
        assert await functions.waiting() == 0

    with_functions(tmp_path / "store", main, credentials=str(path))


def test_provisioned_instances_are_started_ahead_and_kept(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        async with boto() as call:
            await call("create_function", **create("f", LAMBDA, Handler="app.main", Publish=True))
            await call("create_alias", FunctionName="f", Name="live", FunctionVersion="1")
            named = {"FunctionName": "f", "Qualifier": "live"}
            missing = await call("get_provisioned_concurrency_config", **named)
            assert missing["$error"] == "ProvisionedConcurrencyConfigNotFoundException"
            made = await call(
                "put_provisioned_concurrency_config", **named, ProvisionedConcurrentExecutions=2
            )
            assert made["RequestedProvisionedConcurrentExecutions"] == 2
            while True:
                result = await call("get_provisioned_concurrency_config", **named)
                if result["Status"] == "READY":
                    break
                await asyncio.sleep(0.02)
            assert result["AvailableProvisionedConcurrentExecutions"] == 2
            answer = await call("invoke", **named, LogType="Tail")
            assert "Init Duration" not in base64.b64decode(answer["LogResult"]).decode()
            listed = await call("list_provisioned_concurrency_configs", FunctionName="f")
            [item] = listed["ProvisionedConcurrencyConfigs"]
            assert item["FunctionArn"] == f"{ARN}f:live"
            for qualifier, count in (("$LATEST", 1), ("none", 1), ("1", 100_000)):
                refused = await call("put_provisioned_concurrency_config", FunctionName="f",
                                     Qualifier=qualifier,
                                     ProvisionedConcurrentExecutions=count)  # fmt: skip
                assert refused["status"] in (400, 404)
            await call("delete_provisioned_concurrency_config", **named)
            listed = await call("list_provisioned_concurrency_configs", FunctionName="f")
            assert listed["ProvisionedConcurrencyConfigs"] == []

    with_functions(tmp_path, main)


def test_a_streamed_answer_has_the_events_of_its_description(tmp_path: Path) -> None:
    async def main(_: Functions) -> None:
        async with boto() as call:

            async def events(**more: Any) -> tuple[bytes, dict[str, Any]]:
                answer = await call("invoke_with_response_stream", FunctionName="f", **more)
                assert (answer["StatusCode"], answer["ExecutedVersion"]) == (200, "$LATEST")
                *chunks, last = answer["EventStream"]
                payload = b"".join(each["PayloadChunk"]["Payload"] for each in chunks)
                complete = last["InvokeComplete"]
                assert isinstance(complete, dict)
                return payload, complete

            await call("create_function", **create("f", LAMBDA, Handler="app.main"))
            text = "x" * (3 << 20)
            payload, complete = await events(Payload=json.dumps(text).encode())
            assert (json.loads(payload)["got"], complete) == (text, {})
            payload, complete = await events(LogType="Tail")
            assert b"a line of f" in base64.b64decode(complete["LogResult"])
            await call("update_function_configuration", FunctionName="f", Handler="app.fails")
            payload, complete = await events()
            assert (payload, complete["ErrorCode"]) == (b"", "Unhandled")
            assert json.loads(complete["ErrorDetails"])["errorMessage"] == "no such cow"
            await call("update_function_configuration", FunctionName="f", Handler="app.garbles")
            payload, complete = await events()
            assert complete["ErrorDetails"] == "\ufffd" + "\0" * ((1 << 20) - 1)
            for given, name in (
                ({"FunctionName": "g"}, "ResourceNotFoundException"),
                ({"FunctionName": "f", "Payload": b"{"}, "InvalidRequestContentException"),
                ({"FunctionName": "f", "InvocationType": "Event"},
                 "InvalidParameterValueException"),
            ):  # fmt: skip
                assert (await call("invoke_with_response_stream", **given))["$error"] == name

    with_functions(tmp_path, main)


def test_each_failure_of_a_handler_has_its_own_words(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        async with boto() as call:
            await call("create_function", **create("f", LAMBDA, Handler="app.main"))
            for handler, kind, words in (
                ("fails", "ValueError", "no such cow"),
                ("leaves", "Runtime.ExitError", "exit status 3"),
                ("hangs", "Sandbox.Timedout", "timed out"),
                ("object", "Runtime.MarshalError", "set"),
                ("missing", "Runtime.HandlerNotFound", "missing"),
                ("writes", "Sandbox.Timedout", "timed out"),
            ):
                await call("update_function_configuration", FunctionName="f",
                           Handler=f"app.{handler}", Timeout=2)  # fmt: skip
                answer = await call("invoke", FunctionName="f")
                assert answer["FunctionError"] == "Unhandled", (handler, answer)
                error = json.loads(answer["Payload"])
                assert error["errorType"] == kind
                assert words in error["errorMessage"]

        url = "/2015-03-31/functions/f/invocations"
        async with httpx.AsyncClient(base_url=ENDPOINT) as client:
            for kind, size in (("RequestResponse", 6 << 20), ("Event", 1 << 20)):
                event, headers = b"1" * (size + 1), {"x-amz-invocation-type": kind}
                response = await client.post(url, content=event, headers=headers)
                assert response.status_code == 413
                assert response.headers["x-amzn-errortype"] == "RequestTooLargeException"
            await functions.update("f", given=Settings(handler="app.main"))
            response = await client.post(url, content=rb'"half a pair: \ud83d"')
            assert response.content.startswith(rb'{"got": "half a pair: \ud83d"')
            response = await client.post(url, content=b"{")
            assert response.headers["x-amzn-errortype"] == "InvalidRequestContentException"
            assert await functions.waiting() == 0

    with_functions(tmp_path, main)
