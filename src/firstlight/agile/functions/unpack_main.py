"""Unpacks untrusted archives, each in a fork that confines itself before it is given the archive.

``unpack.py`` starts it as root, verifies each fork from outside, that it has no rights left, and
only then lets it read. The standard library and zstandard are imported before the fork leaves the
host's files. Then it sees only the directory that it writes to. Its last output is one line of JSON
that says how it ended.

A layer is applied to the layers below it, through an overlay, so that its white-outs and hard links
find their targets. Owners, device nodes in /dev, FIFOs, and the bits for setuid, setgid and others'
writing are dropped: a function only reads its image.
"""

import ctypes
import errno
import hashlib
import json
import os
import resource
import shutil
import socket
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from typing import Any, BinaryIO, Protocol

try:
    import zstandard
except ImportError:  # layers of that kind are then refused by name
    zstandard = None  # type: ignore[assignment,unused-ignore]

NAMESPACES = 0x20000 | 0x40000000 | 0x08000000 | 0x04000000  # mounts, network, IPC, host name
_PRIVATE, _BIND, _REMOUNT, _RECURSIVE = 0x40000, 0x1000, 0x20, 0x4000
_HARMLESS = 2 | 4 | 8  # nosuid, nodev, noexec
_NO_NEW_PRIVILEGES, _DEATH_SIGNAL, _DROP_BOUND, _SECCOMP = 38, 1, 24, 22
_FILTER = 2
_PART, _BLOCK = 1 << 20, 512
_MEMORY = 2 << 30
_WINDOW_MAX = 1 << 27
_NAME_MOST, _DEPTH_MOST = 4000, 500  # of a path below the root
_LATEST = float(1 << 33)  # seconds that every file system can store
_UNIX_TIME, _EPOCH_OF_ZIP = 0x5455, 315532800
_GO = 0
_OTHERS = {b"BZh": "bzip2", b"\xfd7zX": "xz", b"\x04\x22\x4d\x18": "lz4"}

_libc = ctypes.CDLL(None, use_errno=True)
"".encode(
    "cp437"
)  # for zip files: the codec must be loaded before the host's files are out of reach


class Reader(Protocol):
    """A stream to read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Read some bytes; empty at the end."""


