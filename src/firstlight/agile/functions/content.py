"""Functions' code on disk: directory trees by number, which never change, and images' blobs.

An image's layer is a tree over those below it. Its key is the chain of the blobs' digests, which
are checked here; what an image claims is not used. A tree that is not in the database is not
complete: it is removed at the next opening. Everything here blocks.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from firstlight import files
from firstlight.agile.functions import images
from firstlight.agile.functions.child import Child
from firstlight.agile.functions.errors import (
    BadCode,
    Conflict,
    DiskFull,
    NotAnArchive,
    TooLarge,
    WrongDigest,
)
from firstlight.agile.functions.images import Image
from firstlight.agile.functions.records import Code
from firstlight.agile.functions.store import Store
from firstlight.agile.functions.unpack import Job, Unpacker, unpacking
from firstlight.agile.wasm.workers import MODULE_MAX
from firstlight.errors import Failed, longer

ZIP_MOST = 250 << 20
"""Bytes of a zip file's content, as Lambda limits them."""
IMAGE_MOST = 10 << 30
_COPY_SECONDS, _WORDS_MOST = longer(1800.0), 500
_PART = 1 << 20
_MAGIC = b"\0asm\x01\0\0\0"
_TASK = "var/task"


class _Making:
    def __init__(self) -> None:
        self.lock = threading.RLock()


