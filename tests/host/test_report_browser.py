"""The report in Debian's Chromium, without a network: it draws, fits, and asks for nothing."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.support import synthetic

from firstlight.analysis import Analysis
from firstlight.report import page as report

CHROMIUM = shutil.which("chromium")
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
DEADLINE_MS = 60_000
expect.set_options(timeout=DEADLINE_MS)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is missing: apt install chromium"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    with synthetic.known_phases():
        report.write(
            [
                Analysis(synthetic.container_creation(directory / "container")),
                Analysis(synthetic.network_setup(directory / "network")),
            ],
            directory / "report.html",
        )
    return directory / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(OPTIONS), timeout=DEADLINE_MS
        )
        yield running
        running.close()


class Opened:
    """A page with what it said and asked for."""

    def __init__(self, page: Page, file: Path) -> None:
        self.page = page
        page.set_default_timeout(DEADLINE_MS)
        self.messages: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(file.as_uri())
        self.drawn()

    def drawn(self) -> None:
        """Wait until every chart that has a place on the screen is there."""
        undrawn = self.page.locator("[data-chart]:visible:not([data-drawn])")
        expect(undrawn).to_have_count(0)

    def everything(self) -> None:
        """Open every fold, and wait for the charts in them."""
        folded = self.page.locator("details:not([open]) > summary")
        while folded.count():
            folded.first.click()
        self.drawn()


@pytest.fixture(scope="module")
def opened(browser: Browser, file: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """One page for all tests of a width and scheme: to draw it takes seconds."""
    width, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    yield Opened(context.new_page(), file)
    context.close()


DESK, PHONE, NIGHT = (1280, "light"), (390, "light"), (1280, "dark")


@pytest.mark.parametrize("opened", [DESK, PHONE], indirect=True)
def test_page_draws_charts_without_requests_or_errors(opened: Opened, file: Path) -> None:
    opened.everything()
    charts = opened.page.locator("[data-chart]")
    assert charts.count() > 20
    for chart in charts.all():
        marks = chart.locator("svg .mark-rect path, svg .mark-line path, svg .mark-symbol path")
        assert marks.count() > 0, chart.get_attribute("aria-label")
    assert opened.messages == []
    assert opened.asked == [file.as_uri()]


@pytest.mark.parametrize("opened", [DESK, PHONE, (320, "light")], indirect=True)
def test_the_page_never_scrolls_sideways_and_no_chart_is_cut(opened: Opened) -> None:
    opened.everything()
    page = opened.page
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in page.locator("[data-chart]:visible").all():
        place, drawing = chart.bounding_box(), chart.locator("svg").first.bounding_box()
        assert place
        assert drawing
        assert drawing["width"] <= place["width"] + 1, chart.get_attribute("aria-label")


@pytest.mark.parametrize("opened", [DESK, NIGHT], indirect=True)
def test_words_are_readable_in_both_schemes(opened: Opened) -> None:
    """WCAG's contrast of 4.5 between every kind of text, in tables and charts, and the page."""
    paper = luminance(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    for selector in ("h1", "figcaption", "td", "th", ".kicker", ".holds, .does-not-hold"):
        colour = opened.page.locator(selector).first.evaluate(
            "node => getComputedStyle(node).color"
        )
        assert contrast(luminance(colour), paper) >= 4.5, selector
    for text in opened.page.locator("[data-chart] svg text").all()[:200]:
        fill = text.evaluate("node => getComputedStyle(node).fill")
        assert contrast(luminance(fill), paper) >= 4.5, text.text_content()


@pytest.mark.parametrize("opened", [DESK], indirect=True)
def test_charts_follow_the_colour_scheme(opened: Opened) -> None:
    ink = opened.page.locator("[data-chart] svg text").first
    before = ink.evaluate("node => getComputedStyle(node).fill")
    opened.page.emulate_media(color_scheme="dark")
    expect(ink).not_to_have_css("fill", before)
    opened.page.emulate_media(color_scheme="light")
    expect(ink).to_have_css("fill", before)


@pytest.mark.parametrize("opened", [DESK], indirect=True)
def test_fig_6_and_fig_7_stand_beside_each_other(opened: Opened) -> None:
    boxes = [figure.bounding_box() for figure in opened.page.locator("#where figure").all()]
    assert len(boxes) == 2
    left, right = boxes
    assert left
    assert right
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


@pytest.mark.parametrize("opened", [DESK], indirect=True)
def test_a_bar_tells_its_phase_and_share_when_pointed_at(opened: Opened) -> None:
    opened.page.locator("#where [data-chart] svg .mark-rect path").nth(5).hover(force=True)
    tooltip = opened.page.locator("#vg-tooltip-element")
    expect(tooltip).to_contain_text("share")
    expect(tooltip).to_contain_text("%")


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of ``rgb(r, g, b)``."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: float, other: float) -> float:
    return (max(first, other) + 0.05) / (min(first, other) + 0.05)
