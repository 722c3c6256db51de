"""Builds an image from this environment: build/NAME.tar, an OCI archive.

    .venv/bin/python mk/image.py agent    the node's agent, for deploy/kubernetes
    .venv/bin/python mk/image.py functions the runtime of functions, for deploy/kubernetes/functions
    .venv/bin/python mk/image.py lab      what measures on nodes, for firstlight run --nodes
    .venv/bin/python mk/image.py watch    firstlight watch, for deploy/kubernetes/watch

It needs no network. An image has this Python, a part of firstlight with what that imports and
executes, and the shared libraries that these are linked with.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from firstlight.lab.cluster import image

SITE = "/usr/lib/firstlight"
ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"


@dataclass(frozen=True)
class Image:
    """``programs`` of this machine come along where they are installed; ``native`` () is all."""

    needed: tuple[str, ...]
    left_out: tuple[str, ...]
    native: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()


IN_ALL = ("msgspec", "prometheus-client", "pyroute2", "rich", "typer")
IMAGES = {
    "agent": Image(
        (*IN_ALL, "kubernetes"),
        ("lab", "report", "analysis", "claims", "trace"),
        native=("net-helper", "cni"),
    ),
    "functions": Image(
        (
            *IN_ALL,
            "awslambdaric",
            "h11",
            "httptools",
            "kubernetes",
            "starlette",
            "uvicorn",
            "zstandard",
        ),
        ("lab", "report", "analysis", "claims", "trace"),
        programs=("skopeo", "mount", "umount", "nft", "rm", "tar"),
    ),
    "lab": Image(
        (*IN_ALL, "numpy", "polars"),
        ("report", "claims"),
        programs=("runc", "crun", "mount", "umount", "ip", "nft", "unshare"),
    ),
    "watch": Image(
        (
            *IN_ALL,
            "httptools",
            "numpy",
            "opentelemetry-exporter-otlp-proto-http",
            "polars",
            "starlette",
            "uvicorn",
        ),
        ("claims",),
        native=("trace", "trace.bpf.o"),
    ),
}
STDLIB_LEFT_OUT = ("__pycache__", "test", "tests", "idlelib", "tkinter", "ensurepip", "turtledemo",
                   "lib2to3", "pydoc_data", "site-packages", "dist-packages")  # fmt: skip


def distributions(needed: tuple[str, ...]) -> set[str]:
    """The names of what is needed, and of what that needs."""
    result: set[str] = set()
    waiting = list(needed)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in result:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        result.add(name)
        waiting += [re.match(r"[A-Za-z0-9._-]+", each)[0] for each in required
                    if "extra ==" not in each]  # type: ignore[index]  # fmt: skip
    return result


def copy(source: Path, rootfs: Path) -> None:
    """A file to the path that it has here."""
    target = rootfs / source.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(source, target)


def libraries(rootfs: Path) -> set[Path]:
    """The shared libraries of every program and library in it."""
    needed: set[Path] = set()
    for file in rootfs.rglob("*"):
        if file.is_symlink() or not file.is_file() or file.open("rb").read(4) != b"\x7fELF":
            continue
        listed = subprocess.run(["ldd", file], capture_output=True, text=True).stdout
        needed |= {Path(shared) for shared in re.findall(r"(/\S+) \(0x", listed)}
    return {library for library in needed if not str(library).startswith(str(rootfs))}


def fill(rootfs: Path, content: Image) -> None:
    """Everything that the image has."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    site = rootfs / SITE.lstrip("/")
    shutil.copytree(stdlib, rootfs / stdlib.relative_to("/"),
                    ignore=shutil.ignore_patterns(*STDLIB_LEFT_OUT))  # fmt: skip
    python = Path(sys.executable).resolve()
    copy(python, rootfs)
    for name in distributions(content.needed):
        for file in importlib.metadata.files(name) or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and "__pycache__" not in file.parts and source.is_file():
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    package = Path(sysconfig.get_path("purelib")) / "firstlight"
    left_out = shutil.ignore_patterns("__pycache__", "tests", *content.left_out)
    shutil.copytree(package, site / "firstlight", ignore=left_out)
    for metadata in package.parent.glob("firstlight-*.dist-info"):
        shutil.copytree(metadata, site / metadata.name)
    native = site / "firstlight" / "_native"
    for file in native.iterdir():
        if content.native and file.name not in content.native:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    start = rootfs / "usr/bin/firstlight"
    start.write_text(
        f"#!{python} -P\nimport sys\nsys.path.insert(0, '{SITE}')\n"
        "from firstlight.__main__ import main\nmain()\n"
    )
    start.chmod(0o755)
    (rootfs / "usr/bin/python3").unlink(missing_ok=True)
    (rootfs / "usr/bin/python3").symlink_to(python)
    for program in filter(None, map(shutil.which, content.programs)):
        target = rootfs / "usr/bin" / Path(program).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(program, target)
    for library in libraries(rootfs):
        copy(library, rootfs)
    for directory in ("etc", "run", "tmp", "proc", "sys", "dev"):
        (rootfs / directory).mkdir(exist_ok=True)


def main() -> None:
    """Fill a root file system, and make an image of it."""
    [name] = sys.argv[1:]
    version = importlib.metadata.version("firstlight")
    rootfs, out = BUILD / f"{name}-rootfs", BUILD / f"{name}.tar"
    shutil.rmtree(rootfs, ignore_errors=True)
    rootfs.mkdir(parents=True)
    fill(rootfs, IMAGES[name])
    title = f"docker.io/firstlight/{name}:{version}"
    variables = ("PATH=/usr/bin:/bin", f"PYTHONPATH={SITE}", "PYTHONDONTWRITEBYTECODE=1")
    image.pack(out, title, {"Entrypoint": ["/usr/bin/firstlight"], "Env": variables}, rootfs)
    shutil.rmtree(rootfs)
    print(f"{out}: {title}, {out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
