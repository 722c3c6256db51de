"""What the tracer knows of a kernel before it loads: whether it may, and may be preempted there."""

import gzip
import os
import resource
from pathlib import Path

import pytest

from firstlight.trace import bpf

NONE, LAZY = "CONFIG_PREEMPT_NONE=y\nCONFIG_PREEMPT_DYNAMIC=y\n", "CONFIG_PREEMPT_LAZY=y\n"


def preemptible(
    root: Path, monkeypatch: pytest.MonkeyPatch, release: str, *, config: str = "",
    cmdline: str = "quiet", mode: str = "",
) -> bool:  # fmt: skip
    (root / "kernel/debug/sched").mkdir(parents=True)
    (root / "cmdline").write_text(cmdline)
    if config:
        (root / "config.gz").write_bytes(gzip.compress(config.encode()))
    if mode:
        (root / "kernel/debug/sched/preempt").write_text(mode)
    known = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*known[:2], release, *known[3:])))
    monkeypatch.setattr(bpf, "PROC", root)
    monkeypatch.setattr(bpf, "SYS", root)
    bpf.is_preemptible.cache_clear()
    try:
        return bpf.is_preemptible()
    finally:
        bpf.is_preemptible.cache_clear()


@pytest.mark.parametrize(
    ("release", "more", "expected"),
    [
        ("6.1.0-50-amd64", {"config": LAZY}, False),
        ("6.12.117+deb13-amd64", {}, False),
        ("6.13.0", {"config": NONE}, False),
        ("6.13.0", {"config": LAZY}, True),
        ("7.3.4+deb13-amd64", {}, True),
        ("7.3.4", {"config": NONE, "cmdline": "quiet preempt=full"}, True),
        ("7.3.4", {"config": LAZY, "cmdline": "preempt=full preempt=none"}, False),
        ("7.3.4", {"config": LAZY, "mode": "none (voluntary) full lazy\n"}, False),
        ("7.3.4", {"cmdline": "preempt=none", "mode": "none voluntary full (lazy)\n"}, True),
        ("strange", {}, True),
    ],
)
def test_a_kernel_that_may_preempt_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, more: dict[str, str],
    expected: bool,
) -> None:  # fmt: skip
    assert preemptible(tmp_path, monkeypatch, release, **more) is expected


def test_missing_kernel_support_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf, "SYS", tmp_path)
    assert "is not mounted" in bpf.obstacle()
    (tmp_path / "kernel/security").mkdir(parents=True)
    lockdown = tmp_path / "kernel/security/lockdown"
    lockdown.write_text("none integrity [confidentiality]\n")
    assert "locked down" in bpf.obstacle()
    lockdown.write_text("none [integrity] confidentiality\n")
    assert "BTF" in bpf.obstacle()
    (tmp_path / "kernel/btf").mkdir()
    (tmp_path / "kernel/btf/vmlinux").symlink_to(os.devnull)
    assert "BTF" in bpf.obstacle()
    (tmp_path / "kernel/btf/vmlinux").unlink()
    (tmp_path / "kernel/btf/vmlinux").touch()
    assert bpf.obstacle() == ""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, 40))
    assert "at most 40 files may be open" in bpf.obstacle()


EPERM, EINVAL = "load: Operation not permitted", "load: Invalid argument"
ALL, NO_BPF, NO_PERFMON = (
    f"{(1 << 41) - 1 & ~without:x}" for without in (0, 1 << 39 | 1 << 21, 1 << 38 | 1 << 21)
)
HOST = "0 0 4294967295"


@pytest.mark.parametrize(
    ("users", "held", "seccomp", "complaint", "expected"),
    [
        ("0 1000 1", ALL, "0", EPERM, "root of a user namespace"),
        (HOST, NO_BPF, "2", EPERM, "lacks CAP_BPF, or CAP_SYS_ADMIN"),
        (HOST, NO_PERFMON, "2", EINVAL, "lacks CAP_PERFMON, or CAP_SYS_ADMIN"),
        (HOST, ALL, "2", EPERM, "a seccomp filter"),
        (HOST, ALL, "2", EINVAL, ""),
        (HOST, ALL, "0", EPERM, ""),
    ],
)
def test_a_denial_has_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: str, held: str, seccomp: str,
    complaint: str, expected: str,
) -> None:  # fmt: skip
    (tmp_path / "self").mkdir()
    (tmp_path / "self/uid_map").write_text(f"{users}\n")
    (tmp_path / "self/status").write_text(f"Name:\ta b\nCapEff:\t{held}\nSeccomp:\t{seccomp}\n")
    monkeypatch.setattr(bpf, "PROC", tmp_path)
    denied = bpf.denial(complaint)
    assert expected in denied
    assert bool(expected) is bool(denied)
