"""C that is linked together shares no bare names, and each program says why it is C."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
APART = {"trace.bpf.c", "inside.c", "wasmtime.c", "linkspin.c"}
"""Not linked with others; wasmtime.c has the names of another's header."""
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-w", f"-I{NATIVE}", f"-I{ROOT}/subprojects/cjson")
ENTRY = {"main", "first_light", "first_instruction"}


def test_external_c_names_have_prefix(tmp_path: Path) -> None:
    bare = []
    for folder in sorted(each for each in NATIVE.iterdir() if each.is_dir()):
        sources = [each for each in sorted(folder.glob("*.c")) if each.name not in APART]
        subprocess.run(["gcc", *FLAGS, "-c", *sources], cwd=tmp_path, check=True)
        for source in sources:
            known = prefixes(source)
            names = defined(tmp_path / f"{source.stem}.o") - ENTRY
            bare += [f"{source}: {name}" for name in names if not starts(name, known)]
    assert not bare


def starts(name: str, known: set[str]) -> bool:
    first = name.split("_")[0]
    return first in known or first.removesuffix("s") in known


def defined(compiled: Path) -> set[str]:
    listed = ("nm", "--extern-only", "--defined-only", "--format=just-symbols", str(compiled))
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
