"""``mk/hosts.py``: a run of some hosts keeps what the document says of the others."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_document_keeps_the_rows_that_were_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "mk"))
    hosts = importlib.import_module("hosts")
    text = (ROOT / "docs/hosts.md").read_text()
    results = hosts._documented(text)
    assert hosts._document(results) == text
    results["debian-12"] = {
        "doctor": ("failed", "a: b", 1.0), "kernel": ("ok", "6.1", 0.0)
    }  # fmt: skip
    again = hosts._documented(hosts._document(results))
    assert again["debian-12"] == {"doctor": ("failed", "a: b", 0.0), "kernel": ("ok", "6.1", 0.0)}
    assert again.keys() == results.keys()


def test_a_root_has_the_kernels_of_its_own_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "mk"))
    kernels = importlib.import_module("hosts")._kernels("bookworm")
    assert kernels == {"linux-image-amd64", "linux-image-rt-amd64"}
