"""Kills real labs, and looks at what cleaning finds, removes and leaves alone."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from firstlight.host import cgroups
from firstlight.host.workspace import STATE
from firstlight.lab import clean

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LAB = """
import subprocess, sys
from pathlib import Path
from firstlight.host import cgroups
from firstlight.host.workspace import sandbox

run = sys.argv[1]
with sandbox(run) as workspace:
    def start(env):
        return subprocess.Popen(["sleep", "1000"], env=env, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, start_new_session=True)
    marked = start(workspace.environment)
    inside = start({})
    deep = start({})
    for hierarchy in cgroups.hierarchies():
        group = hierarchy / cgroups.name(run) / "instance"
        group.mkdir(parents=True)
    Path("/sys/fs/cgroup/pids", cgroups.name(run), "instance/cgroup.procs").write_text(
        str(deep.pid)
    ) if Path("/sys/fs/cgroup/pids").is_dir() else (group / "cgroup.procs").write_text(
        str(deep.pid)
    )
    image = workspace.directory / "image"
    image.write_bytes(bytes(1 << 20))
    loop = subprocess.run(["losetup", "--find", "--show", image], check=True,
                          capture_output=True, text=True).stdout.strip()
    print(marked.pid, inside.pid, deep.pid, loop, flush=True)
    sys.stdin.read()
    for process in (marked, inside, deep):
        process.kill()
        process.wait()
    subprocess.run(["losetup", "--detach", loop], check=True)
