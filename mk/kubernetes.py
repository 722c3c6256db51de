"""Build Kubernetes, containerd and their tools, once per version, and link them for firstlight.

    kubernetes.py [daemons]

With ``daemons``: the daemons of CNI products, which a cluster can run, instead.

A binary is kept as ``~/.cache/firstlight/COMPONENT-VERSION/NAME`` and linked from
``.venv/libexec/kubernetes``. One that cannot be built leaves ``NAME.missing`` there, with the
reason. Exit status: 0 if all exist, 1 if some could not be built, 2 if none was tried.
``BUILD_SECONDS`` in the environment limits all builds together.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
LINKS = Path(".venv/libexec/kubernetes").absolute()
KEPT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "firstlight"
BUILD_GB = 6.0  # sources and objects of a cold build, in Go's caches
ETCD = (Path(".venv/libexec/etcd/usr/bin/etcd").absolute(), Path("/usr/bin/etcd"))

KUBERNETES = "1.34.4"
CONTAINERD = "2.4.2"
CRI_TOOLS = "1.34.0"
KUBE_ROUTER = "2.1.0"
_COMPONENT = "-X k8s.io/component-base/version.git"


@dataclass(frozen=True)
class Binary:
    """A command of a module. ``seconds`` is for a cold build on two idle cores; ``size`` in MB."""

    name: str
    component: str
    version: str
    module: str
    package: str
    seconds: int
    size: int
    nested: str = "latest"
    build: str = "build"
    tags: str = ""
    ldflags: str = ""
    without: str = ""
    replace: str = ""

    @property
    def path(self) -> Path:
        """The path of the kept binary."""
        return KEPT / f"{self.component}-{self.version}" / self.name


def _kubernetes(name: str, seconds: int, size: int) -> Binary:
    return Binary(
        name, "kubernetes", KUBERNETES, "k8s.io/kubernetes", f"k8s.io/kubernetes/cmd/{name}",
        seconds, size, nested=f"v0.{KUBERNETES.partition('.')[2]}",
        ldflags=f"{_COMPONENT}Version=v{KUBERNETES} {_COMPONENT}Major=1 "
        f"{_COMPONENT}Minor={KUBERNETES.split('.')[1]} {_COMPONENT}TreeState=clean",
    )  # fmt: skip


def _containerd(name: str, seconds: int, size: int) -> Binary:
    module = "github.com/containerd/containerd/v2"
    return Binary(
        name, "containerd", CONTAINERD, module, f"{module}/cmd/{name}", seconds, size,
        tags="no_btrfs no_devmapper no_zfs no_aufs",
        ldflags=f"-X {module}/version.Version={CONTAINERD}",
    )  # fmt: skip


def _cri_tools(name: str, seconds: int, size: int, build: str) -> Binary:
    module = "sigs.k8s.io/cri-tools"
    return Binary(
        name, "cri-tools", CRI_TOOLS, module, f"{module}/cmd/{name}", seconds, size, build=build,
        ldflags=f"-X {module}/pkg/version.Version={CRI_TOOLS}",
    )  # fmt: skip


BINARIES = (
    _containerd("containerd", 60, 39),
    _containerd("containerd-shim-runc-v2", 1, 14),
    _containerd("ctr", 4, 23),
    _kubernetes("kube-apiserver", 266, 102),
    _kubernetes("kube-scheduler", 21, 73),
    _kubernetes("kube-controller-manager", 46, 93),
    _kubernetes("kubelet", 20, 84),
    _kubernetes("kube-proxy", 20, 72),
    _kubernetes("kubectl", 25, 61),
    _cri_tools("crictl", 60, 28, "build"),
    _cri_tools("critest", 30, 29, "test -c"),
    Binary(
        "kube-router",
        "kube-router",
        KUBE_ROUTER,
        "github.com/cloudnativelabs/kube-router/v2",
        "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
        120,
        59,
    ),
)


DAEMONS = (
    Binary(
        "flanneld", "flannel", "0.28.10", "github.com/flannel-io/flannel",
        "github.com/flannel-io/flannel", 120, 53,
        without="backend/tencentvpc\\|backend/udp",  # one's SDK cannot be had, one needs C
    ),
)  # fmt: skip


def main() -> int:
    """Build what is not built yet."""
    LINKS.mkdir(parents=True, exist_ok=True)
    binaries = DAEMONS if "daemons" in sys.argv[1:] else BINARIES
    wanted = [binary for binary in binaries if not binary.path.exists()]
    if wanted and not _has_room(wanted):
        return 2
    failed = 0
    limit = os.environ.get("BUILD_SECONDS")
    until = time.monotonic() + float(limit) if limit else None
    if wanted:
        done = subprocess.run([HERE / "go.sh"], check=True, stdout=subprocess.PIPE, text=True)
        for number, binary in enumerate(wanted, 1):
            failed += not _built(binary, done.stdout.strip(), f"{number}/{len(wanted)}", until)
    for binary in binaries:
        if binary.path.exists():
            _link(binary.path, binary.name)
    if binaries is DAEMONS:
        return 1 if failed else 0
    etcd = next((path for path in ETCD if path.exists()), None)
    if etcd:
        _link(etcd, "etcd")
    else:
        failed += 1
        _missing("etcd", "Debian's package etcd-server cannot be had")
    if not failed:
        print(
            f"kubernetes: {KUBERNETES}, containerd {CONTAINERD}, cri-tools {CRI_TOOLS}: all built"
        )
    return 1 if failed else 0


def _has_room(wanted: list[Binary]) -> bool:
    """Print what the build takes; returns whether the disk has room."""
    minutes = sum(binary.seconds for binary in wanted) / 60
    kept = sum(binary.size for binary in wanted) / 1000
    print(
        f"kubernetes: builds {len(wanted)} programs: about {minutes:.0f} minutes on two quiet "
        f"cores if Go has cached nothing; up to {BUILD_GB:.0f} GB for Go's caches, "
        f"{kept:.1f} GB kept in {KEPT}",
        flush=True,
    )
    KEPT.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(KEPT).free / 1e9
    if free >= BUILD_GB + kept:
        return True
    print(
        f"kubernetes: {KEPT} has {free:.1f} GB free, and the build may take "
        f"{BUILD_GB + kept:.1f} GB: free some, or set XDG_CACHE_HOME and GOPATH to a larger disk",
        file=sys.stderr,
    )
    return False


def _built(binary: Binary, go: str, place: str, until: float | None) -> bool:
    """Build a binary, with a line before and after."""
    print(f"kubernetes: {place} {binary.name} {binary.version}: building", flush=True)
    begun = time.monotonic()
    binary.path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"BUILD": binary.build, "TAGS": binary.tags, "LDFLAGS": binary.ldflags,
                "WITHOUT": binary.without, "REPLACE": binary.replace,
                "JOBS": str(len(os.sched_getaffinity(0)))}  # fmt: skip
    with tempfile.TemporaryDirectory(dir=binary.path.parent) as scratch:
        made = Path(scratch) / binary.name
        words = [HERE / "go-replaced.sh", go, binary.module, f"v{binary.version}",
                 binary.package, made, binary.nested]  # fmt: skip
        status, errors = _run(words, os.environ | settings, until)
        if status == 0 and made.exists():
            made.rename(binary.path)
    taken = time.monotonic() - begun
    if binary.path.exists():
        size = binary.path.stat().st_size / 1e6
        print(f"kubernetes: {place} {binary.name}: {taken:.0f} s, {size:.0f} MB", flush=True)
        return True
    lines = [line for line in errors.splitlines() if not line.startswith("go: downloading")]
    why = " ".join(lines[-3:]).strip() or f"exit status {status}"
    print(f"kubernetes: {place} {binary.name}: failed after {taken:.0f} s: {why}", file=sys.stderr)
    _missing(binary.name, why)
    return False


def _run(
    words: list[str | Path], environment: dict[str, str], until: float | None
) -> tuple[int, str]:
    """A program's exit status and errors. It ends, with its children, at the limit and with us."""
    left = None if until is None else max(0.0, until - time.monotonic())
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, process_group=0)  # fmt: skip
    try:
        _, errors = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        errors = "it takes longer than BUILD_SECONDS allows"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    return process.returncode, errors


def _link(path: Path, name: str) -> None:
    link = LINKS / name
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    (LINKS / f"{name}.missing").unlink(missing_ok=True)


def _missing(name: str, why: str) -> None:
    (LINKS / f"{name}.missing").write_text(f"{why}\n")


if __name__ == "__main__":
    sys.exit(main())
