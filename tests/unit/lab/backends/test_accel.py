"""Which accelerator is taken, by how long a guest counted."""

import subprocess
from pathlib import Path

import pytest

from firstlight.errors import Unsupported
from firstlight.lab.backends import accel, firecracker_probe, qemu_build

LONG, SHORT = 0.3, 0.0005


@pytest.mark.parametrize(
    ("counts", "name", "reason"),
    [
        ([SHORT], "kvm", "at a processor's speed"),
        ([LONG, SHORT], "kvm", "at a processor's speed"),
        ([LONG, LONG, LONG, SHORT], "tcg", "KVM only emulates here"),
        ([None, None], "tcg", "it did not"),
    ],
    ids=["quick", "quick on a busy machine", "slow", "none"],
)
def test_a_guest_that_counts_slowly_is_run_again(
    counts: list[float | None], name: str, reason: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "_KVM", tmp_path / "kvm")
    monkeypatch.setattr(accel, "_chosen", {})
    monkeypatch.setattr(accel, "_hung", [])
    monkeypatch.setattr(qemu_build, "listed", lambda _program, _option: frozenset({"kvm", "tcg"}))
    left = iter(counts)
    monkeypatch.setattr(accel, "_count", lambda *_: (next(left), "it did not"))
    chosen = accel.choose("qemu")
    assert chosen.name == name
    assert reason in chosen.reason
    assert accel.choose("qemu", name) == chosen


def test_a_guest_that_hangs_is_the_only_one_that_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes as long as the deadline, whatever the program and the model of the CPU."""
    kvm = tmp_path / "kvm"
    kvm.touch()
    for module in accel, firecracker_probe:
        monkeypatch.setattr(module, "_KVM", kvm)
    monkeypatch.setattr(accel, "_chosen", {})
    monkeypatch.setattr(accel, "_hung", [])
    monkeypatch.setattr(accel, "_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(qemu_build, "listed", lambda _program, _option: frozenset({"kvm", "tcg"}))
    program = tmp_path / "hypervisor"
    program.write_text(f"#!/bin/sh\necho >> {tmp_path}/tried; exec sleep 60\n")
    program.chmod(0o755)
    assert accel.choose(str(program)).name == "tcg"
    assert accel.choose("another").name == "tcg"
    with pytest.raises(Unsupported, match="did not finish"):
        firecracker_probe.run_guest(str(program))
    assert (tmp_path / "tried").read_text() == "\n"


@pytest.mark.parametrize("before", ["", "firmware"])
def test_the_count_is_from_a_to_b(before: str) -> None:
    words = f"printf '{before}'; sleep 0.1; printf A; sleep 0.1; printf B; exec cat"
    with subprocess.Popen(
        ["sh", "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        seconds, complaint = accel.time_count(process)
        process.kill()
    assert complaint == ""
    assert seconds is not None
    assert seconds < 60


def test_a_cpu_that_kvm_cannot_give_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "_KVM", tmp_path / "kvm")
    monkeypatch.setattr(accel, "_chosen", {})
    monkeypatch.setattr(accel, "_hung", [])
    monkeypatch.setattr(qemu_build, "listed", lambda _program, _option: frozenset({"kvm", "tcg"}))
    monkeypatch.setattr(
        accel, "_count", lambda _program, _name, cpu: (None if cpu == "host" else 1e-3, "aborted")
    )
    assert accel.choose("qemu").cpu == "host,-arch-capabilities"
