"""The live page of ``firstlight watch`` in Debian's Chromium, and its metrics in Prometheus."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from tests.support.watched_start import MS, start

from firstlight.report.live import server
from firstlight.report.live.board import Board
from firstlight.report.live.metrics import Metrics
from firstlight.units import duration

CHROMIUM = shutil.which("chromium")
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
TOOLS = f"{os.environ['PATH']}:{Path(sys.prefix) / 'libexec/prometheus/usr/bin'}"
DEADLINE_MS = 60_000
expect.set_options(timeout=DEADLINE_MS)


@contextmanager
def opened(board: Board, width: int = 1280) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("chromium is missing: apt install chromium")
    serving = server.serving("0", server.page(board), board.end)
    with serving as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(OPTIONS), timeout=DEADLINE_MS
        )
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(DEADLINE_MS)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        page.locator("body[data-drawn]").wait_for()
        yield page
        assert complaints == []
        browser.close()


def test_the_page_shows_starts_as_they_come() -> None:
    board = Board("here")
    with opened(board) as page:
        expect(page.locator("h1")).to_have_text("Waiting for the first start.")
        for index in range(3):
            board.add(start(index, (index + 1) * 30 * MS))
        board.add(start(3, None))
        expect(page.locator("#latest .start")).to_have_count(4)
        expect(page.locator("h1")).to_contain_text("4 starts in the last hour: median 60.0 ms")
        expect(page.locator("h1")).to_contain_text("1 failed")
        expect(page.locator("#latest .start .total").first).to_have_text("failed")
        expect(page.locator("#slowest .start .total").first).to_have_text("90.0 ms")
        assert page.locator("#phases rect").count() >= 2
        page.locator("#latest .bar rect").first.hover(force=True)
        expect(page.locator("#tip")).to_contain_text("mount: 90.0 ms, on CPU")
        expect(page.locator("#untraced")).to_be_hidden()
        took = [0, 7, 999, 1_234, 1_100 * MS, 999.6 * MS, 1_000 * MS, 99.4 * MS, 3_600_000 * MS]
        assert page.evaluate("took => took.map(duration)", took) == list(map(duration, took))


def test_a_page_without_phases_says_why() -> None:
    board = Board("here")
    with opened(board) as page:
        expect(page.locator("#untraced")).to_be_hidden()
        board.add(start(0, None))
        expect(page.locator("#latest .start")).to_have_count(1)
        expect(page.locator("#untraced")).to_be_hidden()
        expect(page.locator("#phases")).not_to_contain_text("ns")  # an axis of nothing
        board.add(start(1, phases={}, causes={}, stretches=()))
        expect(page.locator("#untraced")).to_be_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_it_never_scrolls_sideways(width: int) -> None:
    board = Board("here")
    board.add(start(0, name="namespace/" + "a-very-long-name-" * 20))
    board.add(start(1, None, error="not executed: " + "/a/very/long/path" * 20))
    with opened(board, width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_names_are_text_and_never_markup() -> None:
    board = Board("here")
    board.add(start(0, name="<img src=x onerror=document.title='owned'>"))
    with opened(board) as page:
        expect(page.locator("#latest .name").first).to_contain_text("<img src=x")
        assert page.locator("#latest img").count() == 0
        assert page.title() == "firstlight watch"


def test_live_page_refuses_foreign_host_name() -> None:
    with server.serving("0", server.page(Board("here"))) as url:
        request = urllib.request.Request(url, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request)


@pytest.fixture
def prometheus() -> str:
    program = shutil.which("prometheus", path=TOOLS)
    if program is None:
        pytest.skip("prometheus is missing: apt-get download prometheus failed in make setup")
    return program


def counted() -> Metrics:
    metrics = Metrics()
    for index in range(40):
        metrics.add(start(index, (index + 1) * MS))
    metrics.add(start(41, None, lost=2))
    return metrics


def test_promtool_finds_no_fault(prometheus: str) -> None:
    text, _ = counted().text("")
    promtool = Path(prometheus).with_name("promtool")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_prometheus_scrapes_the_histograms(prometheus: str, tmp_path: Path) -> None:
    with server.serving("0", server.metrics(counted())) as url:
        target = url.removeprefix("http://").rstrip("/")
        (tmp_path / "prometheus.yml").write_text(
            "scrape_configs: [{job_name: watch, scrape_interval: 1s, "
            f"static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        port = free_port()
        process = subprocess.Popen(
            [prometheus, f"--config.file={tmp_path}/prometheus.yml",
             f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert value(port, "firstlight_start_seconds_count") == 40
            assert value(port, "firstlight_lost_events_total") == 2
            half = "histogram_quantile(0.5, firstlight_start_seconds_bucket)"
            assert 0.01 <= value(port, half) <= 0.03
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def value(port: int, query: str) -> float:
    """The value of a query, as soon as there is one."""
    until = time.monotonic() + 60
    url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}"
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                if result := json.load(answer)["data"]["result"]:
                    return float(result[0]["value"][1])
        except OSError:
            pass
        assert time.monotonic() < until, query
        time.sleep(0.2)