"""


@dataclass(frozen=True)
class Lab:
    """A lab with three processes (one marked, one only in its namespaces, one in its cgroup)."""

    run: str
    process: subprocess.Popen[str]
    pids: tuple[int, ...]
    loop: str

    def kill(self) -> None:
        """SIGKILL it, and leave it a zombie until the test ends."""
        self.process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    @property
    def groups(self) -> list[Path]:
        """Its cgroups that exist."""
        tops = [each / cgroups.name(self.run) for each in cgroups.hierarchies()]
        return [top for top in tops if top.exists()]

    @property
    def remains(self) -> list[str]:
        """Whatever of it there is, the lab itself apart."""
        bound = Path("/sys/block", Path(self.loop).name, "loop").exists()
        return [
            *(f"process {pid}" for pid in self.pids if runs(pid)),
            *map(str, self.groups),
            *([self.loop] if bound else []),
            *([str(STATE / self.run)] if (STATE / self.run).exists() else []),
        ]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def lab() -> Iterator[Lab]:
    run = f"test-{secrets.token_hex(4)}"
    process = subprocess.Popen(
        [sys.executable, "-c", LAB, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    *pids, loop = process.stdout.readline().split()
    try:
        yield Lab(run, process, tuple(map(int, pids)), loop)
    finally:
        process.communicate()


@pytest.fixture
def killed() -> Iterator[Lab]:
    with lab() as made:
        made.kill()
        yield made
        clean.clean()


def mine(made: Lab) -> list[clean.Leftover]:
    names = (made.run, made.loop, *(f"{pid} (" for pid in made.pids))
    return [each for each in clean.leftovers() if any(name in each.name for name in names)]


def test_all_that_a_killed_lab_left_is_found_and_removed(killed: Lab) -> None:
    assert len(killed.remains) == 3 + len(cgroups.hierarchies()) + 1 + 1
    assert [each.kind for each in mine(killed)] == [
        *["process"] * 3,
        "cgroup",
        "loop device",
        "directory",
    ]
    cleaned = clean.clean()
    assert not cleaned.failed
    assert killed.remains == []
    assert mine(killed) == []


def test_clean_detaches_loop_of_lost_mount_namespace(killed: Lab) -> None:
    for pid in killed.pids:
        os.kill(pid, signal.SIGKILL)
    backing = Path("/sys/block", Path(killed.loop).name, "loop/backing_file")
    deadline = time.monotonic() + 10
    while killed.run in backing.read_text():
        assert time.monotonic() < deadline
        os.sched_yield()
    assert killed.loop in [each.name for each in mine(killed)]
    assert not clean.clean().failed
    assert killed.remains == []


def test_a_lab_that_is_alive_keeps_everything(killed: Lab) -> None:
    with lab() as alive:
        before = alive.remains
        assert mine(alive) == []
        assert not clean.clean().failed
        assert (killed.remains, alive.remains) == ([], before)
    assert alive.remains == []


def test_clean_keeps_live_lab_of_other_pid_namespace() -> None:
    """Its pid says nothing here: a container may share /run with the host."""
    run = f"test-{secrets.token_hex(4)}"
    container = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", LAB,
         run],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert container.stdout is not None
    try:
        assert len(container.stdout.readline().split()) == 4
        cleaned = clean.clean()
        touched = [*cleaned.removed, *(each for each, _ in cleaned.failed)]
        assert not [each.name for each in touched if run in each.name]
        assert container.poll() is None
        assert (STATE / run).exists()
    finally:
        container.kill()
        container.communicate()
    deadline = time.monotonic() + 60
    while (STATE / run).exists() or any(
        (hierarchy / cgroups.name(run)).exists() for hierarchy in cgroups.hierarchies()
    ):
        assert time.monotonic() < deadline
        clean.clean()


def test_what_is_not_ours_is_left_alone(killed: Lab, tmp_path: Path) -> None:
    """Also where it looks like ours: a populated cgroup of the name, a process of a live lab."""
    stranger = f"firstlight-foreign-{secrets.token_hex(4)}"
    group = cgroups.hierarchies()[0] / stranger
    image = tmp_path / "firstlight.img"
    image.write_bytes(bytes(1 << 20))
    with ExitStack() as stack:
        group.mkdir()
        stack.callback(group.rmdir)
        sleepers = []
        for environment in ({}, {"FIRSTLIGHT_RUN": "x", "FIRSTLIGHT_LAB": live_lab()}):
            sleeper = subprocess.Popen(["sleep", "1000"], env=environment)
            stack.callback(sleeper.wait)
            stack.callback(sleeper.kill)
            sleepers.append(sleeper)
        (group / "cgroup.procs").write_text(str(sleepers[0].pid))
        stack.callback((group.parent / "cgroup.procs").write_text, str(sleepers[0].pid))
        loop = subprocess.run(
            ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True
        ).stdout.strip()
        stack.callback(subprocess.run, ["losetup", "--detach", loop], check=True)

        assert not clean.clean().failed
        assert killed.remains == []
        assert all(runs(sleeper.pid) for sleeper in sleepers)
        assert group.exists()
        assert Path("/sys/block", Path(loop).name, "loop/backing_file").exists()


def live_lab() -> str:
    return f"{os.getpid()}:{clean._stat(os.getpid())[19]}"


def test_clean_ends_process_of_dead_lab() -> None:
    """Its lab's pid is in use again, by a process that began at another time."""
    environment = {"FIRSTLIGHT_RUN": "gone", "FIRSTLIGHT_LAB": f"{os.getpid()}:1"}
    with subprocess.Popen(
        ["sh", "-c", "echo up; read word"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as orphan:
        assert orphan.stdout is not None
        assert orphan.stdout.readline() == "up\n"
        result = [each.name for each in clean.leftovers()]
        clean.clean()
        assert f"{orphan.pid} (sh)" in result
        assert orphan.wait() == -signal.SIGKILL


def test_a_cgroup_without_directory_goes_only_when_it_is_empty() -> None:
    empty = cgroups.hierarchies()[0] / f"firstlight-test-{secrets.token_hex(4)}"
    (empty / "below").mkdir(parents=True)
    clean.clean()
    assert not empty.exists()


def test_clean_keeps_ownerless_new_directory() -> None:
    directory = STATE / f"test-{secrets.token_hex(4)}"
    directory.mkdir(parents=True)
    try:
        assert all(each.name != str(directory) for each in clean.leftovers())
    finally:
        directory.rmdir()


def test_a_directory_is_never_emptied_through_a_mount(tmp_path: Path) -> None:
    """A bind mount of the user's files inside is detached first."""
    (tmp_path / "precious").write_text("mine")
    directory = STATE / f"test-{secrets.token_hex(4)}"
    (directory / "bound").mkdir(parents=True)
    (directory / "owner").write_text("1 0")
    subprocess.run(["mount", "--bind", tmp_path, directory / "bound"], check=True)
    try:
        assert not clean.clean().failed
    finally:
        subprocess.run(["umount", directory / "bound"], capture_output=True)
    assert not directory.exists()
    assert (tmp_path / "precious").read_text() == "mine"


def test_clean_removes_only_namespaces_of_dead_runs() -> None:
    run = f"t{secrets.token_hex(3)}"
    directory = STATE / run
    directory.mkdir(parents=True)
    (directory / "owner").write_text("1 0")
    ours, foreign = f"fl-{run}-0", f"fl-x{run}"
    for name in (ours, foreign):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        clean.clean()
        assert not Path("/run/netns", ours).exists()
        assert Path("/run/netns", foreign).exists()
    finally:
        subprocess.run(["ip", "netns", "delete", foreign], check=True)


def test_cleaning_does_not_end_itself() -> None:
    """As when ``firstlight clean`` is typed in a shell that a dead lab had started."""
    code = "from firstlight.lab import clean; clean.clean(); print('alive')"
    environment = {**os.environ, "FIRSTLIGHT_RUN": "gone", "FIRSTLIGHT_LAB": "1:0"}
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "{code}"; echo shell'],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["alive", "shell"]


@pytest.mark.parametrize("alive", [False, True])
def test_clean_removes_leftovers_of_old_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, alive: bool
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(clean, "_is_watch", lambda _: alive)
    ours, foreign, open_to_all = (tmp_path / f"firstlight-watch-{name}" for name in "abc")
    for directory, mode in ((ours, 0o700), (foreign, 0o700), (open_to_all, 0o755)):
        directory.mkdir(mode)
        (directory / "window.3.events").touch()
    (ours / "watch-20261129T065012.123456").mkdir()
    (foreign / "thesis.tex").touch()
    (tmp_path / "firstlight-watch-link").symlink_to(ours)
    result = [each.name for each in clean.leftovers() if each.name.startswith(str(tmp_path))]
    assert result == ([] if alive else [str(ours)])
