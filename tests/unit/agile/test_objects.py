"""Function objects: what they ask for, and the status that many nodes share."""

import base64
import io
import zipfile
from typing import Any

import pytest

from firstlight.agile.functions import objects
from firstlight.agile.functions.records import ImageSource, ZipSource
from firstlight.errors import Failed


def function(generation: int = 1, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "f", "uid": "u", "generation": generation},
        "spec": {"code": {"files": {"app.py": "x = 1\n"}}, "handler": "app:main"} | spec,
    }


def test_texts_are_a_zip_file_that_is_the_same_each_time() -> None:
    request = objects.request(function(memory="64Mi", pids=7, keepWarm=5, concurrency=2, queue=3))
    assert isinstance(request.source, ZipSource)
    with zipfile.ZipFile(io.BytesIO(request.source.data)) as file:
        assert file.read("app.py") == b"x = 1\n"
    assert request.source == objects.request(function()).source
    assert request.settings.memory == 64 << 20
    assert (request.settings.keep_warm, request.settings.pids) == (5, 7)
    assert (request.concurrency, request.queue) == (2, 3)
    assert objects.kept(request.tags) == objects.state(function()) == ("u", 1)


def test_code_is_of_one_source() -> None:
    image = objects.request(function(code={"image": "docker://example/f:1"}))
    assert image.source == ImageSource("docker://example/f:1")
    packed = base64.b64encode(b"PK").decode()
    assert objects.request(function(code={"zip": packed})).source == ZipSource(data=b"PK")
    for code in ({}, {"zip": packed, "image": "docker://x"}, {"zip": "?"}, {"directory": "/etc"}):
        with pytest.raises(Failed, match="malformed"):
            objects.request(function(code=code))
    for wrong in ({"memory": "much"}, {"tmieout": 3}, {"kind": "wasm2"}, {"timeout": "3"}):
        with pytest.raises(Failed, match="malformed"):
            objects.request(function(**wrong))


@pytest.mark.parametrize("generation", ["", "x", "1.0", "9" * 5000])
def test_tags_that_others_change_are_of_no_state(generation: str) -> None:
    tags = objects.request(function()).tags
    assert objects.kept(tags | {"firstlight.dev/generation": generation}) == ("", 0)
    for name in tags:
        assert objects.kept({key: tags[key] for key in tags if key != name}) == ("", 0)


def status_of(function: dict[str, Any], node: str, problem: str = "") -> dict[str, Any]:
    return function | {"status": objects.status(function, node, problem)}


def condition(function: dict[str, Any]) -> dict[str, Any]:
    [ready] = function["status"]["conditions"]
    return ready  # type: ignore[no-any-return]


def test_the_status_is_bounded_and_failures_come_first() -> None:
    now = function()
    for number in range(40):
        now = status_of(now, f"good-{number:02}")
    assert len(now["status"]["nodes"]) == objects.NODES_MOST
    assert condition(now)["status"] == "True"
    assert status_of(now, "good-99") == now  # no room: nothing is written

    for number in range(40):
        now = status_of(now, f"bad-{number:02}", "x" * 5000)
    names = [each["name"] for each in now["status"]["nodes"]]
    assert len(names) == objects.NODES_MOST
    assert all(name.startswith("bad") for name in names)
    assert condition(now)["status"] == "False"
    assert len(condition(now)["message"]) <= 2048
    assert status_of(now, "bad-99", "y") == now


def test_recovered_node_ignores_older_generation() -> None:
    now = status_of(status_of(function(), "one", "first line\n  more\nlast line"), "two")
    assert condition(now)["message"] == "one: first line … last line"
    assert status_of(now, "two") == now
    later = status_of(now, "one")
    assert condition(later) | {"lastTransitionTime": ""} == {
        "type": "Ready", "status": "True", "observedGeneration": 1, "reason": "Served",
        "message": "", "lastTransitionTime": "",
    }  # fmt: skip
    newer = status_of(function(2) | {"status": now["status"]}, "two")
    assert [each["name"] for each in newer["status"]["nodes"]] == ["two"]
    assert condition(newer)["status"] == "True"


def test_a_node_that_left_the_cluster_no_longer_counts() -> None:
    now = status_of(status_of(function(), "gone", "out of memory"), "here")
    assert objects.unready(now) == ["gone"]
    after = now | {"status": objects.without(now, {"gone"})}
    assert [each["name"] for each in after["status"]["nodes"]] == ["here"]
    assert condition(after)["status"] == "True"
    assert objects.without(after, {"here"})["conditions"] == []  # nobody serves it or fails
