"""What the Lambda API adds to the node's own path, and what a cached image costs to add.

boto3, in an interpreter of its own, and the node's own path take turns on one warm function, so
that what else the machine does meets both.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.marks import Mark
from firstlight.agile import Config, Runtime
from firstlight.agile.config import Http
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.records import DirectorySource, ImageSource, Settings
from firstlight.agile.http import node
from firstlight.agile.serving import Serving
from firstlight.host import workspace

AWS = Path(sys.executable).parent.parent / "aws/bin/python"
PORT, CALLS, LAYERS, MIB = 9400, 400, 3, 1 << 20
CLIENT = """
import sys, time, boto3
from botocore.config import Config
client = boto3.client(
    "lambda", endpoint_url=sys.argv[1], region_name="us-east-1", aws_access_key_id="x",
    aws_secret_access_key="x", config=Config(retries={"max_attempts": 0}))
for line in sys.stdin:
    began = time.perf_counter_ns()
    answer = client.invoke(FunctionName="f", Payload=b"{}")
    assert answer["Payload"].read() == b"{}"
    called = time.perf_counter_ns()
    client.get_account_settings()
    print(called - began, time.perf_counter_ns() - called, flush=True)
"""
HANDLER = "def main(event, context):\n    return event\n"


def measure() -> Iterator[Mark]:
    """The marks, measured beside one another."""
    result: list[Mark] = []

    def run() -> None:
        with (
            workspace.sandbox(f"bench-functions-{os.getpid()}"),
            tempfile.TemporaryDirectory() as at,
        ):
            result.extend(asyncio.run(_measured(Path(at))))

    thread = threading.Thread(target=run)  # which leaves its namespaces by ending
    thread.start()
    thread.join()
    yield from result


async def _measured(at: Path) -> list[Mark]:
    config = Config(name="bench", store=str(at / "store"), http=Http(listen=f"127.0.0.1:{PORT}"))
    async with (
        Runtime(config) as runtime, Serving(runtime) as serving,
        Functions(runtime, serving) as functions, node.opened(config, functions, serving),
    ):  # fmt: skip
        return [*await _called(at, functions), await _added(at, functions)]


async def _called(at: Path, functions: Functions) -> list[Mark]:
    (at / "code").mkdir()
    (at / "code/app.py").write_text(HANDLER)
    settings = Settings(handler="app.main", network="none", timeout=60.0)
    await functions.add("f", DirectorySource(str(at / "code")), settings)
    client = await asyncio.create_subprocess_exec(
        AWS, "-c", CLIENT, f"http://127.0.0.1:{PORT}",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert client.stdin
    assert client.stdout
    own, boto, floor = [], [], []
    for number in range(CALLS + 20):
        client.stdin.write(b"\n")
        through, alone = map(int, (await client.stdout.readline()).split())
        began = time.perf_counter_ns()
        answer, _ = await functions.invoke("f", b"{}", request_id=str(number))
        spent = time.perf_counter_ns() - began
        assert answer.payload == b"{}", answer.payload
        if number >= 20:
            boto.append(through / 1e6)
            floor.append(alone / 1e6)
            own.append(spent / 1e6)
    client.stdin.close()
    await client.wait()
    marks = []
    for share, most in ((50, 1.5), (99, 4.0)):
        here, there, alone_ms = (
            float(np.percentile(values, share)) for values in (own, boto, floor)
        )
        marks.append(Mark(
            f"Invoke by boto3 over the node's own path, P{share}, {CALLS} calls each",
            f"{there - here:.2f} ms ({there:.2f} - {here:.2f}); a call by boto3 that does nothing "
            f"takes {alone_ms:.2f} ms", f"<= {most} ms",
            there - here <= most,
        ))  # fmt: skip
    return marks


async def _added(at: Path, functions: Functions) -> Mark:
    """An image of 300 MiB whose layers are here."""
    layout = at / "layout"
    image = f"{layout}:it"
    words = [["init", "--layout", layout], ["new", "--image", image]]
    for number in range(LAYERS):
        (at / f"layer{number}").write_bytes(os.urandom(100 * MIB))
        words.append(["insert", "--image", image, at / f"layer{number}", f"/layer{number}"])
    (at / "program").write_bytes(Path("/bin/busybox").read_bytes())
    (at / "program").chmod(0o755)
    words.append(["insert", "--image", image, at / "program", "/program"])
    words.append(["config", "--image", image, "--config.entrypoint", "/program"])
    for word in words:
        subprocess.run(["umoci", *map(str, word)], check=True, capture_output=True)
    source, settings = ImageSource(f"oci:{image}"), Settings(kind="command")
    spent = []
    for number in range(6):
        began = time.perf_counter()
        await functions.add(f"image{number}", source, settings)
        spent.append(time.perf_counter() - began)
    again = float(np.median(spent[1:]))
    return Mark("adding an image of 300 MiB that is in the cache, median of 5",
                f"{again:.2f} s (first {spent[0]:.1f} s)", "<= 1 s", again <= 1)  # fmt: skip


if __name__ == "__main__":
    for mark in measure():
        sys.stdout.write(json.dumps([mark.name, mark.measured, mark.mark, mark.met]) + "\n")
