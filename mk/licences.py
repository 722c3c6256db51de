"""Add to a wheel the licences of the libraries that are in it.

    python mk/licences.py WHEEL

auditwheel copies Debian's shared libraries into the wheel and names their packages in an SBOM; the
static programs have a C library each. The texts are those that Debian keeps with each package.
"""

import base64
import hashlib
import json
import re
import sys
import zipfile
from pathlib import Path

SHARED = {
    "libbpf1": "LGPL-2.1-only OR BSD-2-Clause",
    "libelf1": "GPL-2.0-or-later OR LGPL-3.0-or-later",
    "libgmp10": "GPL-2.0-or-later OR LGPL-3.0-or-later",
    "libjansson4": "MIT",
    "libmnl0": "LGPL-2.1-or-later",
    "libnftables1": "GPL-2.0-only",
    "libnftnl11": "GPL-2.0-or-later",
    "libnghttp2-14": "MIT",
    "libxtables12": "GPL-2.0-only",
    "libzstd1": "BSD-3-Clause OR GPL-2.0-only",  # of libelf since Debian 13 and Ubuntu 24.04
}
"""By Debian's package. auditwheel copies none that every system has."""
STATIC = {"libc6": "LGPL-2.1-or-later", "musl": "MIT"}
_COMMON = re.compile(r"/usr/share/(common-licenses/L?GPL-[0-9.]*[0-9])")


def add(wheel: Path, root: Path = Path("/")) -> None:
    """Add them, from a Debian root. Exits for a library whose licence is not known here."""
    with zipfile.ZipFile(wheel) as archive:
        members = {each.filename: (each, archive.read(each)) for each in archive.infolist()}
    [info] = {name.partition("/")[0] for name in members if ".dist-info/" in name}
    packages = {*STATIC, *_copied(members[f"{info}/sboms/auditwheel.cdx.json"][1])}
    if unknown := packages - {*SHARED, *STATIC}:
        sys.exit(f"mk/licences.py does not know the licence of {', '.join(sorted(unknown))}")
    texts = _texts(packages, root)
    head, body = members[f"{info}/METADATA"][1].decode().split("\n\n", 1)
    known = {**SHARED, **STATIC}
    more = {f"({known[each]})" if " " in known[each] else known[each] for each in packages}
    [own] = re.findall("(?m)^License-Expression: (.*)$", head)
    lines = [f"License-File: {name}" for name in texts]
    whole = " AND ".join((own, *sorted(more - {*own.split(" AND ")})))
    head = head.replace(f"License-Expression: {own}", f"License-Expression: {whole}")
    changed = {f"{info}/METADATA": "\n".join((head, *lines, "", body)).encode()}
    changed |= {f"{info}/licenses/{name}": text for name, text in texts.items()}
    record = f"{info}/RECORD"
    kept = [line for line in members[record][1].decode().splitlines()
            if line.rpartition(",")[0].rpartition(",")[0] not in changed]  # fmt: skip
    changed[record] = "\n".join([*kept, *map(_recorded, changed, changed.values()), ""]).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (each, content) in members.items():
            archive.writestr(each, changed.pop(name, content))
        for name, content in changed.items():
            archive.writestr(name, content)


def _copied(sbom: bytes) -> set[str]:
    """The packages of Debian, or of a distribution made from it, that an SBOM names."""
    found = (re.match(r"pkg:deb/[^/]+/([^@]+)", each["purl"])
             for each in json.loads(sbom)["components"])  # fmt: skip
    return {match[1].removesuffix("t64") for match in found if match}


def _texts(packages: set[str], root: Path) -> dict[str, bytes]:
    """What Debian says of each package, and the licences that it refers to."""
    texts = {}
    for package in sorted(packages):
        places = [root / f"usr/share/doc/{package}{end}/copyright" for end in ("", "t64")]
        texts[f"third-party/{package}"] = places[not places[0].exists()].read_bytes()
    named = {hit for text in texts.values() for hit in _COMMON.findall(text.decode())}
    return texts | {f"third-party/{each}": (root / "usr/share" / each).read_bytes()
                    for each in sorted(named)}  # fmt: skip


def _recorded(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


if __name__ == "__main__":
    add(Path(sys.argv[1]))
