"""Runs programs of the host that must succeed: ip, mount, nft."""

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
        raise Failed(
            f"{argv[0]} cannot be executed: {error.strerror}", "install it again"
        ) from error
    if done.returncode:
        raise Failed(f"{' '.join(argv)} failed: {done.stderr.strip()}")
