"""C shares no bare names, calls in no circle of files, and says in each program why it is C."""

import re
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
APART = {"trace.bpf.c", "inside.c", "wasmtime.c", "linkspin.c"}
"""Not linked with others; wasmtime.c has the names of another's header."""
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-w", f"-I{NATIVE}", f"-I{ROOT}/subprojects/cjson")
ENTRY = {"main", "first_light", "first_instruction"}


FOLDERS = sorted(each for each in NATIVE.iterdir() if each.is_dir())


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[Path, Path]:
    """The objects of a folder's files."""
    sources = [each for each in sorted(request.param.glob("*.c")) if each.name not in APART]
    there = tmp_path_factory.mktemp("objects")
    subprocess.run(["gcc", *FLAGS, "-c", *sources], cwd=there, check=True)
    return {source: there / f"{source.stem}.o" for source in sources}


def test_external_c_names_have_prefix(compiled: dict[Path, Path]) -> None:
    bare = []
    for source, made in compiled.items():
        known = prefixes(source)
        names = symbols(made, "--defined-only") - ENTRY
        bare += [f"{source}: {name}" for name in names if not starts(name, known)]
    assert not bare


def test_c_files_call_in_no_circle(compiled: dict[Path, Path]) -> None:
    homes = {
        name: source.name
        for source, made in compiled.items()
        for name in symbols(made, "--defined-only") - ENTRY
    }
    calls = {
        source.name: {homes[name] for name in symbols(made, "--undefined-only") & homes.keys()}
        for source, made in compiled.items()
    }
    try:
        TopologicalSorter(calls).prepare()
    except CycleError as error:
        pytest.fail(" calls ".join(reversed(error.args[1])))


def starts(name: str, known: set[str]) -> bool:
    first = name.split("_")[0]
    return first in known or first.removesuffix("s") in known


def symbols(compiled: Path, which: str) -> set[str]:
    listed = ("nm", "--extern-only", which, "--format=just-symbols", str(compiled))
    return set(subprocess.check_output(listed, text=True).split())


def prefixes(source: Path) -> set[str]:
    """The first word of its name, and of the records of its folder's headers."""
    headers = " ".join(each.read_text() for each in source.parent.glob("*.h"))
    records = re.findall(r"^(?:extern )?struct (\w+) \{", headers, re.MULTILINE)
    return {each.split("_")[0] for each in (source.stem, *records)}


def test_the_first_comment_of_a_program_says_why_it_is_c() -> None:
    programs = {
        source: text
        for source in NATIVE.glob("*/*.c")
        if re.search(r"^int main\(", text := source.read_text(), re.MULTILINE)
    }
    assert len(programs) > 15
    silent = [
        str(source)
        for source, text in programs.items()
        if not re.search(r"\bis C\b", text.partition("*/")[0])
    ]
    assert not silent
