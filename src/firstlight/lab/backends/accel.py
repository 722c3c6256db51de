"""Chooses QEMU's accelerator by running a guest.

An openable /dev/kvm proves little: under a hypervisor it may only emulate, a thousand times slower
than a processor. So a guest of a few bytes counts to a hundred thousand, and is timed.
"""

import os
import re
import selectors
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import Unsupported, longer
from firstlight.host.ownership import scratch
from firstlight.lab.backends import qemu_build

ACCELERATORS = ("auto", "kvm", "tcg")
_KVM = Path("/dev/kvm")
LOOPS = 100_000
_FAIR_SECONDS = 0.02  # a processor needs 0.1 ms, TCG 1 ms
_TRIES = 3  # the guest, or this process, may have waited for a CPU
_TIMEOUT_SECONDS = longer(8.0)
_ENTRY = 0x100000
_KVM_CPUS = ("host", "host,-arch-capabilities")
"""CPU models to try under KVM. Some nested KVMs refuse to set MSR_IA32_ARCH_CAPABILITIES, and QEMU
aborts."""
COUNT = bytes.fromhex(
    "66baf803"  # mov dx, 0x3f8: the serial port
    "b041ee"  # mov al, 'A'; out dx, al
    f"b9{LOOPS.to_bytes(4, 'little').hex()}"  # mov ecx, LOOPS
    "83e90175fb"  # sub ecx, 1; jnz back
    "b042ee"  # mov al, 'B'; out dx, al
    "f4ebfd"  # hlt; jmp back
)
"""A guest that prints A, counts and prints B, in 32-bit code that also works in 64-bit mode."""


@dataclass(frozen=True)
class Accelerator:
    """``name`` and ``cpu`` (a CPU model) as QEMU knows them, and why they were chosen."""

    name: str
    reason: str
    cpu: str = "max"

    @property
    def sentence(self) -> str:
        """The choice in a sentence, for readers of figures."""
        return f"guests run under {self.name.upper()}: {self.reason}"


def elf(code: bytes) -> bytes:
    """A PVH guest with the 32-bit entry ``code``.

    An ELF file with one loaded segment and a Xen note of type 18, the 32-bit entry
    (xen/include/public/elfnote.h).
    """
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", _ENTRY)
    at = 64 + 2 * 56
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, _ENTRY, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    size, length = len(note), len(code)
    load = struct.pack("<IIQQQQQQ", 1, 7, at + size, _ENTRY, _ENTRY, length, length, 1)
    notes = struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, size, size, 4)
    return head + load + notes + note + code


_chosen: dict[tuple[str, str, bool], Accelerator] = {}
_hung: list[str] = []
"""What was seen of the first guest that hung: with no other program would KVM do better."""


def choose(program: str, wanted: str = "auto", *, must_be_tcg: bool = False) -> Accelerator:
    """The accelerator for a QEMU, by its path; determined once per process. Raises Unsupported.

    An experiment may ask by name for what was chosen before; the reason of that choice is kept.
    """
    chosen_before = _chosen.get((program, "auto", must_be_tcg))
    if chosen_before and chosen_before.name == wanted:
        return chosen_before
    key = program, wanted, must_be_tcg
    if key not in _chosen:
        _chosen[key] = _choose(*key)
    return _chosen[key]


def in_use() -> list[str]:
    """The accelerators chosen in this process."""
    return sorted({each.name for each in _chosen.values()})


