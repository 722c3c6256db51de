"""Where the system's programs are looked for."""

import os

_SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def add_system() -> None:
    """Have PATH end with the directories of runc, ip and nft: Debian's users do not have them in
    PATH, nor has root after su.
    """
    path = (os.environ.get("PATH") or os.defpath).split(":")
    os.environ["PATH"] = ":".join((*path, *(each for each in _SYSTEM if each not in path)))
