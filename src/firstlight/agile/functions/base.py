"""The root below functions that bring only their code: the host's programs, and nothing else from
the host.

The host's /usr is bound over it read-only. Lambda's runtime for Python is copied from this
interpreter's packages. Copied files are readable by every user of the host.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

_HOST = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534::/:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_COPIED = ("etc/ssl/certs/ca-certificates.crt", "etc/localtime", "etc/ld.so.cache")
RUNTIME = "/var/runtime"
"""Where Lambda's runtime for Python is, over the host's /usr."""
_RUNTIME = ("awslambdaric", "runtime_client", "simplejson", "snapshot_restore_py")
_EMPTY = ("usr", "opt", "root", "var/task", "var/tmp")
_MOUNTED = ("proc", "dev", "tmp")
_OF_INSTANCES = ("etc/hosts", "etc/hostname", "etc/resolv.conf")


def make_skeleton(skeleton: Path) -> None:
    """The tree below an image: mount points for what each instance gets."""
    for name in _MOUNTED:
        (skeleton / name).mkdir(parents=True, exist_ok=True)
    for name in _OF_INSTANCES:
        (skeleton / name).parent.mkdir(exist_ok=True)
        (skeleton / name).touch()
    _open(skeleton)


def make(base: Path) -> None:
    """The root below functions that bring only their code: the host's /usr is bound over it."""
    make_skeleton(base)
    for name in _EMPTY:
        (base / name).mkdir(parents=True, exist_ok=True)
    _link(base)
    for name, text in _ACCOUNTS.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    for name in _COPIED:
        if (Path("/") / name).is_file():
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path("/") / name, base / name)
    for name in _RUNTIME:
        if (spec := find_spec(name)) and spec.origin:
            _copy(Path(spec.origin), base / RUNTIME[1:])
    alternatives = Path("/etc/alternatives")
    if alternatives.is_dir():
        shutil.copytree(alternatives, base / "etc/alternatives", symlinks=True)
    _open(base)


def _open(top: Path) -> None:
    """Make it readable by every user, whatever the umask: each function has its own user."""
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o7777 | (0o555 if path.is_dir() else 0o444))


def bound() -> list[str]:
    """The host's directories to bind over it."""
    return ["usr", *(name for name in _HOST if _is_own(name))]


def _link(base: Path) -> None:
    for name in _HOST:
        host = Path("/") / name
        if host.is_symlink():
            (base / name).symlink_to(host.readlink())
        elif host.is_dir():
            (base / name).mkdir()


def _copy(module: Path, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    if module.name == "__init__.py":
        shutil.copytree(module.parent, into / module.parent.name,
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    else:
        shutil.copyfile(module, into / module.name)


def _is_own(name: str) -> bool:
    host = Path("/") / name
    return host.is_dir() and not host.is_symlink()
