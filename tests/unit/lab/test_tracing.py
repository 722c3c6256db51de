"""A command that cannot be executed: the reason, and a remedy that fits."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from firstlight.lab import tracing

ELF = b"\x7fELF" + bytes(40)


@pytest.mark.parametrize(
    ("content", "why", "remedy"),
    [
        (b"#!/none/sh -e\necho\n", "its interpreter '/none/sh' is missing", "install it"),
        (b"#! \xff\n", "its interpreter '\\udcff'", "first line"),
        (b"#!/bin/sh\r\necho\r\n", "its interpreter '/bin/sh\\r'", "first line"),
        (b"#!", "its interpreter ''", "first line"),
        (b"echo x\n", "neither a program nor a script", "begin a script with #!"),
        (b"", "neither a program nor a script", "begin a script with #!"),
        (ELF + b"\0/lib/ld-none-x86_64.so.1\0", "its loader /lib/ld-none-x86_64.so.1", "C library"),
        (ELF + b"\0/proc/ld\0" + bytes(9), "its loader /proc/ld", "C library"),
        (ELF, f"no sound program for {os.uname().machine}", "build or install"),
    ],
)
def test_reason_of_kernel_is_named(tmp_path: Path, content: bytes, why: str, remedy: str) -> None:
    program = tmp_path / "program"
    program.write_bytes(content)
    words = tracing._inexecutable(program)
    assert why in words[0]
    assert remedy in words[1]


def test_noexec_mount_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script"
    script.touch()
    assert tracing._refused(tmp_path / "other") is None
    refused = tracing._refused(script)
    assert refused
    assert "chmod +x" in refused[1]
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    refused = tracing._refused(script)
    assert refused
    assert "noexec" in refused[0]
