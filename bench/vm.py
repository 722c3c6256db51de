"""What firstlight adds to a start of QEMU, and whether sixteen at once are traced without loss.

The guest has a few bytes: it writes some lines and ends its VM by isa-debug-exit, so the end is the
same event with and without firstlight. Starts of both are interleaved.
"""

import random
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.marks import Mark
from firstlight import store
from firstlight.analysis import stats
from firstlight.host.workspace import sandbox
from firstlight.lab import runner
from firstlight.lab.backends import Execute
from firstlight.lab.backends.accel import elf
from firstlight.lab.backends.qemu import Qemu
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.guests import BootConfig, BootSpec, Line, Reading
from firstlight.lab.load import Generator
from firstlight.model import EndPoint, Step

TRIPLES, CROWD, LINES = 120, 16, 500
MOST_ADDED = 1.02
_PORT, _CODE = 0x3F0, 123
_READY = re.compile(r"^firstlight ready (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Talker:
    """Writes ``lines`` numbered lines, then exits."""

    lines: int
    name: str = "talker"
    filesystem: str = "none"
    end_point: EndPoint = EndPoint.BOOTED

    def probe(self, config: BootConfig) -> None:
        """It boots anywhere."""

    def boot(self, config: BootConfig, directory: Path) -> BootSpec:
        """A kernel of its own."""
        del config
        code = bytearray(b"\x66\xba\xf8\x03")  # mov dx, 0x3f8
        for byte in b"".join(b"line %05d\r\n" % number for number in range(self.lines)):
            code += bytes((0xB0, byte, 0xEE))  # mov al, byte; out dx, al
        code += b"\x66\xba" + _PORT.to_bytes(2, "little") + bytes((0xB0, _CODE, 0xEE, 0xF4))
        kernel = directory / "talker"
        kernel.write_bytes(elf(bytes(code)))
        return BootSpec(kernel, exit_port=_PORT, exit_code=_CODE)

    def read(self, config: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        """A span a line."""
        del config, memory
        return Reading("none", tuple(Step(line.text, 0, 0) for line in lines))


def _typed(command: Execute) -> Execute:
    """The command line as a user would type it, without vmrun and its options."""
    line = command.argv[command.argv.index("--") + 1 :]
    start = line.index("-S")
    return Execute((*line[:start], *line[start + 5 :]), command.env)


def added(lines: int) -> Iterator[Mark]:
    """Ratios of medians, from the request for a start to the end of the VM."""
    machine = Qemu(Talker(lines), accel="tcg")
    taken: dict[str, list[float]] = {"firstlight": [], "a shell": [], "a bare exec": []}
    spent: dict[str, list[float]] = {name: [] for name in taken}
    order = random.Random(lines)  # noqa: S311 - a schedule, not a secret
    with ExitStack() as stack:
        place = stack.enter_context(sandbox(f"bench-vm-{lines}"))
        generator = stack.enter_context(Generator())
        [command] = stack.enter_context(machine.prepared(1, place)).commands
        assert isinstance(command, Execute)
        typed = _typed(command)
        shell = Execute(("/bin/sh", "-c", shlex.join(typed.argv)), typed.env)
        starts = {"firstlight": command, "a shell": shell, "a bare exec": typed}
        for batch in range(TRIPLES):
            for name in order.sample(list(starts), len(starts)):
                [done] = generator.run(batch, [starts[name]], deadline=60)
                [ended] = generator.stop(batch, deadline=60)
                match = _READY.search(done.output)
                assert bool(match) == (name == "firstlight"), done.output
                taken[name].append((int(match[1]) if match else done.exited) - done.intended)
                spent[name].append(ended.user_ns + ended.system_ns)
    for name, mark in (("a shell", MOST_ADDED), ("a bare exec", None)):
        ratio = stats.ratio_interval(taken["firstlight"], taken[name])
        cpu = np.median(spent["firstlight"]) - np.median(spent[name])
        yield Mark(
            f"a QEMU start by firstlight to {name}'s, {lines} lines "
            f"({np.median(taken[name]) / 1e6:.1f} ms, {TRIPLES} each)",
            f"{ratio.value - 1:+.1%} [{ratio.low - 1:+.1%}, {ratio.high - 1:+.1%}], "
            f"CPU time {cpu / 1e6:+.1f} ms",
            f"≤ {mark - 1:+.0%}" if mark else "none",
            mark is None or ratio.value <= mark,
        )


def crowd() -> list[Mark]:
    """Sixteen at once, traced: lost events, and console lines missing or out of order."""
    narrow = Experiment(
        "bench-vm", "Is everything read?", "", ("instances",),
        lambda _: [Case({"instances": CROWD}, Qemu(Talker(LINES), accel="tcg", memory_mb=128))],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        runner.run(runner.Plan(narrow, Options((CROWD,)), 3, 1), Path(directory))
        samples = store.read(Path(directory)).samples
    expected = [f"line {number:05}" for number in range(LINES)]
    received = [[span.name for span in sample.guest.spans] for sample in samples if sample.guest]
    wrong = sum(lines != expected for lines in received) + len(samples) - len(received)
    lost = max(sample.lost for sample in samples)
    return [
        Mark(f"events lost, {CROWD} machines at once", str(lost), "0", lost == 0),
        Mark(f"consoles of {len(samples)} with a line lost or misplaced, {LINES} lines each",
             str(wrong), "0", wrong == 0),
    ]  # fmt: skip


def measure() -> Iterator[Mark]:
    """All of them."""
    if not shutil.which("qemu-system-x86_64"):
        yield Mark("QEMU", "is not installed", "", False)
        return
    yield from added(0)
    yield from added(LINES)
    yield from crowd()