class Content:
    """The trees and blobs below a directory, unpacked by user ``uid``."""

    def __init__(self, directory: Path, store: Store, uid: int) -> None:
        self._directory, self._store = directory, store
        self._trees, self._blobs, self._work = (
            directory / name for name in ("trees", "blobs", "work")
        )
        self._lock = threading.Lock()
        self._making: WeakValueDictionary[str, _Making] = WeakValueDictionary()
        for path, mode in ((self._trees, 0o700), (self._work, 0o711), (self._blobs, 0o711)):
            path.mkdir(exist_ok=True)
            path.chmod(mode)
        if self._blobs.stat().st_uid == 0:
            os.chown(self._blobs, uid, uid)
        self.uid = self._blobs.stat().st_uid  # the user who unpacked the trees must remain the same

    def path(self, number: int) -> Path:
        """The directory of a tree."""
        return self._trees / str(number)

    def add_image(self, source: str) -> tuple[Code, Image]:
        """Fetch an image, and unpack its missing layers. Raises BadCode."""
        images.check_source(source)
        with self._stage() as stage:
            image = images.fetch(source, stage, self._blobs, self.uid)
        chain, trees = "", list[int]()
        with unpacking() as unpacker:
            for layer, difference in zip(
                image.manifest.layers, image.configuration.rootfs.diff_ids, strict=True
            ):
                chain = hashlib.sha256(f"{chain} {layer.digest}".encode()).hexdigest()
                what = f"the layer {layer.digest[:19]} of {source}"
                key = f"layer:{chain}"
                trees.append(self._layer(unpacker, key, layer.digest, difference, trees, what))
        blobs = [image.digest, image.manifest.config.digest]
        blobs += [layer.digest for layer in image.manifest.layers]
        size = sum(layer.size for layer in image.manifest.layers)
        return Code(source=source, digest=image.digest, size=size, trees=tuple(trees),
                    blobs=tuple(dict.fromkeys(blobs))), image  # fmt: skip

    def add_zip(self, source: str, archive: bytes | Path) -> Code:
        """Unpack a zip file into /var/task, over the host's /usr. Raises BadCode."""
        descriptor = _open_archive(archive)
        try:
            digest, size = _digest(descriptor)
            with unpacking() as unpacker:
                number = self._tree(unpacker, f"zip:{digest}", source, descriptor, kind="zip",
                                    into=_TASK, bytes=ZIP_MOST)  # fmt: skip
        finally:
            os.close(descriptor)
        return Code(source=source, digest=digest, size=size, trees=(number,), base=True)

    def add_directory(self, path: Path, names: list[str] | None = None, root: bool = False) -> Code:
        """Copy a directory, or some names in it, as a whole root or into /var/task.

        Raises BadCode, Conflict if it changes meanwhile.
        """
        with self._stage() as stage, (stage / "copy.tar").open("w+b") as archive:
            with Child(
                ["setpriv", "--pdeathsig=KILL", "tar", "--create", "--sort=name",
                 "--format=posix", "--owner=0", "--group=0",
                 "--pax-option=delete=atime,delete=ctime", "--one-file-system",
                 f"--directory={path}", "--", *(names or ["."])],
                _COPY_SECONDS, _WORDS_MOST, stdout=archive, env={"PATH": "/usr/bin:/bin"},
            ) as child:  # fmt: skip
                try:
                    status = child.finish()
                except TimeoutError:
                    seconds = f"{_COPY_SECONDS:.0f} s"
                    raise BadCode(f"cannot copy {path}: it takes more than {seconds}") from None
            words = child.errors.decode(errors="replace").strip()
            if status == 1:
                raise Conflict(f"{path} changed while it was copied: {words}", "try again")
            if status:
                if "No space left" in words or "Wrote only" in words:
                    raise DiskFull(f"cannot copy {path}: no space left in {self._work}",
                                   "free space there, or configure another store")  # fmt: skip
                raise BadCode(f"cannot copy {path}: {words}")
            digest, size = _digest(archive.fileno())
            into = "" if root else _TASK
            with unpacking() as unpacker:
                number = self._tree(
                    unpacker, f"directory:{into}:{digest}", str(path), archive.fileno(),
                    kind="tar", into=into, bytes=IMAGE_MOST,
                )  # fmt: skip
        source = str(path / names[0]) if names and len(names) == 1 else str(path)
        return Code(source=source, digest=digest, size=size, trees=(number,), base=not root)

    def add_module(self, path: Path) -> Code:
        """Copy a WebAssembly module. Raises BadCode."""
        descriptor = _open_archive(path)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise NotAnArchive(
                    f"{path} is not a WebAssembly module", "compile to wasm32-wasip1"
                )
            digest, size = _digest(descriptor)
            if size > MODULE_MAX:
                raise TooLarge(f"{path} has {size} bytes", f"at most {MODULE_MAX} are possible")
            with self._alone(key := f"wasm:{digest}"):
                if key not in (known := self._store.trees()):
                    number = self._store.next("tree")
                    with self._removed_on_error(self.path(number)) as tree, _named_full(str(path)):
                        tree.mkdir(mode=0o755)
                        with (tree / "module.wasm").open("xb") as copy:
                            shutil.copyfileobj(file, copy, _PART)
                    self._complete(key, number, size)
                else:
                    number = known[key][0]
        return Code(source=str(path), digest=digest, size=size, trees=(number,),
                    module="module.wasm")  # fmt: skip

    def collect(self, codes: Iterable[Code]) -> list[int]:
        """Remove trees that none of these needs; returns their numbers. Nothing may be added
        meanwhile.
        """
        codes = list(codes)
        needed = {number for code in codes for number in code.trees}
        gone = [number for number, _ in self._store.trees().values() if number not in needed]
        self._store.delete_trees(gone)
        for number in gone:
            _remove(self.path(number))
        blobs = {digest for code in codes for digest in code.blobs}
        for path in self._blobs.glob("*/*"):
            if f"{path.parent.name}:{path.name}" not in blobs:
                path.unlink(missing_ok=True)
        return gone

    def recover(self) -> None:
        """Remove what a killed process left incomplete."""
        known = {str(number) for number, _ in self._store.trees().values()}
        for path in [*self._work.iterdir(), *self._trees.iterdir()]:
            if path.parent == self._work or path.name not in known:
                _remove(path)

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Make a tree with that key once, beside others."""
        with self._lock:
            making = self._making.setdefault(key, _Making())
        with making.lock:
            yield

    def _layer(
        self, unpacker: Unpacker, key: str, digest: str, difference: str, below: list[int],
        what: str,
    ) -> int:  # fmt: skip
        with self._alone(key):
            known = self._store.trees()
            if key in known:
                return known[key][0]
            descriptor = images.open_verified(images.blob(self._blobs, digest), digest, what)
            try:
                lower = ":".join(f"trees/{number}" for number in reversed(below))
                return self._tree(unpacker, key, what, descriptor, difference, kind="tar",
                                  layer=True, lower=lower, bytes=IMAGE_MOST)  # fmt: skip
            finally:
                os.close(descriptor)

    def _tree(
        self, unpacker: Unpacker, key: str, what: str, archive: int, difference: str = "",
        **how: str | int | bool,
    ) -> int:  # fmt: skip
        """The tree with that key, unpacked if missing. ``how`` are fields of a Job."""
        with self._alone(key):
            known = self._store.trees()
            if key in known:
                return known[key][0]
            number = self._store.next("tree")
            with self._removed_on_error(self.path(number)) as tree, self._stage() as stage:
                for path in (tree, stage / "target", stage / "overlay"):
                    path.mkdir(mode=0o755)
                    os.chown(path, self.uid, self.uid)
                relative = [str(path.relative_to(self._directory))
                            for path in (tree, stage / "target", stage / "overlay")]  # fmt: skip
                upper, target, work = relative
                job = Job(directory=str(self._directory), upper=upper, target=target, work=work,
                          uid=self.uid, **how)  # type: ignore[arg-type]  # fmt: skip
                os.lseek(archive, 0, os.SEEK_SET)
                unpacked = unpacker.unpack(job, archive, what)
                if difference and unpacked.digest != difference:
                    raise WrongDigest(
                        f"{what}: unpacked it is {unpacked.digest[:19]}, and the image names "
                        f"{difference[:19]}", "build it again",
                    )  # fmt: skip
                self._complete(key, number, unpacked.bytes)
            return number

    def _complete(self, key: str, number: int, size: int) -> None:
        descriptor = os.open(self.path(number), os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(descriptor):
                raise DiskFull(f"cannot write {self.path(number)}: "
                               f"{os.strerror(ctypes.get_errno())}")  # fmt: skip
        finally:
            os.close(descriptor)
        self._store.add_tree(key, number, size)

    @contextmanager
    def _stage(self) -> Iterator[Path]:
        """Make an empty directory, owned by the user who unpacks, and remove it in the end."""
        path = Path(tempfile.mkdtemp(dir=self._work))
        try:
            os.chown(path, self.uid, self.uid)
            yield path
        finally:
            _remove(path)

    @contextmanager
    def _removed_on_error(self, path: Path) -> Iterator[Path]:
        try:
            yield path
        except BaseException:
            _remove(path)
            raise


_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def _named_full(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskFull(f"cannot copy {what}: {error.strerror}", "free space there") from error


def _remove(path: Path) -> None:
    """Remove a tree by rm, which has no limit on depth."""
    done = subprocess.run(
        ["rm", "-rf", "--one-file-system", "--", path], capture_output=True, check=False
    )
    if done.returncode:
        raise Failed(f"cannot remove {path}: {done.stderr.decode(errors='replace').strip()}")


def _open_archive(archive: bytes | Path) -> int:
    """Open a file, or make a memory file with these bytes; returns a descriptor. Raises
    NotAnArchive.
    """
    if isinstance(archive, bytes):
        descriptor = os.memfd_create("archive", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(archive)
        return descriptor
    try:
        return files.open_regular(archive)
    except OSError as error:
        raise NotAnArchive(f"cannot read {archive}: {error.strerror}") from error


def _digest(descriptor: int) -> tuple[str, int]:
    """The digest and size of a file."""
    hashed, size = hashlib.sha256(), 0
    os.lseek(descriptor, 0, os.SEEK_SET)
    while part := os.read(descriptor, _PART):
        hashed.update(part)
        size += len(part)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return f"sha256:{hashed.hexdigest()}", size
