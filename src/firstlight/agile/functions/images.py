"""Fetches images by skopeo, as a user without rights; blobs are kept by digest.

Everything here blocks. Formats: the OCI image specification, image-spec/{manifest,config}.md.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from firstlight import files
from firstlight.agile.functions.child import Child
from firstlight.agile.functions.errors import (
    BadCode,
    Invalid,
    NoImage,
    NotAnArchive,
    Truncated,
    WrongArchitecture,
    WrongDigest,
)
from firstlight.agile.functions.errors import DiskFull as Full
from firstlight.agile.functions.records import TRANSPORTS, ImageSettings
from firstlight.errors import Failed, Unsupported, longer

LAYERS_MOST = 127
_SECONDS = longer(1800)
_WORDS_MOST = 4096
_PART = 1 << 20
_DOCUMENT_MOST = 4 << 20
Document = TypeVar("Document")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LOCAL = re.compile(r"docker://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?/")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_REACHED = "is the registry's address right, and can this host reach it?"
_STATUS = "(HTTP status:|StatusCode:|status code from registry)"
_REGISTRY = (
    (r"no such host|connection re(fused|set)|i/o timeout|unreachable|handshake timeout|"
     r"server misbehaving|pinging .* EOF", _REACHED),
    (r"HTTP response to HTTPS|does not look like a TLS", "only a registry on loopback may speak "
     "plain HTTP: have it use TLS"),
    (r"x509|certificate|tls: ", "have its certificate name it, and put that of its authority into "
     "/etc/containers/certs.d/HOST:PORT/ca.crt"),
    (rf"toomanyrequests|{_STATUS} 429\b",
     "it limits requests: wait, or log in as root: skopeo login REGISTRY"),
    (rf"{_STATUS} 5\d\d\b", "the registry failed: try again later, or look into its log"),
    (rf"unauthorized|authentication required|denied|{_STATUS} 40[13]\b",
     "log in as root: skopeo login REGISTRY"),
    (r"invalid character|schema version|no FSLayers|malformed HTTP|status code from registry|"
     r"stopped after", "is there a registry at that address? It does not answer as one"),
)  # fmt: skip
_WORDS = (
    (r"no space left on device", Full, "free space there, or configure another store"),
    (r"[Dd]igest did not match|does not match (digest|expected)|digest mismatch|invalid checksum",
     WrongDigest, "push it again: its content is not what its digest names"),
    (r"unexpected EOF|truncated|size mismatch|[Ss]ize does not match|EOF", Truncated,
     "push it again: a blob ends too early"),
    (r"no image found in .* for architecture|no image found in manifest list", WrongArchitecture,
     "build it for this machine's architecture"),
    (r"invalid character|cannot unmarshal|manifest\.json: file does not exist", NotAnArchive,
     "build it again: its manifest or its configuration is wrong"),
    (r"manifest list instead of a manifest", NotAnArchive,
     "give the image's own digest: its index has another index in it"),
    (r"more than one image", NoImage, "say which: oci:DIRECTORY:TAG"),
)  # fmt: skip


class Descriptor(Struct, rename="camel", frozen=True):
    """A blob of an image."""

    digest: str
    size: int = 0
    media_type: str = ""


class Manifest(Struct, frozen=True):
    """An image's parts."""

    config: Descriptor
    layers: list[Descriptor]


class RootFiles(Struct, frozen=True):
    """The digests of the layers, uncompressed."""

    diff_ids: list[str] = []


class Configuration(Struct, frozen=True):
    """An image's configuration."""

    architecture: str = ""
    os: str = ""
    config: ImageSettings | None = None
    rootfs: RootFiles = RootFiles()


class Image(Struct, frozen=True):
    """A fetched image; ``digest`` is its manifest's."""

    digest: str
    manifest: Manifest
    configuration: Configuration


class _Index(Struct, frozen=True):
    manifests: list[Descriptor]