class Refused(Exception):
    """The archive is refused; ``kind`` is a class of ``errors.py``."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class Counted:
    """Reads a tar file and computes its digest. Some writers, such as umoci, omit its end."""

    def __init__(self, stream: Reader) -> None:
        self._stream, self._digest = stream, hashlib.sha256()
        self.size, self._ended = 0, False

    def read(self, size: int = -1) -> bytes:
        """Read like a file."""
        data = self._stream.read(size)
        self._digest.update(data)
        self.size += len(data)
        if not data and not self._ended:
            self._ended = True
            return bytes(-self.size % _BLOCK + 2 * _BLOCK)
        return data

    def end(self) -> str:
        """Read the rest; returns the digest of the whole."""
        while self.read(_PART):
            pass
        return f"sha256:{self._digest.hexdigest()}"


class Header(tarfile.TarInfo):
    """A member of a tar file. A block that is no header is an error, and not the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        """Read a header. Raises tarfile.ReadError, or what says that the archive ends there."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined,unused-ignore]
            raise tarfile.ReadError(str(error)) from None


class Gunzip:
    """The content of a gzip stream. Unlike gzip.GzipFile it never seeks."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._held = stream, b""
        self._member = zlib.decompressobj(wbits=31)
        self._begun = False

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes; empty at the end."""
        data = b""
        while not data:
            if self._member.eof:
                self._held = self._member.unused_data
                self._member, self._begun = zlib.decompressobj(wbits=31), False
            given = self._member.unconsumed_tail or self._held or self._stream.read(_PART)
            self._held = b""
            if not given:
                data = self._member.decompress(b"", _PART) if self._begun else b""
                if self._begun and not data and not self._member.eof:
                    raise Refused("truncated", "its gzip stream ends too early")
                return data
            if not self._begun and not given.strip(b"\0"):
                return b""  # padding
            self._begun = True
            data = self._member.decompress(given, size if size > 0 else _PART)
        return data


class Tree:
    """The tree that is written, in the working directory."""

    def __init__(self, limit: int, entries: int) -> None:
        self.bytes, self.entries = 0, 0
        self._limit, self._most = limit, entries
        self._made: set[str] = set()

    def path(self, name: str, what: str = "path") -> str:
        """A member's name as a path below the working directory. Raises Refused."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            raise Refused("climbs", f"the {what} {name[:200]!r} leads out of it")
        if len(os.fsencode(name)) > _NAME_MOST or len(parts) > _DEPTH_MOST:
            raise Refused("format", f"the {what} {name[:200]!r}… is too long or too deep")
        return "/".join(parts)

    def count(self, size: int, entry: bool = True) -> None:
        """Count an entry or bytes against the limits. Raises Refused."""
        self.bytes += size
        self.entries += entry
        if self.bytes > self._limit or self.entries > self._most:
            raise Refused("bomb", f"unpacked it is larger than {self._limit} bytes "
                          f"or {self._most} files")  # fmt: skip

    def room(self, path: str, directory: bool = False) -> None:
        """Make a path's parents, and remove what is at the path."""
        parent = os.path.dirname(path)
        if parent and not os.path.isdir(parent):
            self.room(parent, directory=True)
            os.mkdir(parent, 0o755)
        above = path
        while above and above not in self._made and (above == path or not os.path.islink(above)):
            self._made.add(above)
            above = os.path.dirname(above)
        if os.path.lexists(path):
            if not os.path.isdir(path) or os.path.islink(path):
                os.unlink(path)
            elif not directory:
                shutil.rmtree(path)

    def directory(self, path: str) -> None:
        """A directory."""
        if path:
            self.room(path, directory=True)
            if not os.path.isdir(path):
                os.mkdir(path, 0o755)

    def file(self, path: str, mode: int, content: Reader, when: float) -> None:
        """Write the rest of a stream to a file."""
        self.room(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            while data := content.read(_PART):
                self.count(len(data), entry=False)
                while data:
                    data = data[os.write(descriptor, data) :]
            os.fchmod(descriptor, 0o755 if mode & 0o111 else 0o644)
            when = min(max(0.0, when), _LATEST)
            os.utime(descriptor, (when, when))
        finally:
            os.close(descriptor)

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link; it is resolved only inside the root."""
        self.room(path)
        os.symlink(target, path)

    def white_out(self, path: str) -> bool:
        """Apply an entry that is a white-out; returns whether it is one."""
        directory, name = os.path.split(path)
        if not name.startswith(".wh."):
            return False
        if name in (".wh.", ".wh..", ".wh..."):
            raise Refused("format", f"the white-out {path!r} names nothing that a layer can have")
        if name == ".wh..wh..opq":
            self.directory(directory)  # the layer may have no entry of its own for it
            self._hide(*_inside(directory or "."))
        elif not name.startswith(".wh..wh."):
            gone = os.path.join(directory, name.removeprefix(".wh."))
            if os.path.lexists(gone):
                self._hide(gone)
        return True

    def _hide(self, *paths: str) -> None:
        """Remove what is at these paths, except what this layer has there."""
        waiting = list(paths)
        while waiting:
            path = waiting.pop()
            is_directory = os.path.isdir(path) and not os.path.islink(path)
            if path not in self._made:
                (shutil.rmtree if is_directory else os.unlink)(path)
            elif is_directory:
                waiting += _inside(path)


def _inside(directory: str) -> list[str]:
    """The paths of a directory's entries."""
    with os.scandir(directory) as entries:
        return [os.path.normpath(entry.path) for entry in entries]


def _open_blob(blob: BinaryIO) -> Reader:
    """The content of a blob that may be compressed."""
    head = blob.read(4)
    blob.seek(0)
    if head[:2] == b"\x1f\x8b":
        return Gunzip(blob)
    # Some writers, such as pzstd, begin with a frame to be skipped.
    if head == b"\x28\xb5\x2f\xfd" or (head[1:] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        if zstandard is None:
            raise Refused("format", "it is compressed by zstd, and zstandard is not installed")
        return zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX).stream_reader(
            blob, read_across_frames=True
        )
    for magic, program in _OTHERS.items():
        if head.startswith(magic):
            raise Refused("format", f"it is compressed by {program}: gzip and zstd are possible")
    return blob


def _tar(tree: Tree, blob: BinaryIO, layer: bool, into: str) -> str:
    """Unpack a tar file; returns its digest, uncompressed."""
    stream = Counted(_open_blob(blob))
    end = 0
    with tarfile.open(  # type: ignore[call-overload]
        fileobj=stream, mode="r|", errorlevel=2, tarinfo=Header
    ) as archive:
        for member in archive:
            if member.isreg() and not member.issparse():
                end = member.offset_data + member.size
            path = tree.path(member.name)
            if layer and tree.white_out(path):
                continue
            tree.count(0)
            _member(tree, archive, member, into, path)
    digest = stream.end()
    if end > stream.size:
        raise Refused("truncated", "it ends within its last file")
    return digest


def _member(
    tree: Tree, archive: tarfile.TarFile, member: tarfile.TarInfo, into: str, name: str
) -> None:
    path = os.path.join(into, name) if name else into
    if member.isdir():
        tree.directory(path)
    elif not path:
        raise Refused("format", f"{member.name!r} is the root, and no directory")
    elif member.issym():
        tree.link(path, member.linkname)
    elif member.islnk():
        target = os.path.join(into, tree.path(member.linkname, "hard link to"))
        if not os.path.lexists(target):
            raise Refused("format", f"{member.name} is a hard link to {target}, which is missing")
        if target != path:
            tree.room(path)
            os.link(target, path, follow_symlinks=False)
    elif member.isreg() or member.type not in tarfile.SUPPORTED_TYPES:  # as POSIX has it
        content = archive.extractfile(member)
        assert content
        tree.file(path, member.mode, content, member.mtime)
    elif not member.isfifo() and not path.startswith("dev/"):
        raise Refused("device", f"it has the device node {member.name}")


def _zip(tree: Tree, blob: BinaryIO, into: str) -> None:
    with zipfile.ZipFile(blob) as archive:
        for member in archive.infolist():
            path = tree.path(member.filename.replace("\\", "/"))
            tree.count(0)
            mode = member.external_attr >> 16
            kind = stat.S_IFMT(mode)
            place = os.path.join(into, path) if path else into
            if not path or member.filename.endswith("/"):  # is_dir fails for an empty name
                tree.directory(place)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                raise Refused("device", f"it has the device node {member.filename}")
            elif member.flag_bits & 1:
                raise Refused("format", f"{member.filename} is encrypted")
            elif kind == stat.S_IFLNK:
                with archive.open(member) as content:
                    tree.link(place, os.fsdecode(content.read(_NAME_MOST)))
            else:
                with archive.open(member) as content:
                    tree.file(place, mode, content, _modified(member))


def _modified(member: zipfile.ZipInfo) -> int:
    """When a member was modified, if its archive says so in UTC: compiled code of Python names the
    time of its source. The time that all archives have is of some zone, and even.
    """
    extra = member.extra
    while len(extra) >= 9:
        kind, size, flags, modified = struct.unpack("<HHBi", extra[:9])
        if kind == _UNIX_TIME and size >= 5 and flags & 1:
            return int(modified)
        extra = extra[4 + size :]
    return _EPOCH_OF_ZIP


def _unpack(job: dict[str, Any], blob: BinaryIO) -> dict[str, Any]:
    tree = Tree(job["bytes"], job["entries"])
    digest = ""
    tree.directory(job["into"])
    if job["kind"] == "zip":
        _zip(tree, blob, job["into"])
    else:
        digest = _tar(tree, blob, job["layer"], job["into"])
    return {"digest": digest, "bytes": tree.bytes, "entries": tree.entries}


def _outcome(job: dict[str, Any]) -> dict[str, Any]:
    try:
        with os.fdopen(job["archive"], "rb") as blob:
            return _unpack(job, blob)
    except Refused as error:
        return {"refused": error.kind, "why": str(error)}
    except (tarfile.ReadError, EOFError) as error:
        kind = "truncated" if "end" in str(error) or isinstance(error, EOFError) else "format"
        return {"refused": kind, "why": f"it cannot be read: {error}"}
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, NotImplementedError,
            UnicodeError, ValueError, RuntimeError, struct.error) as error:  # fmt: skip
        return {"refused": "format", "why": f"it cannot be read: {error}"}
    except OSError as error:
        if error.errno in (None, errno.EINVAL) and not error.filename:  # of bz2, and of a seek
            return {"refused": "format", "why": f"it cannot be read: {error.strerror or error}"}
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        where = f" at {error.filename}" if error.filename else ""
        return {"refused": "full" if full else "bad", "why": f"{error.strerror}{where}"}
    except Exception as error:  # errors of zstandard, MemoryError, RecursionError
        return {"refused": "format", "why": f"it cannot be read: {type(error).__name__}: {error}"}


