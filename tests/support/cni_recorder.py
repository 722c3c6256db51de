# ruff: noqa: T201 - what a plugin prints is its answer
"""A CNI plugin that records what it was given, and does what its configuration's ``does`` says.

It is copied, under the names that a test's network has, to a directory of plugins.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    text = sys.stdin.read()
    given = json.loads(text)
    variables = {name: value for name, value in os.environ.items() if name.startswith("CNI_")}
    command = variables["CNI_COMMAND"]
    record(Path(os.environ["RECORD"]), variables, given)
    behave(given.get("does", {}).get(command, "well"), command, given)


def record(file: Path, variables: dict[str, str], given: dict[str, Any]) -> None:
    line = json.dumps({"plugin": Path(sys.argv[0]).name, "env": variables, "stdin": given})
    with file.open("a") as out:
        out.write(line + "\n")


def behave(how: str, command: str, given: dict[str, Any]) -> None:
    version = given.get("cniVersion")
    if how == "fail":
        error = {"cniVersion": version, "code": 11, "msg": "try again", "details": "lease is busy"}
        print(json.dumps(error))
        sys.exit(1)
    if how == "crash":
        print("panic: no such thing", file=sys.stderr)
        os.abort()
    if how == "hang":
        time.sleep(600)
    if how == "garble":
        print("Success! { not json")
        sys.exit(0)
    if how == "old":
        print(json.dumps({"cniVersion": "0.2.0", "ips": []}))
        sys.exit(0)
    if how == "silent":
        sys.exit(0)
    if command == "VERSION":
        print(json.dumps({"cniVersion": version, "supportedVersions": ["0.4.0", "1.1.0"]}))
    if command == "ADD":
        before = given.get("prevResult", {})
        seen = [*before.get("dns", {}).get("search", []), Path(sys.argv[0]).name]
        print(json.dumps({**before, "cniVersion": version, "dns": {"search": seen}}))


if __name__ == "__main__":
    main()
