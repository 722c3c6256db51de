"""Signatures of requests, against botocore's own signer."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from firstlight.agile.http import sigv4
from firstlight.agile.http.access import Caller
from firstlight.agile.http.sigv4 import Denied, Request
from firstlight.errors import Failed

AWS = Path(sys.executable).parent.parent / "aws/bin/python"
SIGN = """
import json, sys
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from urllib.parse import urlsplit
for method, url, body in json.load(sys.stdin):
    request = AWSRequest(method, url, data=body.encode(), headers={
        "Content-Type": "application/json", "X-Amz-Log-Type": "  Tail  of  it "})
    SigV4Auth(Credentials("AKIDEXAMPLE", "secret/+key"), "lambda", "us-east-1").add_auth(request)
    sent = request.prepare()
    parts = urlsplit(sent.url)
    headers = [*sent.headers.items(), ("Host", parts.netloc)]
    text = [[k, v if isinstance(v, str) else v.decode()] for k, v in headers]
    print(json.dumps([method, parts.path, parts.query, text, body]))
"""
KNOWN = {"AKIDEXAMPLE": Caller("team", "secret/+key")}
HOST = "http://127.0.0.1:9400"
REQUESTS = [
    ("GET", f"{HOST}/2015-03-31/functions", ""),
    ("GET", f"{HOST}/2015-03-31/functions/?Marker=&MaxItems=5&FunctionVersion=ALL", ""),
    ("POST", f"{HOST}/2015-03-31/functions/f/invocations?Qualifier=live", '{"a": "\u00e4"}'),
    ("POST", f"{HOST}/2015-03-31/functions/arn%3Aaws%3Alambda%3Af/invocations", "{}"),
    ("DELETE", f"{HOST}/2017-03-31/tags/a?tagKeys=b%20c&tagKeys=a%2Bd&tagKeys=%C3%A4~", ""),
    ("GET", f"{HOST}/a//b/~c/d%20e/%24LATEST?x=%2F&x&=y", ""),
]


@pytest.fixture(scope="module")
def signed() -> list[Request]:
    if not AWS.exists():
        pytest.skip(".venv/aws is missing: make setup")
    done = subprocess.run(
        [AWS, "-c", SIGN], input=json.dumps(REQUESTS), capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        Request(method, path, query, [(k, v) for k, v in headers], body.encode())
        for method, path, query, headers, body in lines
    ]


def denied(request: Request, known: dict[str, Caller] = KNOWN, now: float = 0.0) -> str:
    with pytest.raises(Denied) as error:
        sigv4.caller(request, known, now or time.time())
    return error.value.name


def test_what_botocore_signs_is_known(signed: list[Request]) -> None:
    for request in signed:
        if "//" not in request.path:
            assert sigv4.caller(request, KNOWN, time.time()).name == "team", request


def test_what_was_changed_is_not(signed: list[Request]) -> None:
    first = signed[2]
    changed = [
        Request("PUT", first.path, first.query, first.headers, first.body),
        Request(first.method, first.path + "x", first.query, first.headers, first.body),
        Request(first.method, first.path, "Qualifier=other", first.headers, first.body),
        Request(first.method, first.path, first.query, first.headers, first.body + b" "),
        Request(first.method, first.path, first.query,
              [(k, "127.0.0.2" if k == "Host" else v) for k, v in first.headers], first.body),
    ]  # fmt: skip
    for request in changed:
        assert denied(request) == "InvalidSignatureException"


def test_each_reason_has_its_name(signed: list[Request]) -> None:
    first = signed[2]
    other = {"AKIDEXAMPLE": Caller("team", "another")}
    assert denied(first, other) == "InvalidSignatureException"
    assert denied(first, {"AKIDOTHER": KNOWN["AKIDEXAMPLE"]}) == "UnrecognizedClientException"
    assert denied(first, now=time.time() + 1000) == "InvalidSignatureException"
    bare = [(k, v) for k, v in first.headers if k != "Authorization"]
    assert denied(Request("GET", "/", "", bare, b"")) == "MissingAuthenticationTokenException"
    basic = [*bare, ("Authorization", "Basic eDp5")]
    assert denied(Request("GET", "/", "", basic, b"")) == "IncompleteSignatureException"


def test_credentials_are_read_like_those_of_aws(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text("[team]\naws_access_key_id = AKID\naws_secret_access_key = a%b/+c\n")
    path.chmod(0o600)
    assert sigv4.load(path) == {"AKID": Caller("team", "a%b/+c")}
    for text in ("[team]\naws_access_key_id = x\n", "", "nonsense"):
        path.write_text(text)
        with pytest.raises(Failed, match="credentials"):
            sigv4.load(path)
    path.write_text(
        "[a]\naws_access_key_id = A\naws_secret_access_key = s\ninvoke = shop-*, img\nread = *\n"
        "[b]\naws_access_key_id = B\naws_secret_access_key = s\nregion = x\nwrite =\n"
    )
    known = sigv4.load(path)
    assert known["A"].rights == {"invoke": ("shop-*", "img"), "read": ("*",)}
    assert known["A"].may("invoke", "shop-7")
    assert not known["A"].may("invoke", "shops")
    assert not known["A"].may("write", "img")
    assert known["A"].may("read", "*")
    few = Caller("few", "s", {"read": ("?", "[*]", "a*", "*?")})
    assert few.may("read", "f")
    assert not few.may("read", "*")
    assert known["B"].rights == {"write": ()}
    twice = "[{}]\naws_access_key_id = A\naws_secret_access_key = s\n"
    for text, words in (
        (twice.format("a") + "wirte = x\n", "unknown key 'wirte'"),
        (twice.format("a") + twice.format("b"), "one access key"),
    ):
        path.write_text(text)
        with pytest.raises(Failed, match=words):
            sigv4.load(path)
    path.chmod(0o644)
    with pytest.raises(Failed, match="others may read"):
        sigv4.load(path)


@pytest.mark.parametrize(
    "authorization",
    ["", "AWS4-HMAC-SHA256 Credential=stranger/20260101/x/lambda/aws4_request", "Bearer x"],
)
def test_the_body_of_a_stranger_is_not_read(authorization: str) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body is read")

    async def send(message: Message) -> None:
        sent.append(message)

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the request is passed on")

    scope = {
        "type": "http", "method": "POST", "path": "/", "query_string": b"",
        "headers": [(b"authorization", authorization.encode())] if authorization else [],
    }  # fmt: skip
    asyncio.run(sigv4.Verified(never, KNOWN)(scope, receive, send))
    assert sent[0]["status"] == 403
