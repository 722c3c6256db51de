"""Imports point one way: down the list of packages in docs/architecture.md, and in no circle."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import firstlight

PACKAGE = Path(firstlight.__file__).parent
GROUND = ("errors", "native", "files", "model", "store", "units")
ORDER = ("__main__", "cli", "report", "claims", "lab", "analysis", "trace", "host",
         *reversed(GROUND))  # fmt: skip
"""From the top: each may import what stands behind it."""

RUNTIME = "agile"
"""Stands beside the order: it imports the ground alone, and only these import it."""
OVER_RUNTIME = ("cli", "lab")


def modules() -> dict[str, Path]:
    result = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return result


MODULES = modules()


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it."""
    result = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                result.add(whole if whole in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            result |= {name.name for name in node.names}
    return result & set(MODULES)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_the_top_of_the_package_has_at_most_14_rooms() -> None:
    rooms = {room(module) for module in MODULES} - {"", "__main__"}
    assert rooms == {*ORDER, RUNTIME} - {"__main__"}
    assert len(rooms) <= 14


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    here = room(module)
    for other in imported(MODULES[module]):
        there = room(other)
        if there in ("", here):
            continue
        if here == RUNTIME:
            assert there in GROUND, f"{module} imports {other}"
        elif there == RUNTIME:
            assert here in OVER_RUNTIME, f"{module} imports {other}"
        else:
            assert ORDER.index(here) < ORDER.index(there), f"{module} imports {other}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: imported(path) - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


def test_a_zygote_imports_only_the_standard_library() -> None:
    assert imported(PACKAGE / "agile" / "python" / "zygote_main.py") == set()


def test_a_stored_run_is_shown_without_a_backend() -> None:
    script = (
        "import sys, firstlight.report.terminal, firstlight.report.page\n"
        "print([name for name in sys.modules if name.startswith(('firstlight.lab', "
        "'firstlight.agile'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
