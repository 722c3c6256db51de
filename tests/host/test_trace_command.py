"""``firstlight trace``: the command runs as it would by itself, wherever that is."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from firstlight.store import Run, read

pytestmark = pytest.mark.usefixtures("can_trace")

FIRSTLIGHT = Path(sys.executable).parent / "firstlight"
LIST = ("/bin/ls", "/proc/self/fd")
WORK = ("/bin/sh", "-c", "/bin/ls / >/dev/null; /bin/sleep 0.1")


def trace(
    *argv: str, before: tuple[str, ...] = (), given: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*before, FIRSTLIGHT, "trace", "--json", "--", *argv],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, pass_fds=given,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    return done


def opened(path: Path, number: int) -> int:
    """A descriptor of that number, open on a file of that text."""
    path.write_text(f"descriptor {number}\n")
    descriptor = os.open(path, os.O_RDONLY)
    os.dup2(descriptor, number, inheritable=False)
    os.close(descriptor)
    return number


def test_traced_command_gets_only_given_descriptors(tmp_path: Path) -> None:
    given = tuple(opened(tmp_path / str(number), number) for number in (103, 107, 163))
    try:
        alone = subprocess.run(
            LIST, stdin=subprocess.DEVNULL, capture_output=True, text=True, pass_fds=given
        )
        listed = trace(*LIST, given=given).stderr.split()
        assert sorted(listed) == sorted(alone.stdout.split())
        assert {"103", "107", "163"} <= set(listed)
        for number in given:
            script = f"cat <&{number}" if number < 10 else f"cat /proc/self/fd/{number}"
            assert f"descriptor {number}" in trace("/bin/sh", "-c", script, given=given).stderr
    finally:
        for number in given:
            os.close(number)


@pytest.mark.parametrize(
    ("text", "mode", "message", "hint"),
    [
        ("echo x\n", 0o755, "cannot be executed", "begin a script with #!"),
        ("#!/none/sh\n", 0o755, "cannot be executed: its interpreter '/none/sh'", "install it"),
        ("#!/bin/sh\n", 0o644, "is not executable", "chmod +x"),
    ],
)
def test_a_script_that_cannot_be_executed_is_an_error(
    tmp_path: Path, text: str, mode: int, message: str, hint: str
) -> None:
    """It has no phases to show, and no run to keep."""
    script, out = tmp_path / "script", tmp_path / "out"
    script.write_text(text)
    script.chmod(mode)
    done = subprocess.run(
        [FIRSTLIGHT, "trace", "--out", out, "--", script], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"{str(script)!r} {message}" in done.stderr
    assert f"Hint: {hint}" in done.stderr
    assert not out.exists()


def trace_with_copies(out: Path, *words: str, before: str = "", programs: str = "") -> Run:
    """A trace as on a kernel that preempts programs, with the eBPF ``programs`` if given."""
    code = (
        "import sys; from pathlib import Path; from firstlight.trace import bpf; "
        "bpf.is_preemptible = lambda: True; native = bpf.native; "
        f"bpf.native = lambda name: Path({programs!r}) if {programs!r} and name == 'trace.bpf.o' "
        "else native(name); "
        "from firstlight.cli.main import main; main()"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{before}exec "$@"', "sh", sys.executable, "-c", code,
         "trace", "--out", out, "--", *words],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = read(out)
    assert run.samples[0].lost == 0
    return run


def test_preemptible_copies_need_no_tracefs(tmp_path: Path) -> None:
    """As in a container."""
    hide = "for at in tracing debug; do umount --lazy /sys/kernel/$at; done 2> /dev/null; "
    run = trace_with_copies(tmp_path / "run", *WORK, before=hide)
    assert run.spans_of(run.samples[0]).filter(pl.col("kind") == "call").height > 50


def test_copied_programs_record_each_event_once(tmp_path: Path) -> None:
    """Alone: as if the kernel had skipped each program every time."""
    words = ("/usr/bin/unshare", "--mount", "--net", "--pid", "--fork", *WORK)
    native = Path(__file__).parents[2] / "native"
    source, built = tmp_path / "alone.bpf.c", tmp_path / "alone.bpf.o"
    text = (native / "trace/trace.bpf.c").read_text()
    for name in ("sched_process_fork", "sched_process_exec", "sched_process_exit",
                 "percpu_alloc_percpu", "sys_enter", "sys_exit"):  # fmt: skip
        section = f'SEC("tp_btf/{name}")'
        assert section in text
        text = text.replace(section, section.replace("tp_btf", "?tp_btf"))  # is not loaded
    source.write_text(text)
    machine = os.uname().machine
    arch = {"x86_64": "x86", "aarch64": "arm64"}[machine]
    subprocess.run(
        ["clang", "-g", "-O2", "-target", "bpf", "-mcpu=v3",
         f"-D__TARGET_ARCH_{arch}", f"-D__{machine}__",
         "-I", native, f"-I/usr/include/{machine}-linux-gnu", "-c", source, "-o", built],
        check=True, timeout=60,
    )  # fmt: skip

    def reported(run: Run) -> Counter[tuple[str, str]]:
        spans = run.spans_of(run.samples[0])
        kept = spans.filter(pl.col("kind").is_in(["call", "fork", "exec", "exit", "mark"]))
        return Counter(kept.select("kind", "name").rows())

    run = trace_with_copies(tmp_path / "whole", *words)
    whole = reported(run)
    assert {"fork", "exec", "exit", "mark"} <= {kind for kind, _ in whole}
    assert run.spans_of(run.samples[0]).select("kind", "tid", "start").is_unique().all()
    assert reported(trace_with_copies(tmp_path / "alone", *words, programs=str(built))) == whole


def share_attributed(output: str) -> float:
    rows = json.loads(output)["breakdown"]
    whole = sum(row["wall"] for row in rows)
    known = sum(row["wall"] for row in rows if row["phase"] != "unattributed")
    return float(known / whole)


def test_a_trace_in_a_pid_namespace_sees_what_one_outside_does() -> None:
    inner = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    outside = share_attributed(trace(*WORK).stdout)
    assert share_attributed(trace(*WORK, before=inner).stdout) > outside / 2
    assert share_attributed(trace(*WORK, before=(*inner, *inner)).stdout) > outside / 2


def test_a_trace_in_a_time_namespace_has_the_times_of_its_clock() -> None:
    inner = ("unshare", "--time", "--monotonic", "100000", "--fork")
    phases = {row["phase"] for row in json.loads(trace(*WORK, before=inner).stdout)["breakdown"]}
    assert {"process.start", "sleep"} <= phases


def test_a_container_is_followed_into_its_own_pid_namespace() -> None:
    """Its processes have a number in the tracer's namespace and another in their own."""
    inner = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    output = trace("unshare", "--pid", "--fork", *WORK, before=inner).stdout
    phases = {row["phase"] for row in json.loads(output)["breakdown"]}
    assert "process.start" in phases


