"""Documents, messages, scripts and tests: no spelling that 0.2.0 removed, and no dead link."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = re.compile(
    r"firstlight (up|start|ps|stop|pool|paper)\b|--(conf|binary|across)\b|run .*--until\b"
    r"|measuring\.md|machines\.md|conf/agile/firstlight\.service"
)
FILES = [
    path
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "meson.build",
                 "docs", "src", "mk", "bench", "conf", "deploy", "examples", "native", "contrib")
    for path in ([ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("*")))
    if path.is_file() and "__pycache__" not in path.parts
]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_old_spelling(path: Path) -> None:
    lines = path.read_bytes().decode(errors="replace").splitlines()
    assert [line for line in lines if OLD.search(line)] == []


def test_tests_that_documents_name_exist() -> None:
    tests = {path.name: path.read_text() for path in ROOT.joinpath("tests").rglob("test_*.py")}
    tests |= {each: "" for text in tests.values() for each in re.findall(r"def (test_\w+)", text)}
    named = {
        name
        for path in (ROOT / "docs").glob("*.md")
        for name in re.findall(r"`(?:[\w/]+/)?(test_\w+(?:\.py)?)`", path.read_text())
    }
    assert len(named) > 100
    assert named <= tests.keys()


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.suffix == ".md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)  # fmt: skip
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"`[^`]*`", "", path.read_text())
    missing = []
    for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        there = path.parent / target if target else path
        if not target.startswith("http") and (
            not there.exists() or (heading and heading not in anchors(there))
        ):
            missing.append(f"{target}#{heading}")
    assert missing == []


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", path.read_text())
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


def test_names_of_tests_have_at_most_60_characters() -> None:
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "contrib").rglob("*.py")]
    names = [name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())]
    assert [name for name in names if len(name) > 60] == []
