"""Kernels and modules that are whole in all that is looked at, and boot nowhere."""

import struct
from pathlib import Path

from firstlight.lab.backends.accel import elf

VMLINUX = elf(b"\xf4" + b"Linux version 6.1.0-test (us@here)")
_SETUP_SECTORS = 4


def bzimage(
    packed: bytes = VMLINUX, *, sized: bool = True, flags: int = 1, version: str = "6.1.0-test"
) -> bytes:
    """A bzImage with a payload of an ELF file that was packed (Documentation/arch/x86/boot.rst)."""
    payload = packed + (struct.pack("<I", len(VMLINUX)) if sized else b"")
    body = b"\xcc" * 0x40 + payload
    body += bytes(-len(body) % 16)
    head = bytearray((_SETUP_SECTORS + 1) * 512)
    head[0x1F1] = _SETUP_SECTORS
    struct.pack_into("<I", head, 0x1F4, len(body) // 16)
    struct.pack_into("<H", head, 0x1FE, 0xAA55)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x400)
    struct.pack_into("<H", head, 0x236, flags)
    struct.pack_into("<II", head, 0x248, 0x40, len(payload))
    head[0x600:0x640] = f"{version} (us@here) #1 SMP".encode().ljust(64, b"\0")
    return bytes(head) + body


def module(directory: Path, name: str, *depends: str) -> Path:
    """A module's file, of which only what it depends on is true."""
    file = directory / "kernel" / f"{name}.ko"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0")
    return file