def _choose(program: str, wanted: str, must_be_tcg: bool) -> Accelerator:
    built_in = qemu_build.listed(program, "-accel")
    if must_be_tcg:
        if "tcg" not in built_in or wanted == "kvm":
            raise Unsupported(
                f"{program} cannot count instructions without TCG", "leave out --icount"
            )
        return Accelerator("tcg", "only TCG counts instructions")
    if wanted == "tcg":
        if "tcg" not in built_in:
            raise Unsupported(f"{program} is built without TCG", _OTHER_BUILD)
        return Accelerator("tcg", _CHOSEN)
    cpu, why_not = _try_kvm(program, built_in)
    if wanted == "kvm":
        if why_not and not why_not.startswith(_EMULATES):
            raise Unsupported(f"guests cannot run under KVM here: {why_not}", NO_KVM)
        return Accelerator("kvm", f"{_CHOSEN}{f', though {why_not}' if why_not else ''}", cpu)
    if not why_not:
        return Accelerator("kvm", "a guest ran under it at a processor's speed", cpu)
    if "tcg" in built_in:
        return Accelerator("tcg", why_not)
    if why_not.startswith(_EMULATES):
        reason = f"{why_not}, but {Path(program).name} is built without TCG"
        return Accelerator("kvm", reason, cpu)
    raise Unsupported(
        f"{program} is built without TCG, and guests cannot run under KVM here: {why_not}", NO_KVM
    )


_OTHER_BUILD = "use another build, such as Debian's qemu-system-x86_64"
NO_KVM = "enable (nested) virtualisation in firmware or hypervisor, then modprobe kvm"
_EMULATES = "KVM only emulates"
_CHOSEN = "chosen by --accel or the experiment"


def _try_kvm(program: str, built_in: frozenset[str]) -> tuple[str, str | None]:
    """The CPU model with which a guest runs under KVM, and what is wrong with KVM, if anything."""
    if "kvm" not in built_in:
        return "", f"{Path(program).name} is built without KVM"
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return "", f"cannot open {_KVM}: {error.strerror}"
    cpu, fault = "", None
    for cpu in _KVM_CPUS:
        if hung := why_hung():
            return cpu, hung
        seconds, fault = _count(program, "kvm", cpu)
        for _ in range(_TRIES - 1):
            if seconds is None or not emulates(seconds):
                break
            seconds, fault = _count(program, "kvm", cpu)
        if seconds is not None:
            return cpu, emulates(seconds)
    return cpu, fault


def why_hung() -> str | None:
    """What was seen where a guest of this process has hung under KVM: others would, too."""
    return _hung[0] if _hung else None


def emulates(counted: float) -> str | None:
    """A sentence saying that KVM only emulates, if a guest took this many seconds; else empty."""
    if counted <= _FAIR_SECONDS:
        return None
    return (
        f"{_EMULATES} here: a loop of {LOOPS} turns took {counted * 1000:.0f} ms; "
        "a processor needs 0.1 ms"
    )


def _count(program: str, accelerator: str, cpu: str) -> tuple[float | None, str]:
    """How long the tiny guest counted, in seconds, or why that is unknown."""
    with scratch() as directory:
        kernel = directory / "kernel"
        kernel.write_bytes(elf(COUNT))
        machine = "microvm" if "microvm" in qemu_build.listed(program, "-machine") else "pc"
        command = [
            program, "-nodefaults", "-no-user-config", "-machine", machine,
            "-accel", accelerator, "-cpu", cpu, "-m", "32", "-display", "none", "-serial", "stdio",
            "-kernel", str(kernel),
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                return time_count(process)
            finally:
                process.kill()


def time_count(process: "subprocess.Popen[bytes]") -> tuple[float | None, str]:
    """The time from A to B on the guest's standard output, in seconds, or why it is unknown."""
    assert process.stdout is not None
    assert process.stderr is not None
    output, began = b"", 0.0
    until = time.monotonic() + _TIMEOUT_SECONDS
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while ready.select(max(0.0, until - time.monotonic())):
            part = os.read(process.stdout.fileno(), 64)
            now = time.monotonic()
            if not part:
                process.wait()
                complaint = process.stderr.read().decode(errors="replace").strip()
                last = re.sub(r"^\S+: ", "", complaint.rpartition("\n")[2])
                return None, f"a guest did not run: {last or f'status {process.returncode}'}"
            if b"A" in part and b"A" not in output:
                began = now
            output += part
            if b"B" in output:
                return now - began, ""
    _hung.append(f"a guest of {len(COUNT)} bytes did not finish in {_TIMEOUT_SECONDS:.0f} s")
    return None, _hung[0]
