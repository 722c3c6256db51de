"""Runs programs of the host that must succeed: ip, mount, nft."""

import errno
import subprocess

from firstlight.errors import Failed


def run(*argv: str, text: str | None = None) -> None:
    """Run a program, with ``text`` on its standard input. Raises Failed with its last output."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Failed(
            f"{argv[0]} is not installed", "install it, or add its directory to PATH"
        ) from error
    except OSError as error:
        is_short = error.errno in (errno.EMFILE, errno.ENFILE)
        raise Failed(
            f"{argv[0]} cannot be executed: {error.strerror}",
            "raise the limit of open files: ulimit -n 1024" if is_short else "install it again",
        ) from error
    if done.returncode:
        raise Failed(f"{' '.join(argv)} failed: {done.stderr.strip()}")
