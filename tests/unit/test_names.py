"""C shares no bare names, calls in no circle of files, and says in each program why it is C."""

import re
import subprocess
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
APART = {"trace.bpf.c", "inside.c", "wasmtime.c", "linkspin.c"}
"""Not linked with others; wasmtime.c has the names of another's header."""
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-w", f"-I{NATIVE}", f"-I{ROOT}/subprojects/cjson")
ENTRY = {"main", "first_light", "first_instruction"}


FOLDERS = sorted(each for each in NATIVE.iterdir() if each.is_dir())


class Symbol(NamedTuple):
    """An external name of a file, which it defines or uses."""

    source: Path
    name: str
    is_defined: bool


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def symbols(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Symbol]:
    """The external names of a folder's files, but for where programs begin."""
    sources = {each.stem: each for each in request.param.glob("*.c") if each.name not in APART}
    there = tmp_path_factory.mktemp("objects")
    subprocess.run(["gcc", *FLAGS, "-c", *sources.values()], cwd=there, check=True)
    words = ["nm", "--extern-only", "--print-file-name", "--format=posix"]
    words += [str(each) for each in there.glob("*.o")]
    lines = [line.split() for line in subprocess.check_output(words, text=True).splitlines()]
    return [
        Symbol(sources[Path(file.rstrip(":")).stem], name, kind not in "Uwv")
        for file, name, kind, *_ in lines
        if name not in ENTRY
    ]


def test_external_c_names_have_prefix(symbols: list[Symbol]) -> None:
    bare = [
        f"{source}: {name}"
        for source, name, is_defined in symbols
        if is_defined and not starts(name, prefixes(source))
    ]
    assert not bare


def test_c_files_call_in_no_circle(symbols: list[Symbol]) -> None:
    homes = {name: source.name for source, name, is_defined in symbols if is_defined}
    calls: dict[str, set[str]] = defaultdict(set)
    for source, name, is_defined in symbols:
        if not is_defined and name in homes:
            calls[source.name].add(homes[name])
    try:
        TopologicalSorter(calls).prepare()
    except CycleError as error:
        pytest.fail(" calls ".join(reversed(error.args[1])))


def starts(name: str, known: set[str]) -> bool:
    first = name.split("_")[0]
    return first in known or first.removesuffix("s") in known


@cache
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
