"""The functions of a Go program, from the table that its run-time needs and ``strip`` leaves.

The table is ``runtime.pclntab``; its format, for Go 1.18 to 1.26, is that of Go's own
``src/runtime/symtab.go`` (``pcHeader``, ``functab``, ``_func``).
"""

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

# The magic numbers of Go 1.18 and of Go 1.20.
_MAGICS = (0xFFFFFFF0, 0xFFFFFFF1)
_SECTION = struct.Struct("<IIQQQQIIQQ")
_EXECUTABLE = 4


@dataclass(frozen=True)
class Function:
    """One function: its name, where it begins and ends in the file, and its returns."""

    name: str
    start: int
    end: int


class GoProgram:
    """A 64-bit little-endian ELF file that Go's linker made. Raises ValueError for others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = path.read_bytes()
        if self._data[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{path} is not a 64-bit little-endian ELF file")
        self._sections = self._read_sections()

    def _read_sections(self) -> dict[str, tuple[int, int, int]]:
        """Each section's address, offset and size, by name."""
        (table,) = struct.unpack_from("<Q", self._data, 0x28)
        size, count, names = struct.unpack_from("<HHH", self._data, 0x3A)
        rows = [_SECTION.unpack_from(self._data, table + index * size) for index in range(count)]
        strings = rows[names][4]
        return {self._string(strings + row[0]): (row[3], row[4], row[5]) for row in rows}

    def _string(self, at: int) -> str:
        return self._data[at : self._data.index(b"\0", at)].decode(errors="replace")

    def functions(self) -> dict[str, Function]:
        """Every function by name; offsets are in the file."""
        result = next((name for name in self._sections if name.endswith(".gopclntab")), None)
        if not result:
            raise ValueError(f"{self.path} has no function table: not a Go program")
        _, table, _ = self._sections[result]
        magic, _, pointer = struct.unpack_from("<I2xBB", self._data, table)
        if magic not in _MAGICS or pointer != 8:
            raise ValueError(f"{self.path}: unknown function table {magic:#x} (before Go 1.18?)")
        count, _, text, names, _, _, _, entries = struct.unpack_from("<8Q", self._data, table + 8)
        text_address, text_offset, _ = self._sections[".text"]
        shift = (text or text_address) - text_address + text_offset
        functions = {}
        for index in range(count):
            entry, record, following = struct.unpack_from("<III", self._data,
                                                          table + entries + 8 * index)  # fmt: skip
            (name,) = struct.unpack_from("<i", self._data, table + entries + record + 4)
            called = self._string(table + names + name)
            functions[called] = Function(called, entry + shift, following + shift)
        return functions

    def returns(self, function: Function) -> list[int]:
        """Where a function returns: the offsets of its RET instructions, by objdump.

        Go's own return probes are not safe: a stack that moves takes the planted address along.
        """
        address, offset, _ = self._sections[".text"]
        shift = address - offset
        listing = subprocess.run(
            ["objdump", "--disassemble", "--no-show-raw-insn", str(self.path),
             f"--start-address={function.start + shift}", f"--stop-address={function.end + shift}"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        lines = (line.split() for line in listing.splitlines())
        return [
            int(words[0].rstrip(":"), 16) - shift
            for words in lines
            if len(words) >= 2 and words[1] in ("ret", "retq")
        ]
