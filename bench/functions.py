"""Functions over HTTP: what the Lambda API adds, its rate, cold starts, images, and the metrics.

boto3, in an interpreter of its own, and the node's own path take turns on one warm function, so
that what else the machine does meets both.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

from bench.marks import Mark
from firstlight.agile import Config, Runtime
from firstlight.agile.config import Http
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.records import DirectorySource, ImageSource, Settings
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.http import node
from firstlight.agile.serving import Serving
from firstlight.agile.serving.answer import Invocation
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
PYTHON = Path("/usr/bin/python3").resolve()
LIBRARY = Path(f"/usr/lib/{PYTHON.name}")
CONNECTIONS, RATE_SECONDS, STARTS, NAMES = 8, 10.0, 50, 1000
FLOOD = """
import asyncio, sys, time
REQUEST = (b"POST /2015-03-31/functions/f/invocations HTTP/1.1\\r\\nHost: x\\r\\n"
           b"Content-Length: 2\\r\\n\\r\\n{}")
class Client(asyncio.Protocol):
    answers, read = 0, b""
    def connection_made(self, transport):
        self.transport = transport
        transport.write(REQUEST)
    def data_received(self, data):
        self.read += data
        if not self.read.endswith(b"\\r\\n\\r\\n{}"):
            return
        assert self.read.startswith(b"HTTP/1.1 200"), self.read
        self.read = b""
        Client.answers += 1
        self.transport.write(REQUEST)
async def main(port, connections, seconds):
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(Client, "127.0.0.1", port)
    await asyncio.sleep(1)
    before, began = Client.answers, time.perf_counter()
    await asyncio.sleep(seconds)
    print((Client.answers - before) / (time.perf_counter() - began))
asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
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
        return [
            *await _called(at, functions), await _flooded(), await _started(at, functions),
            await _added(at, functions), await _scraped(serving),
        ]  # fmt: skip


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


async def _flooded() -> Mark:
    """How many events a second the warm function answers."""
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FLOOD, str(PORT), str(CONNECTIONS), str(RATE_SECONDS),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    output, _ = await client.communicate()
    rate = float(output)
    return Mark(f"requests a second over HTTP, warm, {CONNECTIONS} connections of a client here",
                f"{rate:.0f}", ">= 1500", rate >= 1500)  # fmt: skip


async def _started(at: Path, functions: Functions) -> Mark:
    """Cold starts of a Lambda handler from an image whose interpreter is up."""
    image = f"{at / 'python'}:it"
    (at / "app.py").write_text(HANDLER)
    words: list[list[object]] = [["init", "--layout", at / "python"], ["new", "--image", image]]
    words += [["insert", "--image", image, *pair] for pair in _interpreter(at)]
    words.append(
        [
            "config",
            "--image",
            image,
            "--config.entrypoint",
            "/usr/bin/python3",
            "--config.cmd",
            "app.main",
            "--config.env",
            "PYTHONPATH=/opt:/var/task",
        ]
    )
    _umoci(words)
    given = Settings(kind="python", handler="app.main", timeout=60.0, keep_warm=0.0)
    await functions.add("cold", ImageSource(f"oci:{image}"), given)
    spent = []
    for number in range(STARTS + 1):
        answer, _ = await functions.invoke("cold", b"{}", request_id=str(number))
        assert answer.payload == b"{}", answer.payload
        assert answer.cold
        if number:  # the first waits for the interpreter
            spent.append(answer.init_ns / 1e6)
    median, most = float(np.median(spent)), float(np.percentile(spent, 99))
    return Mark(f"cold start of an awslambdaric handler from an image, zygote warm, of {STARTS}",
                f"{median:.1f} ms, P99 {most:.1f} ms", "<= 10 ms", median <= 10)  # fmt: skip


async def _scraped(serving: Serving) -> Mark:
    """The metrics of a thousand functions, each with all its histograms."""
    for number in range(NAMES):
        version = FunctionVersion(name=f"scraped{number}", kind="python")
        for cold in (True, False):
            outcome = Invocation(
                version=version, request_id="", arrived=0, cold=cold, start_ns=10**6
            )
            for observe in serving.observers:
                observe(outcome)
    spent = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client:
        for _ in range(20):
            began = time.perf_counter()
            answer = await client.get("/metrics")
            spent.append((time.perf_counter() - began) * 1e3)
    assert f"scraped{NAMES - 9}" in answer.text
    median = float(np.median(spent))
    return Mark(f"/metrics with {NAMES} functions, {len(answer.content) >> 10} KiB, median of 20",
                f"{median:.0f} ms", "<= 50 ms", median <= 50)  # fmt: skip


def _interpreter(at: Path) -> Iterator[tuple[Path, str]]:
    """What an image needs for this handler: this machine's Python, its libraries, awslambdaric."""
    packages = next(AWS.parent.parent.glob("lib/python3.*/site-packages"))
    names = ("awslambdaric", "simplejson", "snapshot_restore_py.py", "runtime_client*.so")
    packaged = [path for name in names for path in packages.glob(name)]
    programs = [PYTHON, *LIBRARY.glob("lib-dynload/*.so"), *packages.glob("runtime_client*.so")]
    listed = subprocess.run(["ldd", *programs], check=True, capture_output=True, text=True).stdout
    yield PYTHON, "/usr/bin/python3"
    yield LIBRARY, str(LIBRARY)
    for library in sorted(set(re.findall(r"(/\S+\.so\S*) \(", listed))):
        yield Path(library).resolve(), library
    yield from ((path, f"/opt/{path.name}") for path in packaged)
    yield at / "app.py", "/var/task/app.py"


def _umoci(words: list[list[object]]) -> None:
    for word in words:
        subprocess.run(["umoci", *map(str, word)], check=True, capture_output=True)


async def _added(at: Path, functions: Functions) -> Mark:
    """An image of 300 MiB whose layers are here."""
    layout = at / "layout"
    image = f"{layout}:it"
    words: list[list[object]] = [["init", "--layout", layout], ["new", "--image", image]]
    for number in range(LAYERS):
        (at / f"layer{number}").write_bytes(os.urandom(100 * MIB))
        words.append(["insert", "--image", image, at / f"layer{number}", f"/layer{number}"])
    (at / "program").write_bytes(Path("/bin/busybox").read_bytes())
    (at / "program").chmod(0o755)
    words.append(["insert", "--image", image, at / "program", "/program"])
    words.append(["config", "--image", image, "--config.entrypoint", "/program"])
    _umoci(words)
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
