"""Guests of a few bytes, to test hypervisors with: each does one thing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.lab.backends.accel import elf
from firstlight.lab.guests import BootConfig, BootSpec, Line, Reading
from firstlight.model import EndPoint, Step

HALT = bytes.fromhex("f4ebfd")  # hlt; jmp to it
SPIN = bytes.fromhex("ebfe")
TRIPLE_FAULT = bytes.fromhex("0f011d00000000 0f0b")  # lidt [0]; ud2
RESET = bytes.fromhex("66ba6400 b0fe ee f4ebfd")  # the keyboard controller pulls the line


def says(text: str, *, bits: int = 32) -> bytes:
    """Code that writes a text on the serial port, and goes on behind it."""
    set_port = bytes.fromhex("66baf803" if bits == 32 else "baf803")  # mov dx, 0x3f8
    return set_port + b"".join(bytes((0xB0, byte, 0xEE)) for byte in text.encode())


def exits(port: int, value: int) -> bytes:
    """Code that writes a byte to a port."""
    return b"\x66\xba" + port.to_bytes(2, "little") + bytes((0xB0, value, 0xEE)) + HALT


def numbered(lines: int) -> bytes:
    """Code that writes ``line NNNNN`` with each number below, then ``ready``."""
    body = b"".join(says(f"line {number:05}\r\n") for number in range(lines))
    return body + says("ready\r\n") + HALT


def boot_sector() -> bytes:
    """A disk (of more than a cylinder) whose first sector, run at 0x7c00, says ``ready``."""
    return (says("ready\r\n", bits=16) + HALT).ljust(510, b"\0") + b"\x55\xaa" + bytes(2 << 20)


def writing_boot_sector() -> bytes:
    """The same, which writes itself into the disk's second sector, and says if it was refused."""
    refused = says("refused\r\n", bits=16) + HALT
    write = bytes.fromhex("b80103 bb007c b90200 b600 cd13")  # int 13h, ah=3: one sector of 0x7c00
    code = write + b"\x73" + bytes((len(refused),)) + refused + says("ready\r\n", bits=16) + HALT
    return code.ljust(510, b"\0") + b"\x55\xaa" + bytes(2 << 20)


def bz_image() -> bytes:
    """What firmware takes for a Linux kernel (Documentation/arch/x86/boot.rst), saying ``ready``.

    One sector of setup code, entered in real mode at 0x200, before a kernel that is never run.
    """
    image = bytearray(1024)
    image[0x1F1] = 1  # sectors of setup code
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x200:0x202] = b"\xeb\x7e"  # jmp to 0x280
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = (0x020C).to_bytes(2, "little")
    image[0x211] = 1  # loaded high
    image[0x22C:0x230] = (0x37FFFFFF).to_bytes(4, "little")
    code = says("ready\r\n", bits=16) + HALT
    image[0x280 : 0x280 + len(code)] = code
    return bytes(image) + bytes(4096)


@dataclass(frozen=True)
class Tiny:
    """A guest of a given kernel, code or disk. Each line that it writes is a span of no length."""

    code: bytes = b""
    kernel: Path | None = None
    ready: str | None = "^ready"
    exit_port: int | None = None
    exit_code: int | None = None
    last: str | None = None
    disk: Path | None = None
    writable: bool = False
    name: str = "tiny"
    filesystem: str = "none"
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    def probe(self, wanted: BootConfig) -> None:
        """It boots anywhere."""

    def boot(self, wanted: BootConfig, directory: Path) -> BootSpec:
        kernel = self.kernel
        if self.code:
            kernel = directory / "tiny.elf"
            kernel.write_bytes(elf(self.code))
        return BootSpec(kernel, disk=self.disk, writable=self.writable, ready=self.ready,
                    exit_port=self.exit_port, exit_code=self.exit_code, last=self.last)  # fmt: skip

    def read(self, wanted: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        return Reading("lines", tuple(Step(line.text, 0, 0) for line in lines))
