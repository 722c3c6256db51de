"""The OCI runtime's program, executed from a sealed copy in memory."""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

_SELINUX = Path("/sys/fs/selinux/enforce")
_EXECUTABLE = 0x10  # MFD_EXEC, from Linux 6.3
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_BEYOND_STREAMS = 16


class Program:
    """Unless executed from a sealed copy, runc and crun copy themselves for each container, which
    could otherwise write to them (CVE-2019-5736). All containers share this one.

    It is made again when the file changes. A script is executed by its path, because its
    interpreter opens it. So is every program under SELinux, whose rules apply to paths.
    """

    def __init__(self, path: Path, directory: Path) -> None:
        self._path, self._link = path, directory / path.name
        self._copied: tuple[int, ...] = ()
        self._descriptor = -1

    @property
    def name(self) -> str:
        """Of the file, and of its processes."""
        return self._path.name

    def path(self) -> str:
        """What to execute. Raises OSError."""
        state = self._path.stat()
        seen = state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
        if seen != self._copied:
            self._drop()
            with suppress(OSError):  # such as EACCES from vm.memfd_noexec
                self._copy()
            self._copied = seen
        return str(self._path if self._descriptor < 0 else self._link)

    def _drop(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _copy(self) -> None:
        data = self._path.read_bytes()
        if not data.startswith(b"\x7fELF") or _SELINUX.exists():
            return
        made = _memory(self._path.name)
        try:
            with os.fdopen(made, "wb", closefd=False) as copy:
                copy.write(data)
            fcntl.fcntl(made, fcntl.F_ADD_SEALS, _SEALS)
            descriptor = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _BEYOND_STREAMS)
        finally:
            os.close(made)
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(f"/proc/self/fd/{descriptor}")
        self._descriptor = descriptor


def _memory(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _EXECUTABLE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)
