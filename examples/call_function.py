#!/usr/bin/env python3
"""Create a function by the Lambda API of a node, call it, and remove it; needs boto3.

Usage: call_function.py [ENDPOINT]      such as http://127.0.0.1:9400
"""

import io
import json
import sys
import zipfile

import boto3  # type: ignore[import-not-found,unused-ignore]

HANDLER = """
def main(event, context):
    print("called for", event["name"])
    return {"hello": event["name"], "left": context.get_remaining_time_in_millis()}
"""


def main(endpoint: str = "http://127.0.0.1:9400") -> None:
    """Print what the function answers."""
    client = boto3.client(
        "lambda", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="none", aws_secret_access_key="none",  # noqa: S106
    )  # fmt: skip
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("app.py", HANDLER)
    client.create_function(
        FunctionName="example", Runtime="python3.11", Handler="app.main",
        Role="arn:aws:iam::000000000000:role/none",
        Code={"ZipFile": code.getvalue()},
    )  # fmt: skip
    answer = client.invoke(FunctionName="example", Payload=json.dumps({"name": "world"}))
    print(json.loads(answer["Payload"].read())["hello"])
    client.delete_function(FunctionName="example")


main(*sys.argv[1:])