def test_waits_whose_reason_the_kernel_hides_say_so(tmp_path: Path) -> None:
    hidden = tmp_path / "kallsyms"
    hidden.write_text("0000000000000000 T _stext\n" * 200)
    script = f'mount --bind {hidden} /proc/kallsyms; exec "$@"'
    output = trace(*WORK, before=("unshare", "--mount", "sh", "-ec", script, "sh")).stdout
    causes = {row["cause"] for row in json.loads(output)["breakdown"]}
    assert "unknown wait (kernel symbols are hidden)" in causes


def test_trace_refuses_unwritable_directory_first(
    tmp_path: Path,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for out in (tmp_path / "full", Path("/proc/nowhere")):
        done = subprocess.run(
            [FIRSTLIGHT, "trace", "--out", out, "--", "/bin/touch", tmp_path / "ran"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode != 0
        assert "--out" in done.stderr
        assert not (tmp_path / "ran").exists()


def test_words_of_any_bytes_are_traced_kept_and_shown(tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/na\xffme\n"
    Path(os.fsdecode(program)).symlink_to("/bin/echo")
    out = os.fsencode(tmp_path) + b"/ou\xfft"
    done = subprocess.run(
        [FIRSTLIGHT, "trace", "--out", out, "--", program, b"wo\xfe\n\x1b[31mrd"],
        capture_output=True, timeout=60, env={**os.environb, b"X\xff": b"\xff"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"wo\xfe\n\x1b[31mrd\n")
    shown = subprocess.run([FIRSTLIGHT, "report", "--json", out], capture_output=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    table = subprocess.run([FIRSTLIGHT, "report", out], capture_output=True, timeout=60)
    assert table.returncode == 0, table.stderr
    assert b"\x1b[31m" not in table.stdout
    assert "na\\xffme" in json.loads(shown.stdout)["runs"][0]["points"][0]["point"]["command"]


def test_trace_without_awaited_exec_leaves_no_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [FIRSTLIGHT, "trace", "--out", tmp_path / "run", "--until", "never", "--", "/bin/true"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "did not execute 'never'" in done.stderr
    assert not (tmp_path / "run").exists()