def fetch(source: str, stage: Path, blobs: Path, uid: int) -> Image:
    """Fetch an image's missing blobs into ``blobs``, and check it. Raises BadCode, Unsupported.

    ``stage`` is an empty directory of that user.
    """
    if not shutil.which("skopeo"):
        raise Unsupported("skopeo is not installed", "apt install skopeo")
    local = not source.startswith("docker://")
    if local and not Path(source.split(":", 2)[1]).exists():
        raise NoImage(f"{source} does not exist", "write it as TRANSPORT:PATH[:TAG]")
    if local:
        _check_files(source)
    else:
        _check_way(stage, uid)
    words = [*_confined(uid, local), *_copying(source, stage, blobs, uid)]
    try:
        with Child(
            words, _SECONDS, _WORDS_MOST, env=_environment(stage), cwd=stage,
            stdout=subprocess.DEVNULL,
        ) as child:  # fmt: skip
            status = child.finish()
    except TimeoutError:
        raise NoImage(f"{source}: fetching it takes more than {_SECONDS:g} s") from None
    if status:
        raise _failure(source, child.errors.decode(errors="replace"))
    return _check_layout(source, stage / "layout", blobs)


def open_verified(path: Path, digest: str, what: str) -> int:
    """Open a blob whose content has that digest; returns a descriptor. Raises BadCode."""
    try:
        descriptor = files.open_regular(path, os.O_NOFOLLOW)
    except OSError as error:
        raise Truncated(f"{what} is missing: {error.strerror}", "fetch the image again") from error
    os.fchown(descriptor, 0, 0)  # it must not change after the check
    os.fchmod(descriptor, 0o644)
    hashed = hashlib.sha256()
    while part := os.read(descriptor, _PART):
        hashed.update(part)
    if digest != f"sha256:{hashed.hexdigest()}":
        os.close(descriptor)
        with suppress(OSError):
            path.unlink()
        raise WrongDigest(f"{what} is not what its digest names", "add the image again")
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def blob(blobs: Path, digest: str) -> Path:
    """The path of a blob. Raises NotAnArchive if it is not a digest."""
    if not _DIGEST.fullmatch(digest):
        raise NotAnArchive(f"the image names a blob {digest[:100]!r}", "digests are of SHA-256")
    return blobs / digest.replace(":", "/")


def _copying(source: str, stage: Path, blobs: Path, uid: int) -> list[str]:
    words = ["skopeo", "copy", "--quiet", f"--override-arch={_machine()}", "--override-os=linux"]
    if not Path("/etc/containers/policy.json").exists():
        words.insert(1, "--insecure-policy")
    if _LOCAL.match(source):
        words.append("--src-tls-verify=false")
    if auth := _authentication(stage, uid):
        words.append(f"--src-authfile={auth}")
    return [*words, f"--dest-shared-blob-dir={blobs}", source, f"oci:{stage}/layout:image"]


