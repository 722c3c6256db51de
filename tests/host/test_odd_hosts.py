"""Hosts that lack something, played by mount namespaces: doctor knows, a run refuses by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FIRSTLIGHT = Path(sys.executable).parent / "firstlight"
RUN = f"{FIRSTLIGHT} run container-creation --runtime runc --instances 1 --repetitions 1 --no-trace"
NO_CGROUPS = "umount --recursive /sys/fs/cgroup"
READ_ONLY_RUN = "mount -t tmpfs -o ro none /run"
FULL_RUN = "mount -t tmpfs -o nr_inodes=3 none /run"
NOWHERE = (
    "for at in /tmp /var/tmp; do mount --bind $at $at; mount -o remount,bind,ro $at; done; "
    "cd /proc; unset TMPDIR"
)
PART_OF_PROC = "mount -t proc -o subset=pid proc /proc"
EMPTY = "for name in {}; do mount --bind /dev/null /proc/$name; done"
NO_MEMORY, NO_CPUS = EMPTY.format("meminfo"), EMPTY.format("stat cpuinfo loadavg")
NO_USER = "cp -a /etc new; rm new/passwd; mount --bind new /etc; unset HOME"


def on(host: str, command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a mount namespace that a command has changed."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{host} || exit 99; {command}"],
        capture_output=True, text=True, cwd=directory, timeout=120,
    )  # fmt: skip
    assert done.returncode != 99, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_doctor_starts_a_container_before_it_says_ready(tmp_path: Path) -> None:
    code = "from firstlight.lab import doctor; print(doctor.runc().ok, doctor.runc().fact)"
    command = f"{sys.executable} -c '{code}'"
    assert on(":", command, tmp_path).stdout.startswith("True ")
    done = on(NO_CGROUPS, command, tmp_path)
    assert done.stdout.startswith("False ")
    assert "cannot start a container: runc run failed:" in done.stdout
    done = on(READ_ONLY_RUN, command, tmp_path)
    assert "cannot start a container: cannot make /run/firstlight" in done.stdout


@pytest.mark.parametrize(
    ("host", "ready", "words"),
    [
        (PART_OF_PROC, False, "/proc has no meminfo"),
        (NO_MEMORY, False, "memory cannot tell: /proc/meminfo has no MemTotal"),
        (NO_CPUS, False, "/proc has no stat, cpuinfo"),
        (NO_USER, True, ""),
    ],
)
def test_doctor_answers_on_odd_hosts(host: str, *, ready: bool, words: str, tmp_path: Path) -> None:
    done = on(host, f"{FIRSTLIGHT} doctor --json", tmp_path)
    document = json.loads(done.stdout)
    broken = [f"{each['name']} {each['fact']}" for each in document["checks"] if not each["ok"]]
    assert (document["ready"], done.returncode) == (ready, 0 if ready else 1)
    assert any(words in each for each in broken)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (READ_ONLY_RUN, "cannot make /run/firstlight"),
        (FULL_RUN, "No space left on device"),
        (PART_OF_PROC, "/proc/meminfo: No such file or directory"),
        (NO_MEMORY, "/proc/meminfo has no MemTotal"),
    ],
)
def test_a_run_refuses_by_name_and_leaves_nothing(host: str, words: str, tmp_path: Path) -> None:
    command = f"{RUN} --out {tmp_path}/run; code=$?; ls /run; exit $code"
    done = on(f"mount -t tmpfs none /run && {{ {host}; }}", command, tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Hint: " in done.stderr
    assert "firstlight" not in done.stdout


def test_a_run_without_a_start_says_why(tmp_path: Path) -> None:
    done = on(NO_CGROUPS, f"{RUN} --out {tmp_path}/run --json", tmp_path)
    assert done.returncode == 1
    assert "firstlight: no start became ready; the first exited with status 1" in done.stderr
    assert "runc run failed" in done.stderr


@pytest.mark.parametrize(
    "host",
    ["ulimit -n 64", "umask 0777", "trap '' CHLD",
     "export PYTHONWARNDEFAULTENCODING=1 PYTHONWARNINGS=error"],
)  # fmt: skip
def test_a_run_works_whatever_it_inherits_and_leaves_nothing(host: str, tmp_path: Path) -> None:
    command = f"mount -t tmpfs none /run && {RUN} --out {tmp_path}/run && ls /run > left"
    done = on(host, command, tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "firstlight" not in (tmp_path / "left").read_text()


def test_run_files_are_readable_whatever_umask(tmp_path: Path) -> None:
    """Also where the umask allows it to nobody; afterwards it is the caller's again."""
    code = """
import os, stat
from firstlight.host.workspace import sandbox
with sandbox(f"umask-{os.getpid()}") as workspace:
    root = workspace.directory / "root"
    root.mkdir()
    print(oct(stat.S_IMODE(root.stat().st_mode)), oct(os.umask(0o022)))
print(oct(os.umask(0)))
"""
    (tmp_path / "code.py").write_text(code)
    done = on("umask 077", f"{sys.executable} {tmp_path}/code.py", tmp_path)
    assert done.stdout.split() == ["0o755", "0o22", "0o77"], done.stderr


def test_missing_temporary_directory_is_reported(tmp_path: Path) -> None:
    assert on(NOWHERE, f"{FIRSTLIGHT} clean --dry-run", tmp_path).returncode == 0
    done = on(NOWHERE, f"{FIRSTLIGHT} trace --out /run/unused -- true", tmp_path)
    assert done.returncode == 2
    assert "temporary files can be written neither to TMPDIR" in done.stderr


def test_a_trace_without_a_working_directory_is_refused(tmp_path: Path) -> None:
    host = "mkdir gone && cd gone && rmdir ../gone"
    done = on(host, f"{FIRSTLIGHT} trace -- /bin/true", tmp_path)
    assert done.returncode == 2
    assert "in the working directory: No such file or directory" in done.stderr


def test_tracer_loads_under_callers_limit_of_open_files(tmp_path: Path) -> None:
    command = f"{FIRSTLIGHT} trace --out traced -- /bin/sh -c 'ulimit -n > files'"
    done = on("ulimit -Sn 24", command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "files").read_text() == "24\n"


def test_an_unbindable_root_file_system_is_named(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from firstlight.agile.parts.roots import open_root
Path("root/dev").mkdir()
open_root(Path.cwd() / "root", Path.cwd() / "skeleton")
"""
    (tmp_path / "code.py").write_text(code)
    host = "mkdir root && mount -t tmpfs none root && mount --make-unbindable root"
    done = on(host, f"{sys.executable} code.py 2>&1 | grep -v Traceback", tmp_path)
    assert f"is in the mount {tmp_path}/root, which is unbindable" in done.stdout


@pytest.mark.parametrize(
    ("less", "words"),
    [
        ("setpriv --bounding-set=-kill,-mknod", "the runtime lacks CAP_KILL, CAP_MKNOD"),
        ("unshare --map-root-user", "this is root of a user namespace"),
        ("sh -c 'mount --rbind / $PWD && exec chroot $PWD \"$@\"' -", "/ is a chroot"),
    ],
)
def test_a_runtime_without_its_rights_is_refused(less: str, words: str, tmp_path: Path) -> None:
    command = f"exec {less} {FIRSTLIGHT} agile up"
    done = on("mount -t tmpfs none /run", command, tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
