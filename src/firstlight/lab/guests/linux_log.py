"""Parses the log of firstlight's Linux guest (native/lab/guest_init.c) into spans.

Its clock is the processor's time-stamp counter, which begins with the VM. The log has::

    early console in setup code       the firmware has entered a bzImage (the kernel's own line)
    firstlight ready NS               the payload's first instruction, by its own clock
    firstlight step packet NS NS      its first packet, likewise
    firstlight now TICKS              read by the host at once
    firstlight clocks TICKS NS        both clocks at the same moment
    firstlight init TICKS             the first process began
    firstlight step TICKS TICKS NAME  a step of that process, or an initcall
    firstlight log US TEXT            a record of the kernel's log, in its own time
    firstlight trace TICKS Console    when the kernel made that record
"""

import re
from collections.abc import Iterator, Sequence

from firstlight.lab.guests import Line, Reading
from firstlight.model import Step

READY = "^firstlight ready [0-9]+$"
LAST = "^firstlight log ends$"
CLOCK = "the guest's time-stamp counter, from the VM's start"
_SETUP = "early console in setup code"
_N = r"(\d{1,19})"
_NOW = re.compile(rf"(?:\[ *\d+\.\d+\] )?firstlight now {_N}")
_STEP = re.compile(rf"firstlight step {_N} {_N} (\S.*)")
_PACKET = re.compile(rf"firstlight step packet {_N} {_N}")
_SINGLE = {
    "clocks": re.compile(rf"firstlight clocks {_N} {_N}"),
    "init": re.compile(rf"firstlight init {_N}"),
    "log": re.compile(rf"firstlight log {_N} Console: .*"),
    "trace": re.compile(rf"firstlight trace {_N} Console"),
}


def read(lines: Sequence[Line], hertz: float, *, packed: bool, counted: bool = False) -> Reading:
    """The spans of a log, complete or not; ``hertz`` is the counter's frequency.

    ``packed``: the kernel was a bzImage, which uncompresses itself. ``counted``: the counter counts
    instructions, so arrivals on the host mean nothing.
    """

    def ns(ticks: str) -> int:
        return round(int(ticks) / hertz * 1e9)

    hits = {name: hit for name, rule in _SINGLE.items() if (hit := _first(rule, lines))}
    anchors = [(line.stamp, ns(hit[1])) for line in lines if (hit := _NOW.fullmatch(line.text))]
    stamped = [hit for line in lines if (hit := _STEP.fullmatch(line.text))]
    steps = [Step(hit[3], ns(hit[1]), ns(hit[2])) for hit in stamped]
    packet = _first(_PACKET, lines)
    if packet and "clocks" in hits:
        zero = ns(hits["clocks"][1]) - int(hits["clocks"][2])
        steps.append(Step("packet", int(packet[1]) + zero, int(packet[2]) + zero))
    spans = [span for span in _named(steps) if span.start <= span.end]
    if "init" in hits:
        is_tied = {"log", "trace"} <= {*hits}
        kernel = ns(hits["trace"][1]) - int(hits["log"][1]) * 1000 if is_tied else 0
        setup = None if counted else _setup(lines, anchors)
        spans += _before_init(kernel, ns(hits["init"][1]), setup, packed)
    return Reading(CLOCK, tuple(sorted(spans, key=lambda span: span.start)), tuple(anchors))


def _before_init(kernel: int, init: int, setup: int | None, packed: bool) -> Iterator[Step]:
    """The spans before the first process; ``kernel`` is the zero of the kernel's own time."""
    if not 0 < kernel <= init:
        yield Step("firmware and kernel", 0, init)
        return
    yield Step("kernel", kernel, init)
    if not packed:
        yield Step("firmware", 0, kernel)
    elif setup is None or not 0 < setup < kernel:
        yield Step("firmware and uncompress", 0, kernel)
    else:
        yield Step("firmware", 0, setup)
        yield Step("uncompress", setup, kernel)


def _setup(lines: Sequence[Line], anchors: Sequence[tuple[int, int]]) -> int | None:
    """When a bzImage was entered, by the arrival of its first line on the host."""
    began = next((line.stamp for line in lines if line.text == _SETUP), None)
    if began is None or not anchors:
        return None
    return began - min(host - guest for host, guest in anchors)


def _named(steps: Sequence[Step]) -> Iterator[Step]:
    """Name modules, and their initcalls, whose names the kernel has dropped."""
    modules = [step for step in steps if step.name.startswith("module ")]
    for step in steps:
        name = step.name
        if step in modules:
            name = _module(name)
        elif name.startswith("initcall "):
            around = (m for m in modules if m.start <= step.start and step.end <= m.end)
            name = next((_module(m.name).replace("module", "initcall", 1) for m in around), name)
        yield Step(name, step.start, step.end)


def _module(name: str) -> str:
    return name.removesuffix(".ko").replace("-", "_")


def _first(rule: re.Pattern[str], lines: Sequence[Line]) -> re.Match[str] | None:
    return next((hit for line in lines if (hit := rule.fullmatch(line.text))), None)
