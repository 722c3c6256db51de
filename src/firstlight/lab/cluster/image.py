"""Makes images: OCI archives, for ``ctr images import`` and skopeo.

Format: https://github.com/opencontainers/image-spec, image-layout.md and manifest.md.
"""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
MACHINE = _MACHINES.get(platform.machine(), platform.machine())
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_PLATFORM = {"architecture": MACHINE, "os": "linux"}


def archive(
    out: Path,
    name: str,
    entrypoint: Sequence[str],
    files: Mapping[str, Path],
    links: Mapping[str, str] = MappingProxyType({}),
    data: Sequence[Mapping[str, bytes]] = (),
) -> None:
    """Write the image ``name`` to ``out``; the arguments of its ``entrypoint`` can be replaced.

    ``files`` are executables by their paths in it, ``links`` are symbolic links' targets by theirs.
    Files of ``data`` are in further layers, one for each element.
    """
    layers = [_layer(files, links), *map(_layer_of, data)]
    config = {"Entrypoint": entrypoint[:1], "Cmd": entrypoint[1:], "Env": ["PATH=/bin"]}
    _write(out, name, config, [(_LAYER, layer, _digest(layer)) for layer in layers])


def pack(out: Path, name: str, config: Mapping[str, object], root: Path) -> None:
    """Write the image ``name`` of a root file system to ``out``, compressed.

    ``config`` is the image's, such as its Entrypoint and Env. All files are root's.
    """
    held = io.BytesIO()
    with gzip.open(held, "wb", compresslevel=1) as packed:
        plain = _Hashed(packed.write)
        with tarfile.open(fileobj=plain, mode="w|") as tar:  # type: ignore[call-overload]
            tar.add(root, ".", filter=_of_root)
    _write(out, name, config, [(f"{_LAYER}+gzip", held.getvalue(), plain.digest)])


def _write(
    out: Path, name: str, config: Mapping[str, object], layers: Sequence[tuple[str, bytes, str]]
) -> None:
    """Write an archive. A layer is its media type, its content, and its tar file's digest."""
    settings = _json(
        {
            **_PLATFORM,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [plain for _, _, plain in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _described("application/vnd.oci.image.config.v1+json", settings),
            "layers": [_described(kind, layer) for kind, layer, _ in layers],
        }
    )
    entry = _described("application/vnd.oci.image.manifest.v1+json", manifest)
    names = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    index = _json(
        {"schemaVersion": 2, "manifests": [{**entry, "annotations": names, "platform": _PLATFORM}]}
    )
    with tarfile.open(out, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", index)
        for blob in (*(layer for _, layer, _ in layers), settings, manifest):
            _add(tar, f"blobs/sha256/{_digest(blob).partition(':')[2]}", blob)


class _Hashed:
    """A file that hashes what is written to it."""

    def __init__(self, to: Callable[[bytes], int]) -> None:
        self._to, self._hash = to, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write, and hash."""
        self._hash.update(data)
        return self._to(data)

    @property
    def digest(self) -> str:
        """The digest of what was written."""
        return f"sha256:{self._hash.hexdigest()}"


def _of_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _layer(files: Mapping[str, Path], links: Mapping[str, str]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for directory in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path, source in files.items():
            _add(tar, path.lstrip("/"), source.read_bytes(), mode=0o755)
        for path, target in links.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return held.getvalue()


def _layer_of(files: Mapping[str, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for path, content in files.items():
            _add(tar, path.lstrip("/"), content)
    return held.getvalue()


def _add(tar: tarfile.TarFile, path: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


def _described(kind: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(document: object) -> bytes:
    return json.dumps(document).encode()
