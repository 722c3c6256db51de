"""Requests made at random from the description of the Lambda API that botocore has."""

import base64
import gzip
import json
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.support.lambda_host import AWS, zipped

OPERATIONS = (
    "CreateFunction", "ListFunctions", "GetFunction", "DeleteFunction", "GetFunctionConfiguration",
    "UpdateFunctionConfiguration", "UpdateFunctionCode", "PublishVersion", "ListVersionsByFunction",
    "CreateAlias", "ListAliases", "GetAlias", "UpdateAlias", "DeleteAlias", "Invoke",
    "InvokeWithResponseStream",
    "PutFunctionConcurrency", "GetFunctionConcurrency", "DeleteFunctionConcurrency", "ListTags",
    "TagResource", "UntagResource", "GetAccountSettings", "PutProvisionedConcurrencyConfig",
    "GetProvisionedConcurrencyConfig", "ListProvisionedConcurrencyConfigs",
    "DeleteProvisionedConcurrencyConfig",
)  # fmt: skip
NAMES = (
    *["good"] * 4, "fuzzed", "fuzzed", "nobody", "good:live", "good:1", "good:$LATEST", "fuzzed:9",
    "arn:aws:lambda:us-east-1:000000000000:function:good",
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1 << 63, 1 << 70, 1e308, "", " ", "\0", "é\U0001f680", "../../etc/passwd",
    "%s%n", "a" * 300, "$LATEST", [], {}, [None], {"": None}, [[[[]]]], "' OR 1=1 --",
)  # fmt: skip
GOOD = zipped(app="def main(event):\n    return event\n")
PARTS: dict[str, tuple[Any, ...]] = {
    "FunctionName": NAMES, "Resource": NAMES[-1:], "Qualifier": ("live", "1", "$LATEST", "7"),
    "Name": ("live", "other", "9"), "FunctionVersion": ("1", "$LATEST", "ALL", "7"),
    "Runtime": ("python3.11", "provided.al2023", "nodejs20.x"), "Handler": ("app:main", "x", "a:b"),
    "ZipFile": (base64.b64encode(GOOD).decode(), "UEs=", "not base64!"),
    "ImageUri": ("127.0.0.1:1/none", "oci:/etc", "docker-archive:/etc/passwd", "a b"),
    "InvocationType": ("RequestResponse", "Event", "DryRun", "Never"),
    "PackageType": ("Zip", "Image"),
    "LogType": ("Tail", "None"), "Timeout": (1, 30, 900), "MemorySize": (128, 256),
    "Architectures": (["x86_64"], ["arm64"]), "Publish": (True, False),
    "ClientContext": ("e30=", "x", "eyJhIjoxfQ=="), "ReservedConcurrentExecutions": (0, 1, 10),
    "ProvisionedConcurrentExecutions": (1, 2, 10_000),
}  # fmt: skip
BODIES = (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": NaN}', b"[" * 3000, b'"' + b"x" * 70000,
          b"{}" * 2, b'{"FunctionName": "good"}')  # fmt: skip


@dataclass
class Made:
    """One request."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Fuzz:
    """Makes requests; the same seed makes the same."""

    def __init__(self, seed: int) -> None:
        models = sorted(AWS.parent.parent.glob("lib/python3*/site-packages/botocore/data/lambda/*"))
        result = [path for path in models if path.name == "2015-03-31"]
        if not result:
            pytest.skip(".venv/aws is missing: make setup")
        model = json.loads(gzip.decompress(Path(result[0] / "service-2.json.gz").read_bytes()))
        self._shapes: dict[str, Any] = model["shapes"]
        self._operations: dict[str, Any] = model["operations"]
        self.errors = {name for name, shape in self._shapes.items() if shape.get("exception")}
        self._random = random.Random(seed)

    def request(self) -> Made:
        """The next request."""
        draw = self._random
        operation = self._operations[draw.choice(OPERATIONS)]
        made = self._filled(operation)
        chance = draw.random()
        if chance < 0.08:
            made.body = draw.choice(BODIES)
        elif chance < 0.12 and made.body:
            at = draw.randrange(len(made.body))
            made.body = made.body[:at] + bytes([draw.randrange(256)]) + made.body[at + 1 :]
        elif chance < 0.16:
            made.method = draw.choice(("PATCH", "OPTIONS", "HEAD", "TRACE", "GET", "PUT", "DELETE"))
        elif chance < 0.19:
            made.path = made.path[: draw.randrange(1, len(made.path) + 1)]
        elif chance < 0.21:
            made.path += draw.choice(("/", "//", "/..", "/%00", "/%2e%2e", "?Marker=x", "/extra"))
        elif chance < 0.23:
            made.headers["origin"] = "http://elsewhere.example"
        return made

    def _filled(self, operation: dict[str, Any]) -> Made:
        shape = self._shapes[operation["input"]["shape"]]
        path, query, headers = operation["http"]["requestUri"], [], {}
        body: dict[str, Any] = {}
        payload = b""
        for name, member in shape["members"].items():
            needed = name in shape.get("required", ()) or name in ("Code", "Runtime", "Handler")
            if not needed and self._random.random() < 0.6:
                continue
            if needed and self._random.random() < 0.03 and member.get("location") != "uri":
                continue
            value = self._value(name, member["shape"])
            where = member.get("location")
            text = value if isinstance(value, str) else json.dumps(value)
            if where == "uri":
                path = path.replace(f"{{{member['locationName']}}}", quote(text, safe=""))
            elif where == "querystring":
                query.append(f"{member['locationName']}={quote(text, safe='')}")
            elif where == "header":
                headers[member["locationName"]] = re.sub(r"[^\x21-\x7e]", "?", text)[:4000]
            elif name == shape.get("payload"):
                payload = json.dumps(value).encode()
            else:
                body[name] = value
        full = "?".join(filter(None, (path, "&".join(query))))
        content = payload or (json.dumps(body).encode() if body else b"")
        return Made(operation["http"]["method"], full, headers, content)

    def _value(self, name: str, shape_name: str, depth: int = 0) -> Any:
        draw = self._random
        if draw.random() < 0.12:
            return draw.choice(ODD)
        if name in PARTS:
            return draw.choice(PARTS[name])
        shape = self._shapes[shape_name]
        kind = shape["type"]
        if kind == "structure" and depth < 5:
            members = shape.get("members", {})
            chosen = [member for member in members if draw.random() < 0.4]
            if "ZipFile" in members:
                chosen = draw.choice((["ZipFile"], ["ZipFile"], ["ImageUri"], chosen))
            return {
                member: self._value(member, members[member]["shape"], depth + 1)
                for member in chosen
            }
        if kind == "list":
            return [self._value("", shape["member"]["shape"], depth + 1)] * draw.randrange(3)
        if kind == "map":
            value = shape["value"]["shape"]
            return {f"k{n}": self._value("", value, depth + 1) for n in range(draw.randrange(3))}
        if kind in ("integer", "long", "double"):
            return draw.choice((0, 1, 2, shape.get("min", 1), shape.get("max", 1000)))
        if kind == "boolean":
            return draw.random() < 0.5
        return draw.choice(shape.get("enum", ("a", "word", "1")))
