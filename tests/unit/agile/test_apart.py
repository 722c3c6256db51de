"""The runtime stands alone: it never imports the lab that measures it."""

import ast
from pathlib import Path

import firstlight.agile

HERE = Path(firstlight.agile.__file__).parent


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("firstlight")}


def test_it_imports_itself_and_the_errors() -> None:
    for path in HERE.glob("*.py"):
        for name in imported(path):
            assert name.startswith(("firstlight.agile", "firstlight.errors")), (path.name, name)


def test_a_zygote_imports_only_the_standard_library() -> None:
    assert imported(HERE / "zygote_main.py") == set()
