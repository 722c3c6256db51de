"""Build dist/firstlight_VERSION_ARCHITECTURE.deb from the wheel in dist/.

The wheel and all that it needs lie in /usr/lib/firstlight, so the package depends on Debian's
Python alone and disturbs no other Python package. It has the man pages and shell completions.
Compiled dependencies fit one Python: the package is for the Debian release that it is built on.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

LIBRARY = "usr/lib/firstlight"
EXTRAS = "http,images,wasm,telemetry,kubernetes,lambda"
START = f"""#!/usr/bin/python3 -I
import sys

sys.path[:0] = ["/{LIBRARY}"]
from firstlight.__main__ import main

main()
"""
SCRIPTS = {
    "postinst": f"#!/bin/sh\nset -e\npython3 -m compileall -q /{LIBRARY}\n",
    "prerm": f"#!/bin/sh\nset -e\nfind /{LIBRARY} -name __pycache__ -exec rm -r {{}} +\n",
}
SHELLS = {
    "bash": "usr/share/bash-completion/completions/firstlight",
    "zsh": "usr/share/zsh/vendor-completions/_firstlight",
    "fish": "usr/share/fish/vendor_completions.d/firstlight.fish",
}


def main() -> None:
    """Build the package; prints its path."""
    [wheel] = Path("dist").glob("firstlight-*manylinux*.whl")
    version = wheel.name.split("-")[1]
    with tempfile.TemporaryDirectory(prefix="firstlight-deb-") as scratch:
        root = Path(scratch, "root")
        root.mkdir(mode=0o755)
        library = root / LIBRARY
        _run(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check",
             "--no-compile", "--target", library, f"{wheel}[{EXTRAS}]")  # fmt: skip
        shutil.rmtree(library / "bin")  # START takes its place
        _install(root / "usr/bin/firstlight", START, 0o755)
        _run(sys.executable, "mk/man.py", root / "usr/share/man/man1")
        _run("sh", "-c", 'gzip -9n "$0"/*.1', root / "usr/share/man/man1")
        for shell, path in SHELLS.items():
            _install(root / path, _completion(shell), 0o644)
        _install(root / "usr/share/doc/firstlight/copyright", _copyright(library), 0o644)
        _install(root / "DEBIAN/control", _control(version, library), 0o644)
        for script, text in SCRIPTS.items():
            _install(root / "DEBIAN" / script, text, 0o755)
        package = Path("dist") / f"firstlight_{version}_{_architecture()}.deb"
        _run("dpkg-deb", "--root-owner-group", "-Zzstd", "--build", root, package)
    print(package)


def _control(version: str, library: Path) -> str:
    size = sum(file.lstat().st_size for file in library.rglob("*")) >> 10
    python = sysconfig.get_python_version()
    later = f"3.{int(python.partition('.')[2]) + 1}"
    return f"""Package: firstlight
Version: {version}
Architecture: {_architecture()}
Maintainer: The firstlight authors <maintainers@firstlight.invalid>
Section: admin
Priority: optional
Installed-Size: {size}
Depends: python3 (>= {python}), python3 (<< {later}), libc6, libelf1 | libelf1t64, zlib1g
Recommends: runc | crun, iproute2, mount, nftables
Suggests: qemu-system-x86, containernetworking-plugins, bubblewrap, podman, skopeo
Description: laboratory and runtime for fast function instantiation
 Measures how containers, their networks and virtual machines start, divides each
 start into phases and causes, and starts isolated, networked functions from
 prepared parts.
"""


def _copyright(library: Path) -> str:
    [info] = library.glob("firstlight-*.dist-info")
    [words] = re.findall(r"^License-Expression: (.*)$", (info / "METADATA").read_text(), re.M)
    return f"""This package is under {words}.
Those of the libraries in it are in /{LIBRARY}/{info.name}/licenses, and those
of each Python package in its own directory beside that. firstlight's own:

{Path("LICENSE").read_text()}"""


def _completion(shell: str) -> str:
    words = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    program = Path(sys.executable).parent / "firstlight"
    done = subprocess.run(
        [program, "--show-completion", shell],
        env=words, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.replace(str(program), "firstlight")


def _architecture() -> str:
    done = subprocess.run(
        ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _install(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