def _do(what: str, result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _confine(job: dict[str, Any], program: bytes) -> None:
    """Leave the host's files, network and rights."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    _do("unshare", _libc.unshare(NAMESPACES))
    _do("mount", _libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None))
    os.chdir(job["directory"])
    target = job["target"].encode()
    if job["lower"]:
        options = f"lowerdir={job['lower']},upperdir={job['upper']},workdir={job['work']}"
        _do("mount", _libc.mount(b"overlay", target, b"overlay", _HARMLESS, options.encode()))
    else:
        _do("mount", _libc.mount(job["upper"].encode(), target, None, _BIND, None))
        _do("mount", _libc.mount(None, target, None, _REMOUNT | _BIND | _HARMLESS, None))
    os.chroot(target)
    os.chdir("/")
    limits = ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_NOFILE, 1024),
              (resource.RLIMIT_CORE, 1), (resource.RLIMIT_FSIZE, job["bytes"]))  # fmt: skip
    for limit, value in limits:  # no core files, nor the program of a core_pattern that is a pipe
        resource.setrlimit(limit, (value, value))
    os.umask(0o022)
    for capability in range(last + 1):
        _do("capabilities", _libc.prctl(_DROP_BOUND, capability, 0, 0, 0))
    os.setgroups([])
    os.setresgid(job["uid"], job["uid"], job["uid"])
    os.setresuid(job["uid"], job["uid"], job["uid"])
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    _do("prctl", _libc.prctl(_DEATH_SIGNAL, 9, 0, 0, 0))
    _do("prctl", _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    filters = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(filters))
    _do("seccomp", _libc.prctl(_SECCOMP, _FILTER, header, 0, 0))


def _tell(words: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def _serve(job: dict[str, Any], program: bytes, talk: int) -> None:
    """Confine itself, report it, wait for permission, unpack, and report the end."""
    for stream in (0, 1, 2):
        os.dup2(talk, stream)
    os.close(talk)
    try:
        _confine(job, program)
    except OSError as error:
        _tell({"unconfined": str(error)})
        return
    _tell({"ready": 1})
    if os.read(_GO, 1):
        _tell(_outcome(job))


def main() -> None:
    """Fork a process for each job that standard input, a socket, has, and say which it is."""
    program = bytes.fromhex(sys.argv[1])
    _do("prctl", _libc.prctl(_DEATH_SIGNAL, 9, 0, 0, 0))  # while it waits, it reads no end of input
    asked = socket.socket(fileno=0)
    while True:
        words, descriptors, _, _ = socket.recv_fds(asked, _PART, 2)
        if not words:
            return
        archive, talk = descriptors
        pid = os.fork()
        if not pid:
            asked.detach()
            _serve({**json.loads(words), "archive": archive}, program, talk)
            sys.stdout.flush()
            os._exit(0)
        os.close(archive)
        os.close(talk)
        process = os.pidfd_open(pid)
        socket.send_fds(asked, [str(pid).encode()], [process])
        os.close(process)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
