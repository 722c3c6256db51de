"""A real Prometheus scrapes a node."""

import asyncio
import json
import shutil
import time
from pathlib import Path

import httpx
import pytest
from tests.support.lambda_host import ENDPOINT, PORT, with_functions, zipped

import firstlight
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.records import Settings, ZipSource

ADDRESS = "127.0.0.1:9395"
CONFIGURATION = f"""
global: {{scrape_interval: 1s}}
rule_files: ["{Path(firstlight.__file__).parent}/deploy/prometheus/*.yml"]
scrape_configs:
  - job_name: firstlight
    static_configs: [{{targets: ["127.0.0.1:{PORT}"]}}]
"""


def program() -> str:
    for parent in Path(firstlight.__file__).parents:
        if (result := parent / "libexec/prometheus/usr/bin/prometheus").exists():
            return str(result)
    if in_path := shutil.which("prometheus"):
        return in_path
    pytest.skip("prometheus is missing: make setup")


def test_prometheus_scrapes_what_was_started(tmp_path: Path) -> None:
    prometheus = program()
    (tmp_path / "prometheus.yml").write_text(CONFIGURATION)

    async def main(functions: Functions) -> None:
        app = zipped(app="def main(event):\n    return event\n")
        await functions.add("echo", ZipSource(data=app), Settings(handler="app:main", timeout=30.0))
        answer, _ = await functions.invoke("echo", b'"a"', request_id="r")
        assert answer.payload == b'"a"'
        process = await asyncio.create_subprocess_exec(
            prometheus, f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address={ADDRESS}",
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with httpx.AsyncClient(base_url=f"http://{ADDRESS}/api/v1", timeout=60) as client:
                await _seen(client)
                rules = (await client.get("/rules")).json()["data"]["groups"]
                assert [rule["health"] for group in rules for rule in group["rules"]] != []
                targets = (await client.get("/targets")).json()["data"]["activeTargets"]
                assert [target["lastError"] for target in targets] == [""]
        finally:
            process.terminate()
            await process.wait()

    with_functions(tmp_path / "store", main)


async def _seen(client: httpx.AsyncClient) -> None:
    query = 'firstlight_function_start_seconds_count{function="echo",warmth="cold"}'
    until = time.monotonic() + 50
    while time.monotonic() < until:
        try:
            result = (await client.get("/query", params={"query": query})).json()
            if result["data"]["result"]:
                assert result["data"]["result"][0]["value"][1] == "1"
                return
        except (httpx.TransportError, json.JSONDecodeError, KeyError):
            pass  # it is not up yet
        await asyncio.sleep(0.2)
    pytest.fail("Prometheus has not scraped the function's start")


def test_metrics_is_for_whoever_may_call(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        async with httpx.AsyncClient(base_url=ENDPOINT) as client:
            plain = await client.get("/metrics")
            assert plain.headers["content-type"].startswith("text/plain")
            assert "firstlight_instances 0.0" in plain.text
            kind = {"accept": "application/openmetrics-text; version=1.0.0"}
            open_metrics = await client.get("/metrics", headers=kind)
            assert open_metrics.text.endswith("# EOF\n")

    with_functions(tmp_path, main)
