"""Unpacks archives in a separate process without rights: ``unpack_main.py``.

The process confines itself, is verified from outside, and only then gets the archive to read.
Everything here blocks.
"""

import json
import os
import subprocess
import sys
from importlib.resources import files
from typing import Literal

import msgspec
from msgspec import Struct

from firstlight.agile import seccomp, verify
from firstlight.agile.functions.child import Child, Excess
from firstlight.agile.functions.errors import BY_KIND, BadCode
from firstlight.errors import Failed

ENTRIES_MOST = 500_000
_SECONDS = 900.0
_ANSWER_MOST, _WORDS_MOST = 1 << 16, 500
_REMEDIES = {
    "climbs": "leave that path out, or build the archive again from within its directory",
    "device": "leave it out: an instance has a /dev of its own",
    "bomb": "make it smaller",
    "full": "free space there, or configure another store",
    "truncated": "build or fetch it again",
}


class Job(Struct, frozen=True, kw_only=True):
    """Where to unpack: ``upper`` below ``directory``, over the directories ``lower``.

    ``target`` is an empty directory there, seen by the process alone; ``work`` is for the overlay.
    ``layer``: names can be white-outs. ``into`` is a directory to make in the tree.
    """

    directory: str
    upper: str
    target: str
    work: str
    uid: int
    kind: Literal["tar", "zip"]
    lower: str = ""
    layer: bool = False
    into: str = ""
    bytes: int = 10 << 30
    entries: int = ENTRIES_MOST


class Unpacked(Struct, frozen=True):
    """The digest of an uncompressed tar file, and its number of bytes and files."""

    digest: str
    bytes: int
    entries: int


def unpack(job: Job, archive: int, what: str) -> Unpacked:
    """Unpack an archive, a descriptor of a file. Raises BadCode, Failed.

    ``what`` names it in errors. After an error the caller removes what was written.
    """
    script = str(files("firstlight.agile.functions").joinpath("unpack_main.py"))
    words = json.dumps({**msgspec.to_builtins(job), "archive": archive})
    with Child(
        [sys.executable, "-I", script, words, seccomp.program().hex()], _SECONDS, _ANSWER_MOST,
        env={}, stdin=subprocess.PIPE, pass_fds=[archive],
    ) as child:  # fmt: skip
        try:
            return _conversed(child, job, what)
        except TimeoutError:
            raise BadCode(f"{what}: unpacking takes more than {_SECONDS:.0f} s") from None
        except Excess:
            raise BadCode(f"{what}: the process that unpacks it writes without end") from None


def _conversed(child: Child, job: Job, what: str) -> Unpacked:
    ready = child.line()
    if b"ready" not in ready:
        child.finish()
        words = (ready or child.errors)[-_WORDS_MOST:].decode(errors="replace").strip()
        raise Failed(f"cannot confine the process that unpacks {what}: {words}")
    if rights := _rights(child.process.pid, job.uid):
        raise Failed(f"the process that unpacks {what} is not confined: {', '.join(rights)}")
    child.send(b"\n")
    child.finish()
    try:
        answer = json.loads(child.output)
        if "refused" not in answer:
            return msgspec.convert(answer, Unpacked)
        kind, why = BY_KIND.get(answer["refused"], BadCode), str(answer["why"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        last = child.errors[-_WORDS_MOST:].decode(errors="replace").strip() or "killed"
        raise BadCode(f"{what}: the process that unpacks it ended: {last}") from None
    raise kind(f"{what}: {why}", _REMEDIES.get(answer["refused"]))


def _rights(pid: int, uid: int) -> list[str]:
    """The rights that a process still has but must not have. Raises Failed if it is gone."""
    try:
        have, ours = verify.status(pid), verify.namespaces(os.getpid())
        spaces = verify.namespaces(pid)
    except OSError as error:
        raise Failed(f"the process that unpacks is gone: {error.strerror}") from error
    wanted = {
        **verify.WANTED, "Uid": "\t".join([str(uid)] * 4), "Gid": "\t".join([str(uid)] * 4),
        "TracerPid": have.get("TracerPid", "0"),
    }  # fmt: skip
    differences = [
        f"{key} is {have.get(key)}" for key, text in wanted.items() if have.get(key) != text
    ]
    return differences + [
        name for name in ("net", "mnt", "ipc", "uts") if spaces[name] == ours[name]
    ]
