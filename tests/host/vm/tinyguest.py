"""Guests of a few bytes, to test hypervisors with: each does one thing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.backends.accel import LOOPS, elf
from firstlight.guests import Boot, Line, Reading, Wanted
from firstlight.model import EndPoint

HALT = bytes.fromhex("f4ebfd")  # hlt; jmp to it


def says(text: str) -> bytes:
    """Code that writes a text on the serial port, and goes on behind it."""
    code = bytes.fromhex("66baf803")  # mov dx, 0x3f8
    return code + b"".join(bytes((0xB0, byte, 0xEE)) for byte in text.encode())


def exits(port: int, value: int) -> bytes:
    """Code that writes a byte to a port."""
    return b"\x66\xba" + port.to_bytes(2, "little") + bytes((0xB0, value, 0xEE))


REBOOTS = bytes.fromhex("66ba6400b0feee")  # the keyboard controller's reset
SPINS = bytes.fromhex("ebfe")
COUNTS = b"\xb9" + LOOPS.to_bytes(4, "little") + bytes.fromhex("4975fd")


def numbered(lines: int) -> bytes:
    """Code that writes ``line NNNNN`` with each number below, then ``ready``."""
    body = b"".join(says(f"line {number:05}\r\n") for number in range(lines))
    return body + says("ready\r\n") + HALT


@dataclass(frozen=True)
class Tiny:
    """A PVH guest of given code."""

    code: bytes
    ready: str | None = "^ready"
    exit_port: int | None = None
    exit_code: int | None = None
    last: str | None = None
    disk: Path | None = None
    writable: bool = False
    name: str = "tiny"
    filesystem: str = "none"
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    def probe(self, wanted: Wanted) -> None:
        """It boots anywhere."""

    def boot(self, wanted: Wanted, directory: Path) -> Boot:
        kernel = directory / "tiny.elf"
        kernel.write_bytes(elf(self.code))
        return Boot(kernel, disk=self.disk, writable=self.writable, ready=self.ready,
                    exit_port=self.exit_port, exit_code=self.exit_code, last=self.last)  # fmt: skip

    def read(self, wanted: Wanted, lines: Sequence[Line], memory: Path | None) -> Reading:
        return Reading("none")