def _environment(stage: Path) -> dict[str, str]:
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(stage),
                   "TMPDIR": str(stage), "XDG_RUNTIME_DIR": str(stage)}  # fmt: skip
    for name in ("https_proxy", "http_proxy", "no_proxy", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return environment


def _check_files(source: str) -> None:
    transport, name = source.split(":", 2)[:2]
    path = Path(name)
    parts = [path / "oci-layout", path / "index.json", *path.glob("blobs/*/*")]
    for each in parts if transport == "oci" else [path]:
        if each.exists() and not each.is_file():
            raise NotAnArchive(f"cannot read {each}: it is not a regular file",
                               "a FIFO or a device has no image")  # fmt: skip


def _check_way(stage: Path, uid: int) -> None:
    for parent in stage.parents:
        if not parent.stat().st_mode & 0o001:
            raise Failed(f"user {uid}, who fetches images, may not enter {parent}",
                         f"chmod o+x {parent}, or configure another store")  # fmt: skip


def _check_layout(source: str, layout: Path, blobs: Path) -> Image:
    try:
        text = files.read_regular(layout / "index.json", _DOCUMENT_MOST)
        index = msgspec.json.decode(text, type=_Index)
        digest = index.manifests[0].digest
        manifest = _document(blobs, digest, Manifest)
        configuration = _document(blobs, manifest.config.digest, Configuration)
    except (
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OSError, IndexError,
    ) as error:  # fmt: skip
        raise NotAnArchive(
            f"{source} is not an image: {error}",
            "build it again: its manifest or its configuration is wrong",
        ) from error
    machine = f"{configuration.os or 'linux'}/{configuration.architecture or _machine()}"
    if machine != f"linux/{_machine()}":
        raise WrongArchitecture(f"{source} is for {machine}, and this machine is "
                                f"linux/{_machine()}", "build it for this machine")  # fmt: skip
    if not 0 < len(manifest.layers) <= LAYERS_MOST:
        raise NotAnArchive(f"{source} has {len(manifest.layers)} layers",
                           f"from 1 to {LAYERS_MOST} are possible")  # fmt: skip
    if len(configuration.rootfs.diff_ids) != len(manifest.layers):
        raise NotAnArchive(f"{source}: its configuration names "
                           f"{len(configuration.rootfs.diff_ids)} layers, its manifest "
                           f"{len(manifest.layers)}", "is it an image of files?")  # fmt: skip
    return Image(digest, manifest, configuration)


def _document(blobs: Path, digest: str, kind: type[Document]) -> Document:
    text = files.read_regular(blob(blobs, digest), _DOCUMENT_MOST)
    if digest != f"sha256:{hashlib.sha256(text).hexdigest()}":
        raise WrongDigest(f"the blob {digest} is not what its digest names", "push it again")
    return msgspec.json.decode(text, type=kind)


def _machine() -> str:
    return _MACHINES.get(platform.machine(), platform.machine())


def _confined(uid: int, local: bool) -> list[str]:
    """Run without rights; for a local image without a network, but able to read what root can. All
    end with this thread.
    """
    alone = ["setpriv", "--pdeathsig=KILL", "unshare", "--pid", "--fork", "--kill-child=KILL",
             *(["--net"] if local else []), "--"]  # fmt: skip
    words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs",
             "--pdeathsig=KILL"]  # again: a change of user clears unshare's  # fmt: skip
    if not local:
        return [*alone, *words, "--inh-caps=-all", "--bounding-set=-all"]
    reads = "-all,+dac_read_search"
    return [*alone, *words, f"--inh-caps={reads}", f"--ambient-caps={reads}",
            f"--bounding-set={reads}"]  # fmt: skip


def _authentication(stage: Path, uid: int) -> Path | None:
    """Make root's credentials for registries readable by that user while it fetches."""
    named = os.environ.get("REGISTRY_AUTH_FILE")
    for path in (named, "/run/containers/0/auth.json", "/root/.docker/config.json"):
        if path and Path(path).is_file():
            copy = stage / "auth.json"
            try:
                copy.write_bytes(files.read_regular(Path(path), _DOCUMENT_MOST))
            except OSError as error:
                raise BadCode(f"cannot copy the logins of {path}: {error.strerror}") from error
            os.chown(copy, uid, uid)
            copy.chmod(0o600)
            return copy
    return None


def _failure(source: str, words: str) -> BadCode:
    """skopeo's message as an error of its kind."""
    messages = re.findall(r'msg="((?:[^"\\]|\\.)*)"', words)
    reason = (messages[-1].replace('\\"', '"') if messages else words.strip())[-500:]
    name = re.sub(r"(:[^/]*)?(@.*)?$", "", source.removeprefix("docker://"))
    text = reason.replace(source, "").replace(name, "")  # which may be any word
    for pattern, remedy in _REGISTRY if source.startswith("docker://") else ():
        if re.search(pattern, text):
            return NoImage(f"{source}: {reason}", remedy)
    for pattern, kind, remedy in _WORDS:
        if re.search(pattern, text):
            return kind(f"{source}: {reason}", remedy)
    return NoImage(f"{source}: {reason}", "is its name right?")


def check_source(source: str) -> None:
    """Raise Invalid if a source's transport is unknown."""
    if not source.startswith(TRANSPORTS) or any(c in source for c in "\0\n "):
        raise Invalid(
            f"{source[:200]!r} is not an image",
            f"give one that begins with {', '.join(TRANSPORTS)}",
        )
