"""Parses what a start reports: a program's lines, or the replies of a runtime.

The lines are those of ``lab.backends``. The load generator puts an answer behind
``firstlight answer``: the agile runtime's (``agile.protocol``), of which ``invoked``, of a handler,
says when that began, which is the end point; or its node's (``agile.node.wire``), of which
``STARTED`` has stamps, which are the start's steps.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from firstlight.agile.node import wire
from firstlight.model import Step

_STEP = re.compile(r"firstlight step (\S+) (\d{1,18}) (\d{1,18})")
_READY = re.compile(r"firstlight ready (\d{1,18})")
_ERROR = "firstlight error "
_ANSWER = "firstlight answer "
_OWN = "firstlight "
_NODE = "node:"


@dataclass(frozen=True)
class Reply:
    """A start's report. ``ready`` is the stamp of the end point, ``error`` why it was not reached.

    The first of each counts. ``output`` is everything else that the start printed.
    """

    steps: tuple[Step, ...] = ()
    ready: int | None = None
    error: str | None = None
    output: str = ""


class _Result(msgspec.Struct):
    """When a handler was requested, began and finished."""

    requested: int
    began: int
    finished: int


class _Answer(msgspec.Struct):
    """The fields of a runtime's answer that the lab uses."""

    type: str
    message: str = ""
    hint: str | None = None
    stamps: dict[str, int] = {}
    result: _Result | None = None


def read(text: str) -> Reply:
    """Parse a start's output. A truncated last line, as a kill leaves it, is not a report."""
    lines = text.split("\n")
    parts = [part for line in lines[:-1] for part in _parts(line)]
    last = lines[-1]
    if last.startswith(_ERROR):
        parts.append(last.removeprefix(_ERROR))
    elif not last.startswith(_OWN):
        parts.append(_Printed(last))
    return Reply(
        steps=tuple(part for part in parts if isinstance(part, Step)),
        ready=next((part for part in parts if isinstance(part, int)), None),
        error=next((part for part in parts if isinstance(part, str)), None),
        output="\n".join(part.line for part in parts if isinstance(part, _Printed)).rstrip("\n"),
    )


@dataclass(frozen=True)
class _Printed:
    line: str


def _parts(line: str) -> Iterator[Step | int | str | _Printed]:
    """Parse one line: steps, the stamp of the end point, an error, or other output."""
    if not line.startswith(_OWN):
        yield _Printed(line)
    elif step := _STEP.fullmatch(line):
        yield Step(step[1], int(step[2]), int(step[3]))
    elif ready := _READY.fullmatch(line):
        yield int(ready[1])
    elif line.startswith(_ERROR):
        yield line.removeprefix(_ERROR)
    elif line.startswith(_ANSWER):
        yield from _parse(line.removeprefix(_ANSWER))


def _parse(text: str) -> Iterator[Step | int | str]:
    try:
        if text.startswith(_NODE):
            yield from _of_node(text.removeprefix(_NODE))
            return
        answer = msgspec.json.decode(text, type=_Answer)
    except (ValueError, struct.error):  # msgspec's, too
        yield f"not of the protocol: {text}"
        return
    if answer.type == "error":
        yield _refusal(answer.message, answer.hint)
    elif result := answer.result:
        yield Step("start", result.requested, result.began)
        yield Step("handler", result.began, result.finished)
        yield result.began
    else:
        yield from _steps(answer.stamps)


def _of_node(digits: str) -> Iterator[Step | str]:
    answer = wire.answer(bytes.fromhex(digits))
    if answer.verb == wire.AnswerVerb.REFUSED:
        failed = wire.refused(answer)
        yield _refusal(failed.message, failed.hint)
    else:
        yield from _steps(answer.stamps)


def _refusal(message: str, hint: str | None) -> str:
    return " ".join(f"{message} ({hint})".split() if hint else message.split())


def _steps(stamps: dict[str, int]) -> Iterator[Step]:
    begun = stamps.get("requested", 0)
    in_order = sorted((at, name) for name, at in stamps.items() if at >= begun)
    for (at, name), (end, _) in pairwise(in_order):
        yield Step(name, at, end)
