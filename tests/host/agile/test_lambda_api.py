"""An unmodified boto3 against the node's Lambda API."""

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.lambda_host import ENDPOINT, boto, with_functions, zipped

from firstlight.agile.functions.catalogue import Functions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ARN = "arn:aws:lambda:us-east-1:000000000000:function:"
ROLE = "arn:aws:iam::000000000000:role/none"
ECHO = "def main(event):\n    print('seen')\n    return {'got': event}\n"
LAMBDA = """
import os, sys, time
def main(event, context):
    print("a line of", context.function_name)
    return {"got": event, "version": context.function_version, "word": os.environ.get("WORD")}
def fails(event, context):
    raise ValueError("no such cow")
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


def test_where_there_are_credentials_a_key_may_do_what_its_profile_says(tmp_path: Path) -> None:
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
                one = await call("delete_function", FunctionName="other")
                assert (one["$error"], one["status"]) == (name, 403)
        async with httpx.AsyncClient(base_url=ENDPOINT) as client:
            unsigned = await client.delete("/2015-03-31/functions/other")
            assert unsigned.status_code == 403
            assert unsigned.headers["x-amzn-errortype"] == "MissingAuthenticationTokenException"
        async with boto(key="shop", secret="s") as shop:
            await shop("create_function", **create("shop-1"))
            assert functions.get("shop-1").owner == "shop"
            listed = await shop("list_functions")
            assert [one["FunctionName"] for one in listed["Functions"]] == ["shop-1"]
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
        for one in refused:
            assert (one["$error"], one["status"]) == ("AccessDeniedException", 403)
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
                found = await call("get_provisioned_concurrency_config", **named)
                if found["Status"] == "READY":
                    break
                await asyncio.sleep(0.02)
            assert found["AvailableProvisionedConcurrentExecutions"] == 2
            answer = await call("invoke", **named, LogType="Tail")
            assert "Init Duration" not in base64.b64decode(answer["LogResult"]).decode()
            listed = await call("list_provisioned_concurrency_configs", FunctionName="f")
            [one] = listed["ProvisionedConcurrencyConfigs"]
            assert one["FunctionArn"] == f"{ARN}f:live"
            for qualifier, count in (("$LATEST", 1), ("none", 1), ("1", 100_000)):
                refused = await call("put_provisioned_concurrency_config", FunctionName="f",
                                     Qualifier=qualifier,
                                     ProvisionedConcurrentExecutions=count)  # fmt: skip
                assert refused["status"] in (400, 404)
            await call("delete_provisioned_concurrency_config", **named)
            listed = await call("list_provisioned_concurrency_configs", FunctionName="f")
            assert listed["ProvisionedConcurrencyConfigs"] == []

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
            response = await client.post(url, content=b"{")
            assert response.headers["x-amzn-errortype"] == "InvalidRequestContentException"
            assert await functions.waiting() == 0

    with_functions(tmp_path, main)
