import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as changed
from tests.support import synthetic

from firstlight import units as wording
from firstlight.analysis import Analysis
from firstlight.report import answer, page

SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@pytest.fixture(scope="module")
def text(container: Analysis, network: Analysis) -> str:
    return page.render([container, network])


def body(text: str) -> str:
    """What a reader sees, charts and scripts aside."""
    seen = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", seen)).split())


def charts(text: str) -> list[dict[str, Any]]:
    (embedded,) = re.findall(r'id="charts">(.*?)</script>', text, re.DOTALL)
    specifications: list[dict[str, Any]] = json.loads(embedded)
    return specifications


def test_the_answers_stand_first(text: str, container: Analysis, network: Analysis) -> None:
    seen = body(text)
    places = [seen.index(" ".join(answer.answer(run).split())) for run in (container, network)]
    assert places == sorted(places)
    assert places[1] < seen.index("Where the time goes")


def test_every_latency_of_the_tables_is_the_figure(text: str, container: Analysis) -> None:
    seen = body(text)
    for point in container.points:
        assert point.latency
        assert " ".join(wording.duration_interval(point.latency.median).split()) in seen


def test_page_tables_name_causes_failures_and_skips(text: str) -> None:
    seen = body(text)
    assert "lock: pernet_ops_rwsem (copy_net_ns) 70 %" in seen
    assert "runc run failed: unable to start container process" in seen
    assert "not ready after 30 s, in mount" in seen
    assert seen.count("and 1 alike") == 2
    assert "runsc is not installed; apt install runsc" in seen
    assert "6.18.0-synthetic" in seen
    assert seen.count("Imaginary CPU") == 1  # one machine, told once
    assert "crun runs without cgroups here." in seen


def test_claims_of_these_experiments_stand_outside_the_fold(text: str) -> None:
    claims = text[text.index('id="claims"') : text.index('id="run-1"')]
    open_part = claims[: claims.index("<details>")]
    assert re.findall(r">(C\d+)<", open_part) == ["C7", "C8", "C9", "C10", "C11"]


def test_every_place_has_a_chart_and_every_chart_a_place(text: str) -> None:
    places = [int(place) for place in re.findall(r'data-chart="(\d+)"', text)]
    assert sorted(places) == list(range(len(charts(text))))


def test_charts_carry_their_data_and_no_address(text: str) -> None:
    for chart in charts(text):
        assert chart["datasets"]
        assert "config" not in chart
        assert "url" not in json.dumps(chart)


def test_the_policy_allows_the_inlined_scripts_and_nothing_else(text: str) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    directives = dict(directive.split(" ", 1) for directive in html.unescape(policy).split("; "))
    hashes = {
        "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
        for script in SCRIPT.findall(text)
    }
    assert len(hashes) == 2
    assert directives["default-src"] == "'none'"
    assert set(directives["script-src"].split()) == hashes


def test_nothing_is_fetched(text: str) -> None:
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?:""", outside)


def test_words_from_a_run_cannot_become_markup(known_phases: None, tmp_path: Path) -> None:
    text = page.render([Analysis(synthetic.nothing_ready(tmp_path))])
    assert "<b>runc</b>" not in text
    assert "<script>alert(1)" not in text
    assert "No start became ready" in body(text)


def test_write_makes_one_file(container: Analysis, tmp_path: Path) -> None:
    page.write([container], tmp_path / "report.html")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_words_in_charts_cannot_end_their_script(known_phases: None, container: Analysis) -> None:
    hostile = {"runtime": "</script>", "instances": 1}
    samples = [
        changed(sample, point=hostile)
        for sample in container.run.samples
        if sample.point == {"runtime": "runc", "instances": 1}
    ]
    header = changed(container.run.header, points=(hostile,))
    text = page.render([Analysis(replace(container.run, header=header, samples=samples))])
    assert text.count("</script>") == 4
    assert any(
        row["series"] == "</script>"
        for chart in charts(text)
        for rows in chart["datasets"].values()
        for row in rows
        if "series" in row
    )
