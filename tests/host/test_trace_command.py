"""``firstlight trace``: the command runs as it would by itself, wherever that is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from firstlight.store import read

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


def test_a_command_has_the_descriptors_that_it_is_given_and_no_others(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("hidden", [False, True])
def test_the_copies_of_a_preemptible_kernel_lose_nothing_and_take_nothing_twice(
    tmp_path: Path, *, hidden: bool
) -> None:
    """Each program has a copy then; ``hidden``: in a container that shows no tracefs."""
    code = (
        "import sys; from firstlight.trace import bpf; bpf.is_preemptible = lambda: True; "
        "from firstlight.cli.main import main; main()"
    )
    host = "for at in tracing debug; do umount --lazy /sys/kernel/$at; done 2> /dev/null; "
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{host if hidden else ""}exec "$@"', "sh",
         sys.executable, "-c", code, "trace", "--out", tmp_path / "run", "--", *WORK],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = read(tmp_path / "run")
    calls = run.spans_of(run.samples[0]).filter(pl.col("kind") == "call")
    assert run.samples[0].lost == 0
    assert calls.height > 50
    assert calls.height == calls.unique(["tid", "start"]).height


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


def test_a_directory_that_cannot_be_written_is_refused_before_the_command_runs(
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


def test_a_command_that_never_executes_what_is_waited_for_leaves_no_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [FIRSTLIGHT, "trace", "--out", tmp_path / "run", "--until", "never", "--", "/bin/true"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "did not execute 'never'" in done.stderr
    assert not (tmp_path / "run").exists()
