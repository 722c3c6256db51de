"""The wheel names the licence of each library that is in it, and has its text."""

import base64
import hashlib
import importlib.util
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import firstlight

EVERYWHERE = {"libc6", "zlib1g"}
"""The packages of what auditwheel copies into no wheel, as every system has it."""


@pytest.fixture(scope="module")
def licences() -> ModuleType:
    path = Path(__file__).parents[2] / "mk" / "licences.py"
    spec = importlib.util.spec_from_file_location("licences", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_licence_of_each_linked_library_is_known(licences: ModuleType) -> None:
    if not shutil.which("dpkg"):
        pytest.skip("dpkg, which knows the packages of libraries, is not installed")
    shared, static = set(), set()
    for file in (Path(firstlight.__file__).parent / "_native").rglob("*"):
        if not file.is_file() or not (content := file.read_bytes()).startswith(b"\x7fELF"):
            continue
        linked = subprocess.run(["ldd", file], capture_output=True, text=True).stdout
        paths = [word for word in linked.split() if word.startswith("/")]
        shared |= {Path(path).resolve() for path in paths}
        if not paths and content[18] != 0xF7:  # no program for BPF
            static.add("libc6" if b"GNU C Library" in content else "musl")
    names = [f"*/{path.name}" for path in shared]  # it knows some by a link of /lib
    owners = subprocess.run(["dpkg", "-S", *names], capture_output=True, text=True, check=True)
    found = (line.split(": ") for line in owners.stdout.splitlines())
    packages = {
        package.partition(":")[0].removesuffix("t64")
        for package, path in found
        if Path(path).resolve() in shared
    }
    assert {"libelf1", "libnftables1"} <= packages - EVERYWHERE <= {*licences.SHARED}
    assert static <= {*licences.STATIC}


def test_a_wheel_gets_the_texts_and_the_expression(tmp_path: Path, licences: ModuleType) -> None:
    root = tmp_path / "root"
    texts = {
        f"doc/{name}/copyright": f"of {name}" for name in ("musl", "libc6", "libelf1t64", "libmnl0")
    }
    texts["doc/libelf1t64/copyright"] += ": see /usr/share/common-licenses/GPL-2."
    for name, text in {**texts, "common-licenses/GPL-2": "the GPL"}.items():
        (root / "usr/share" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "usr/share" / name).write_text(text)
    wheel, info = tmp_path / "x.whl", "x-1.dist-info"
    purls = ("pkg:pypi/x", "pkg:deb/debian/libelf1t64@1", "pkg:deb/ubuntu/libmnl0@1")
    sbom = {"components": [{"purl": purl} for purl in purls]}
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x/a.py", "")
        archive.writestr(
            f"{info}/METADATA", "Name: x\nLicense-Expression: Apache-2.0 AND MIT\n\nWords: 1\n"
        )
        archive.writestr(f"{info}/sboms/auditwheel.cdx.json", json.dumps(sbom))
        archive.writestr(
            f"{info}/RECORD", f"x/a.py,sha256=,0\n{info}/METADATA,sha256=,1\n{info}/RECORD,,\n"
        )
    licences.add(wheel, root)
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    metadata = held[f"{info}/METADATA"].decode()
    assert metadata.startswith(
        "Name: x\nLicense-Expression: Apache-2.0 AND MIT AND "
        "(GPL-2.0-or-later OR LGPL-3.0-or-later) AND LGPL-2.1-or-later\nLicense-File: third-party/"
    )
    assert metadata.endswith("\n\nWords: 1\n")
    listed = [line[14:] for line in metadata.splitlines() if line.startswith("License-File: ")]
    assert len(listed) == 5
    assert held[f"{info}/licenses/third-party/common-licenses/GPL-2"] == b"the GPL"
    records = dict(line.split(",", 1) for line in held[f"{info}/RECORD"].decode().splitlines())
    assert records.keys() == held.keys() - {f"{info}/sboms/auditwheel.cdx.json"}
    for name in (f"{info}/METADATA", *(f"{info}/licenses/{each}" for each in listed)):
        digest = base64.urlsafe_b64encode(hashlib.sha256(held[name]).digest()).decode().rstrip("=")
        assert records[name] == f"sha256={digest},{len(held[name])}"
