"""The AWS CLI, unmodified, against the node's Lambda API."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from tests.support.lambda_host import ENDPOINT, with_functions, zipped

from firstlight.agile.functions.catalogue import Functions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
AWS = Path(sys.executable).parent.parent / "aws-cli/bin/aws"
SECONDS = 120.0
CODE = """
def main(event, context):
    return {"got": event, "version": context.function_version}
"""


@pytest.mark.skipif(not AWS.exists(), reason="the AWS CLI is not installed: make aws-cli")
def test_aws_cli_manages_function_lifecycle(tmp_path: Path) -> None:
    code, answer = tmp_path / "code.zip", tmp_path / "answer.json"
    code.write_bytes(zipped(app=CODE))

    async def aws(*words: str, fails: bool = False) -> str:
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "AWS_PAGER": "",
            "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            str(AWS), "--endpoint-url", ENDPOINT, "lambda", *words, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(SECONDS):
            out, errors = await process.communicate()
        assert bool(process.returncode) is fails, (words, errors.decode())
        return (out or errors).decode()

    async def main(functions: Functions) -> None:
        made = json.loads(await aws(
            "create-function", "--function-name", "f", "--runtime", "python3.11", "--handler",
            "app.main", "--role", "arn:aws:iam::000000000000:role/none", "--zip-file",
            f"fileb://{code}", "--publish", "--timeout", "60",
        ))  # fmt: skip
        assert (made["Version"], made["State"]) == ("1", "Active")
        named = ("--function-name", "f")
        await aws("update-function-configuration", *named, "--memory-size", "256")
        code.write_bytes(zipped(app=CODE.replace("got", "gets")))
        changed = json.loads(await aws(
            "update-function-code", *named, "--zip-file", f"fileb://{code}", "--publish"
        ))  # fmt: skip
        assert (changed["Version"], changed["MemorySize"]) == ("2", 256)
        again = json.loads(await aws(
            "update-function-code", *named, "--zip-file", f"fileb://{code}", "--publish"
        ))  # fmt: skip
        assert (again["Version"], again["RevisionId"]) == ("2", changed["RevisionId"])
        await aws("create-alias", *named, "--name", "live", "--function-version", "1")
        for qualifier, word in (("live", "got"), ("2", "gets")):
            response = json.loads(await aws(
                "invoke", *named, "--qualifier", qualifier, "--payload", '{"a": 1}', str(answer)
            ))  # fmt: skip
            assert response["StatusCode"] == 200
            assert json.loads(answer.read_text())[word] == {"a": 1}
        await aws("update-alias", *named, "--name", "live", "--function-version", "2")
        assert functions.find("f", "live").version.version == "2"
        listed = await aws("list-functions", "--query", "Functions[].FunctionName")
        assert json.loads(listed) == ["f"]
        await aws("delete-function", *named)
        gone = await aws("get-function", *named, fails=True)
        assert "ResourceNotFoundException" in gone

    with_functions(tmp_path / "store", main)
