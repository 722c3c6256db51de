"""The tracer against known work: what a program does exactly must be reported exactly.

One file, because every test checks the same instrument by the same helpers.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.support.laboratory import NATIVE, Bench, Seen, commands_of, compiled, sanitized

from firstlight.analysis.breakdown import timeline
from firstlight.analysis.causes import QUEUED
from firstlight.errors import Failed
from firstlight.lab.backends.network import NetworkSetup
from firstlight.lab.backends.oci import Oci
from firstlight.lab.backends.process import FLAGS
from firstlight.lab.load import Generator, Sequence
from firstlight.model import EndPoint
from firstlight.native import native
from firstlight.trace import bpf

MS = 1_000_000
SOURCE = NATIVE.parent.parent / "native" / "trace"


def own_time(seen: Seen) -> tuple[int, int]:
    """Begin and end of the known work by the program's own clock."""
    [step] = seen.sample.steps
    return step.start, step.end


def path_of(seen: Seen, column: str, value: int) -> pl.DataFrame:
    """The stretches of the critical path that one process (``pid``) or thread (``tid``) owns."""
    return timeline(seen.run, seen.sample).filter(pl.col(column) == value)


def children(seen: Seen, kind: str = "process") -> list[int]:
    """What the program itself forked, in order."""
    forks = seen.spans.filter((pl.col("kind") == "fork") & (pl.col("name") == kind))
    return forks.filter(pl.col("peer") != seen.sample.pid)["peer"].to_list()


def length(rows: pl.DataFrame) -> int:
    return int((rows["end"] - rows["start"]).sum())


def test_twenty_three_network_namespaces_are_twenty_three(bench: Bench, known: Path) -> None:
    seen = bench.start(known, "netns", "23")
    calls = seen.calls("unshare", "net")
    assert len(calls) == 23
    assert calls["result"].to_list() == [0] * 23
    start, end = own_time(seen)
    assert calls["start"].min() >= start  # type: ignore[operator]
    assert calls["end"].max() <= end  # type: ignore[operator]
    assert seen.wall("ns.net") >= length(calls)
    assert seen.lost == 0


def queued(seen: Seen) -> int:
    """The time without a CPU, in ns. A busy machine takes it from sleeps that have just begun."""
    return seen.wall(None, "waiting for a CPU")


def test_a_sleep_between_calls_is_of_its_own_phase_and_cause(
    bench: Bench, known: Path, tmp_path: Path
) -> None:
    seen = bench.start(known, "mount-sleep", tmp_path, "50")
    assert seen.wall("sleep", "sleep") + queued(seen) >= 0.95 * 50 * MS
    assert seen.wall(None, "sleep") == seen.wall("sleep", "sleep")
    assert seen.calls("mount", f"{tmp_path} tmpfs")["result"].to_list() == [0]
    assert seen.calls("umount2", str(tmp_path))["result"].to_list() == [0]


def test_cpu_between_calls_is_own_phase(bench: Bench, known: Path, tmp_path: Path) -> None:
    seen = bench.start(known, "mount-burn", tmp_path, "50")
    start, end = own_time(seen)
    burnt = seen.wall("compute", "on CPU") + seen.wall("compute", "lock: spinlock")
    # Not the thread's own clock, but ours, runs on while a hypervisor takes the CPU away.
    assert 0.95 * 50 * MS <= burnt <= end - start - seen.wall("compute", "waiting for a CPU")
    assert seen.wall(None, "sleep") == 0


def test_long_preparation_is_not_part_of_call(bench: Bench, known: Path) -> None:
    seen = bench.start(known, "late", "30")
    assert seen.wall("compute", "on CPU") >= 0.95 * 30 * MS
    assert seen.wall("sleep") + queued(seen) >= 0.95 * 2 * 30 * MS
    for phase in ("fork", "handshake"):
        assert seen.wall(phase, "sleep") == 0
        assert seen.wall(phase, "on CPU") < 10 * MS


def test_a_wait_that_a_timeout_ends_is_a_sleep(bench: Bench, known: Path, tmp_path: Path) -> None:
    seen = bench.start(known, "timeouts", tmp_path, "20")
    assert seen.wall("sleep", "sleep: timeout") + queued(seen) >= 0.95 * 5 * 20 * MS
    assert seen.wall(None, "another ") == 0
    ended = seen.spans.filter(pl.col("kind") == "blocked").filter(pl.col("name") == "timer")
    assert ended["peer"].to_list() == [0] * len(ended)


_OFTEN = """import time
for _ in range(500):
    time.sleep(5e-4)
print("firstlight ready 1", flush=True)"""


def test_each_of_many_waits_is_seen(bench: Bench) -> None:
    """Some kernels do not report each switch to a thread. One whose timer has ended before it
    sleeps does not wait.
    """
    seen = bench.start(sys.executable, "-c", _OFTEN)
    slept = seen.spans.filter(
        (pl.col("kind") == "blocked") & pl.col("stack").cast(pl.String).str.contains("nanosleep")
    )
    assert 497 <= len(slept) <= 500
    assert not seen.lost


def test_the_time_that_is_waited_for_a_child_is_the_childs(bench: Bench, known: Path) -> None:
    seen = bench.start(known, "child", "50")
    [child] = children(seen)
    slept = path_of(seen, "pid", child).filter(pl.col("cause") == "sleep")
    assert length(slept) + queued(seen) >= 0.95 * 50 * MS
    assert seen.wall(None, "another process") < 1 * MS


def test_waits_after_a_processs_exit_have_causes(bench: Bench, known: Path) -> None:
    seen = bench.start(known, "leave", "20")
    exits = dict(seen.spans.filter(pl.col("kind") == "exit").select("pid", "start").iter_rows())
    waits = seen.spans.filter(
        (pl.col("kind") == "blocked") & pl.col("stack").cast(pl.String).str.contains("do_exit")
    )
    late = {pid for pid, at in waits.select("pid", "start").iter_rows() if at >= exits[pid]}
    assert late  # one whose grace period is over by then need not wait
    assert late <= set(children(seen))
    gone = dict(seen.spans.filter(pl.col("kind") == "gone").select("pid", "start").iter_rows())
    assert any(gone.get(pid, 0) > exits[pid] for pid in late)
    path = timeline(seen.run, seen.sample).filter(pl.col("phase") == "process.exit")
    assert length(path.filter(pl.col("cause").str.starts_with("RCU: "))) > 0
    assert seen.wall("compute") == 0


def test_the_time_that_is_waited_for_a_thread_is_the_threads(
    bench: Bench, known: Path, tmp_path: Path
) -> None:
    seen = bench.start(known, "thread", tmp_path, "300")
    [thread] = children(seen, "thread")
    owned = path_of(seen, "tid", thread)
    work = seen.spans.filter(
        (pl.col("tid") == thread) & pl.col("detail").str.contains(r"known-\d+$")
    )
    assert Counter(work["name"].to_list()) == {"openat": 300, "close": 300, "unlink": 300}
    assert length(owned) >= length(work)
    assert length(owned.filter(pl.col("shade") == "kernel")) >= length(work)
    assert seen.wall(None, "another thread") < 1 * MS


def test_sixty_four_threads_are_all_followed(bench: Bench, known: Path) -> None:
    seen = bench.start(known, "threads", "64")
    threads = children(seen, "thread")
    assert len(set(threads)) == 64
    calls = seen.calls("access", "/sys/fs/cgroup")
    assert sorted(calls["tid"].to_list()) == sorted(threads)
    assert set(calls["pid"].to_list()) == {seen.sample.pid}
    exits = seen.spans.filter(pl.col("kind") == "exit")
    assert sorted(exits["tid"].to_list()) == sorted([*threads, seen.sample.pid])


def test_ping_pong_is_never_a_wait_of_its_own(bench: Bench, known: Path) -> None:
    seen = bench.start(known, "ping-pong", "200")
    [child] = children(seen)
    for name in ("read", "write"):
        calls = seen.calls(name, "pipe:").filter(pl.col("end") <= own_time(seen)[1])
        assert Counter(calls["pid"].to_list()) == {seen.sample.pid: 200, child: 200}
    assert length(path_of(seen, "pid", child)) > 0
    assert seen.wall(None, "another process: pipe") < 0.05 * seen.wall()


def test_wait_for_a_file_lock_belongs_to_its_holder(
    bench: Bench, known: Path, tmp_path: Path
) -> None:
    seen = bench.start(known, "flock", tmp_path / "lock", "50")
    [child] = children(seen)
    slept = path_of(seen, "pid", child).filter(pl.col("cause") == "sleep")
    assert length(slept) + queued(seen) >= 0.95 * 50 * MS


def test_seccomp_wait_is_charged_to_supervisor(bench: Bench, known: Path, tmp_path: Path) -> None:
    seen = bench.start(known, "notify", tmp_path, "50")
    [child] = children(seen)
    assert seen.calls("chdir", str(tmp_path))["pid"].to_list() == [child]
    assert length(path_of(seen, "pid", child)) > 0
    slept = path_of(seen, "pid", seen.sample.pid).filter(pl.col("cause") == "sleep")
    assert length(slept) + queued(seen) >= 0.95 * 50 * MS


def test_what_io_uring_is_waited_for_is_named(bench: Bench, known: Path) -> None:
    state = Path("/proc/sys/kernel/io_uring_disabled")
    if not state.exists() or state.read_text().strip() == "2":
        pytest.skip("io_uring is not known to be allowed: sysctl kernel.io_uring_disabled=0")
    seen = bench.start(known, "uring", "50")
    assert seen.calls("io_uring_enter")["result"].to_list() == [1]
    waited = seen.wall(None, "another process: io_uring")
    assert waited + queued(seen) >= 0.95 * 50 * MS


def test_a_chain_of_vfork_and_execve_is_followed_to_its_end(bench: Bench, known: Path) -> None:
    seen = bench.start(known, "vfork", "5")
    chain = children(seen)
    assert len(chain) == 5
    executed = seen.spans.filter(pl.col("kind") == "exec")
    assert executed["pid"].to_list() == [seen.sample.pid, *chain]
    assert executed["detail"].to_list() == [str(known), *["/proc/self/exe"] * 5]
    owned = timeline(seen.run, seen.sample).filter(pl.col("pid").is_in(chain))
    assert length(owned) > 0  # how much depends on which of two CPUs each link ran on


def test_tracer_follows_execve_of_other_thread(bench: Bench, known: Path) -> None:
    seen = bench.start(known, "thread-exec")
    assert seen.spans.filter(pl.col("kind") == "exec")["tid"].to_list() == [seen.sample.pid] * 2
    last = seen.spans.filter(pl.col("kind") == "exit").row(-1, named=True)
    assert last["tid"] == seen.sample.pid
    message = seen.calls("write", "pipe:")
    assert len(message) == 2
    assert message["start"].min() > own_time(seen)[1]  # type: ignore[operator]
    [thread] = children(seen, "thread")
    gone = seen.spans.filter((pl.col("kind") == "exit") & (pl.col("tid") == thread))
    assert gone["end"][0] <= seen.spans.filter(pl.col("kind") == "exec")["start"][1]


def test_no_thread_that_takes_the_first_ones_number_is_lost(bench: Bench, known: Path) -> None:
    seen = bench.start(known, "thread-execs", "1000")
    gone = seen.spans.filter(pl.col("kind") == "exit")["tid"].to_list()
    assert set(children(seen, "thread")) - set(gone) == set()
    assert len(seen.spans.filter((pl.col("kind") == "call") & (pl.col("name") == "execve"))) >= 1000


def test_calls_of_a_32_bit_program_have_the_names_of_others(bench: Bench, tmp_path: Path) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("only x86-64 runs 32-bit x86 programs")
    known32 = compiled(
        NATIVE / "known32.c", tmp_path / "program", "-m32", "-nostdlib", "-static", "-fno-pie",
        "-fno-stack-protector",
    )  # fmt: skip
    try:
        subprocess.run([known32, tmp_path / "nowhere"], stdout=subprocess.PIPE, timeout=60)
    except OSError as error:
        pytest.skip(f"this kernel runs no 32-bit program: {error.strerror}")
    seen = bench.start(known32, tmp_path)
    executed = seen.spans.filter(pl.col("kind") == "exec")["start"][0]
    calls = seen.spans.filter((pl.col("kind") == "call") & (pl.col("start") > executed))
    links = "socket:netlink.route RTM_GETLINK"
    assert calls.select("name", "detail").rows() == [
        ("access", str(tmp_path)), ("chdir", str(tmp_path)), ("mkdir", "known32"),
        ("mount", "known32 tmpfs"), ("umount2", "known32"), ("rmdir", "known32"),
        ("unshare", "net"), ("socket", "socket:netlink.route"), ("sendto", links),
        ("sendmsg", links), ("socket", "socket:netlink.route"), ("sendto", links),
        ("accept4", "socket:netlink.route"), ("write", "pipe:"), ("exit_group", ""),
    ]  # fmt: skip
    assert calls.filter(pl.col("result") < 0)["name"].to_list() == ["accept4"]
    assert seen.wall("sleep", "sleep") + queued(seen) >= 0.95 * 50 * MS


def at_once(bench: Bench, *argv: str | Path, count: int) -> pl.DataFrame:
    seen = bench.starts([bench.command(*argv)] * count)
    assert [sample.error for sample in seen.run.samples if sample.error] == []
    assert seen.lost == 0
    return seen.breakdown()


def causes(table: pl.DataFrame, phase: str) -> dict[str, int]:
    """The time in a phase by cause, but for what other programs of this machine cost."""
    rows = table.filter((pl.col("phase") == phase) & (pl.col("cause") != QUEUED))
    return dict(rows.group_by("cause").agg(pl.col("wall").sum()).rows())


def test_concurrent_netns_name_their_locks(bench: Bench, known: Path) -> None:
    result = causes(at_once(bench, known, "netns", "10", count=8), "ns.net")
    locks = {cause for cause, took in result.items() if cause.startswith("lock: ") and took}
    assert any(lock.startswith(("lock: rtnl_mutex", "lock: pernet_ops_rwsem")) for lock in locks)


def test_unmounting_waits_for_a_grace_period_that_is_named(
    bench: Bench, known: Path, tmp_path: Path
) -> None:
    result = causes(at_once(bench, known, "mounts", tmp_path, "40", count=6), "mount")
    graces = {cause: took for cause, took in result.items() if cause.startswith("RCU: ")}
    assert any(cause.endswith("(namespace_unlock)") for cause in graces)
    assert sum(graces.values()) > 0.2 * sum(result.values())


def test_no_wait_is_without_its_reason(bench: Bench, known: Path, tmp_path: Path) -> None:
    seen = bench.starts([bench.command(known, "mounts", tmp_path, "40")] * 6)
    waits = seen.spans.filter(pl.col("kind").is_in(["blocked", "lock"]))
    assert len(waits) > 100
    assert waits.filter(pl.col("stack") == "").is_empty()


REQUESTS = {
    "create": r"RTM_NEWLINK create .*kind=veth",
    "move": r"RTM_(NEW|SET)LINK (?!.*create).*\bnetns\b",
    "up": r"RTM_(NEW|SET)LINK (?!.*create).*\bup\b",
    "address": "RTM_NEWADDR",
    "route": "RTM_NEWROUTE",
}


@pytest.mark.parametrize("method", ["netlink", "ip"])
def test_network_requests_are_read_from_their_messages(bench: Bench, method: str) -> None:
    with commands_of(NetworkSetup(method=method), 1, bench.workspace) as commands:
        seen = bench.starts(commands)
    sent = seen.spans.filter(
        (pl.col("kind") == "call") & pl.col("name").is_in(["sendto", "sendmsg"])
    )["detail"].to_list()
    assert seen.sample.latency is not None
    for request in REQUESTS.values():
        assert any(re.search(f"socket:netlink.route {request}", detail) for detail in sent), sent
    steps = {step.name: step.end - step.start for step in seen.sample.steps}
    table = seen.breakdown()
    for phase, step in (("veth.move", "move"), ("ns.net", "netns"), ("veth", "veth")):
        kernel = table.filter((pl.col("phase") == phase) & (pl.col("shade") == "kernel"))
        assert kernel["summed"].sum() > 0
        assert kernel["wall"].sum() <= steps[step]


def test_cgroup_move_is_explained_by_grace_period(bench: Bench) -> None:
    with commands_of(NetworkSetup(method="netlink"), 4, bench.workspace) as commands:
        seen = bench.starts(commands, shape=Sequence())
    result = causes(seen.breakdown(), "veth.move")
    waits = {cause: took for cause, took in result.items() if cause.startswith("RCU: ")}
    assert sum(waits.values()) > 0.3 * sum(result.values()), result


def test_the_first_network_namespace_by_clone_is_seen_too(bench: Bench) -> None:
    payload = native("payload")
    seen = bench.start(
        payload, "clone", str(sum(FLAGS[kind] for kind in ("net", "mount", "pid"))),
        payload, "ready",
        end_point=EndPoint.FIRST_INSTRUCTION,
    )  # fmt: skip
    assert seen.calls("clone3")["detail"].to_list()[-1] == "net,mount,pid"
    for phase in ("ns.net", "ns.mount", "ns.other"):
        assert seen.wall(phase) > 0
    [child] = children(seen)
    assert path_of(seen, "pid", child)["end"].max() == seen.sample.stamps.ready


# An independent timer and an independent tracer on the same work.


def test_the_total_is_the_programs_own(bench: Bench, known: Path, tmp_path: Path) -> None:
    seen = bench.start(known, "mount-sleep", tmp_path, "30")
    start, end = own_time(seen)
    work = seen.spans.filter((pl.col("start") >= start) & (pl.col("end") <= end))
    first, last = seen.calls("mount")["start"][0], seen.calls("umount2")["end"][-1]
    queued = length(work.filter(pl.col("kind") == "queued"))
    assert start <= first < last <= end
    assert end - start - (last - first) <= 5 * MS + queued
    executed = seen.spans.filter(pl.col("kind") == "exec")["start"][0]
    stamps = seen.sample.stamps
    assert stamps.intended <= stamps.spawned <= executed <= start
    [outcome] = seen.outcomes
    gone = seen.spans.filter(pl.col("kind") == "exit")["end"][0]
    assert gone <= outcome.exited


def strace_counts(log: str, names: set[str]) -> Counter[str]:
    calls = re.findall(r"^\d+ +(\w+)\(", log, flags=re.MULTILINE)
    return Counter(name for name in calls if name in names)


@pytest.mark.parametrize(
    "work",
    [("netns", "3"), ("child", "1"), ("thread", "DIR", "20"), ("threads", "8"),
     ("ping-pong", "50"), ("vfork", "4"), ("mounts", "DIR", "5"), ("files", "DIR", "100")],
    ids=lambda work: work[0],
)  # fmt: skip
def test_strace_counts_the_same_calls(
    bench: Bench, known: Path, tmp_path: Path, work: tuple[str, ...]
) -> None:
    (tmp_path / "dir").mkdir()
    argv = [str(known), *(str(tmp_path / "dir") if word == "DIR" else word for word in work)]
    log = tmp_path / "log"
    done = subprocess.run(
        ["strace", "-f", "-o", log, *argv], env=bench.workspace.environment, cwd="/",
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reported = {call.name for call in bpf.calls().values() if call.subject != "ignored"}
    seen = bench.start(*argv)
    executed = seen.spans.filter(pl.col("kind") == "exec")["start"][0]
    calls = seen.spans.filter((pl.col("kind") == "call") & (pl.col("end") > executed))
    assert Counter(calls["name"].to_list()) == strace_counts(log.read_text(), reported)


def test_strace_and_the_tracer_read_the_same_paths_of_runc(bench: Bench, tmp_path: Path) -> None:
    """Also the empty ones: runc does ask for the status of ""."""
    with commands_of(Oci("runc"), 1, bench.workspace) as [command]:
        done = subprocess.run(
            ["strace", "-f", "-e", "trace=mkdirat,newfstatat", "-s", "200", "-o", tmp_path / "log",
             *command.argv],
            env=command.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0
    with commands_of(Oci("runc"), 1, bench.workspace) as commands:
        seen = bench.starts(commands, end_point=EndPoint.FIRST_INSTRUCTION, to_exit=True)
    log = (tmp_path / "log").read_text()
    made = Counter(re.findall(r'mkdirat\([^"]*"([^"]*)"', log))
    assert Counter(seen.calls("mkdirat")["detail"].to_list()) == made
    empty = len(re.findall(r'newfstatat\(AT_FDCWD, "",', log))
    assert empty > 0
    assert len(seen.calls("newfstatat", "").filter(pl.col("result") == -2)) == empty


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_what_is_mounted_on_a_descriptor_has_its_path(bench: Bench, runtime: str) -> None:
    if not shutil.which(runtime):
        pytest.skip(f"{runtime} is not installed")
    with commands_of(Oci(runtime), 1, bench.workspace) as commands:
        seen = bench.starts(commands, end_point=EndPoint.FIRST_INSTRUCTION)
    targets = [detail.split()[0] for detail in seen.calls("mount")["detail"].to_list()]
    assert any(target.endswith("dev/mqueue") for target in targets), targets
    assert sum(target.startswith("/proc/self/fd/") for target in targets) <= 1, targets


def test_a_long_path_is_read_whole(bench: Bench, known: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / "y"
    deep.mkdir(parents=True)
    seen = bench.start(known, "mount-sleep", deep, "1")
    assert len(str(deep)) > 128
    assert len(seen.calls("mount", f"{deep} tmpfs")) == 1
    assert len(seen.calls("umount2", str(deep))) == 1


# What may be lost must be said.


def test_a_hundred_containers_at_once_lose_no_event(bench: Bench) -> None:
    with commands_of(Oci("runc"), 100, bench.workspace) as commands:
        seen = bench.starts(commands, end_point=EndPoint.FIRST_INSTRUCTION, deadline=60)
    assert [sample.error for sample in seen.run.samples if sample.error] == []
    assert seen.lost == 0
    executed = seen.spans.filter((pl.col("kind") == "exec") & (pl.col("detail") == "/bin/payload"))
    assert sorted(executed["sample"].to_list()) == list(range(100))
    waits = seen.spans.filter(pl.col("kind").is_in(["blocked", "lock"]))
    assert waits.filter(pl.col("stack") == "").is_empty()
    table = seen.breakdown()
    assert table["sample"].n_unique() == 100
    assert seen.wall("unattributed") < 0.05 * seen.wall()


def test_a_ring_that_is_too_small_is_no_secret(bench: Bench, known: Path, tmp_path: Path) -> None:
    with (
        Generator() as generator,
        bpf.Tracer(generator.pid, bench.workspace.directory, ring=4096) as tracer,
    ):
        small = Bench(bench.workspace, generator, tracer, tmp_path)
        seen = small.start(known, "files", tmp_path, "3000")
        assert seen.lost > 0
        assert tracer.losses == f"ring {seen.lost}"
        assert seen.sample.lost == seen.lost
        assert seen.wall() == seen.sample.latency
        again = small.start(known, "say")
        assert again.lost == 0  # each batch has its own count
        assert tracer.losses == ""


@contextmanager
def altered(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, directory: Path, constant: str, value: int
) -> Iterator[Bench]:
    """A bench with the same programs, but for the value of one of their constants."""
    copy = directory / "trace"
    copy.mkdir()
    for name in ("trace.bpf.c", "trace.h", "calls.h"):
        text = (SOURCE / name).read_text()
        (copy / name).write_text(re.sub(rf"\b{constant} = \d+", f"{constant} = {value}", text))
    assert f"{constant} = {value}" in (copy / "trace.h").read_text()
    machine = os.uname().machine
    multiarch = subprocess.check_output(["gcc", "-print-multiarch"], text=True).strip()
    built = directory / "trace.bpf.o"
    subprocess.run(
        ["clang", "-g", "-O2", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3",
         f"-D__{machine}__",
         f"-D__TARGET_ARCH_{'x86' if machine == 'x86_64' else 'arm64'}",
         f"-I/usr/include/{multiarch}", f"-I{directory}", "-c", copy / "trace.bpf.c", "-o", built],
        check=True,
    )  # fmt: skip
    monkeypatch.setattr(bpf, "native", lambda name: built if built.name == name else native(name))
    with Generator() as generator, bpf.Tracer(generator.pid, bench.workspace.directory) as tracer:
        yield Bench(bench.workspace, generator, tracer, directory)


def test_stacks_that_find_no_place_in_the_table_are_not_lost(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, known: Path, tmp_path: Path
) -> None:
    (tmp_path / "mnt").mkdir()
    with altered(monkeypatch, bench, tmp_path, "STACKS", 4) as crowded:
        mounts = crowded.command(known, "mounts", tmp_path / "mnt", "40")
        seen = crowded.starts([mounts, mounts, mounts, *[crowded.command(known, "netns", "9")] * 3])
    waits = seen.spans.filter(pl.col("kind").is_in(["blocked", "lock"]))
    assert waits["stack"].n_unique() > 4
    assert waits.filter(pl.col("stack") == "").is_empty()
    assert seen.lost == 0


def test_threads_that_find_no_place_in_the_table_are_counted(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, known: Path, tmp_path: Path
) -> None:
    with altered(monkeypatch, bench, tmp_path, "TASKS", 4) as crowded:
        seen = crowded.start(known, "threads", "64")
        assert seen.lost > 0
        assert crowded.tracer.losses == f"thread {seen.lost}"
        assert seen.wall() == seen.sample.latency


def roots(tracer: bpf.Tracer) -> set[int]:
    """The instances that the kernel reported of in the last batch, ours or not."""
    events = np.fromfile(tracer._prefix.with_suffix(".events"), dtype=bpf.EVENT)
    return set(events["root"].tolist())


@pytest.mark.parametrize("traced", [False, True])
def test_what_was_up_before_is_not_part_of_a_batch(bench: Bench, known: Path, traced: bool) -> None:
    """Neither a start of an earlier batch nor anything else that forks on this machine."""
    forking = "while kill -0 $PPID; do /bin/true; done 2>/dev/null"
    if traced:
        bench.tracer.start()
    [up] = bench.generator.run(
        60, [bench.command("/bin/sh", "-c", f"echo firstlight ready 1; {forking}")], deadline=5
    )
    if traced:
        assert bench.tracer.stop() == 0
    with subprocess.Popen(["/bin/sh", "-c", forking]) as other:
        seen = bench.start(known, "child", "5")
        other.kill()
    bench.generator.stop(60, deadline=0)
    assert roots(bench.tracer) == {seen.sample.pid}
    assert up.pid not in seen.spans["pid"].to_list()
    assert len(children(seen)) == 1
    assert seen.lost == 0


def test_batches_do_not_mix(bench: Bench, known: Path) -> None:
    seen = bench.starts([bench.command(known, "netns", str(count)) for count in (1, 5, 3)])
    calls = seen.calls("unshare", "net")
    assert Counter(calls["sample"].to_list()) == {0: 1, 1: 5, 2: 3}


def test_a_call_that_has_not_ended_is_reported_once_and_open(bench: Bench) -> None:
    [number] = [number for number, call in bpf.calls().items() if call.name == "read"]
    reading = f"grep -q '^{number} ' /proc/$$/syscall"
    script = f"(until {reading}; do :; done; echo firstlight ready 1) & read line || :"
    seen = bench.start("/bin/sh", "-c", script, to_exit=False)
    calls = seen.calls("read").filter(pl.col("pid") == seen.sample.pid)
    assert len(calls.filter(pl.col("result").is_null())) == 1
    assert not calls["start"].is_duplicated().any()


def test_a_tracer_that_ends_is_an_error_that_says_why(bench: Bench) -> None:
    with Generator() as generator, bpf.Tracer(generator.pid, bench.workspace.directory) as tracer:
        os.kill(tracer._process.pid, signal.SIGKILL)
        with pytest.raises(Failed, match="the tracer failed: it was ended by SIGKILL"):
            tracer.start()


def test_a_full_disk_is_an_error_and_not_a_short_trace(
    bench: Bench, known: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", tmp_path], check=True)
    try:
        with Generator() as generator, bpf.Tracer(generator.pid, tmp_path) as tracer:
            tracer.start()
            command = bench.command(known, "netns", "1500")
            generator.run(1, [command], deadline=60)
            with pytest.raises(Failed, match=r"the tracer failed: trace: .*No space left"):
                tracer.stop()
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


# The same with a build that stops at its first wrong access.


@pytest.fixture(scope="session")
def sanitized_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sanitized(
        tmp_path_factory.mktemp("trace"), "trace/trace.c", "trace/tracer.c", "trace/calls32.c",
        "trace/watch.c", "trace/budget.c", "trace/command.c", "common/socket.c", "common/error.c",
        options=("-lbpf",),
    )  # fmt: skip


@pytest.fixture
def careful(
    sanitized_trace: Path, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    swapped = {"trace": sanitized_trace}
    monkeypatch.setattr(bpf, "native", lambda name: swapped.get(name) or native(name))
    with (
        Generator() as generator,
        bpf.Tracer(generator.pid, bench.workspace.directory) as tracer,
    ):
        yield Bench(bench.workspace, generator, tracer, tmp_path)
    assert tracer._process.returncode == 0


def test_the_loader_reads_and_writes_only_what_is_its_own(
    careful: Bench, known: Path, tmp_path: Path
) -> None:
    for _ in range(3):
        seen = careful.starts([careful.command(known, "vfork", "3")] * 3)
        assert seen.lost == 0
        assert seen.breakdown()["sample"].n_unique() == 3
    careful.start("/bin/sh", "-c", "echo firstlight ready 1; sleep 1000 & read line")


@pytest.mark.parametrize(
    "nonsense", ["stop", "start /proc/nonexistent/x", "nonsense", "start " + "x" * 5000, ""]
)
def test_the_loader_refuses_nonsense(sanitized_trace: Path, nonsense: str) -> None:
    done = subprocess.run(
        [sanitized_trace, native("trace.bpf.o"), "1"],
        input=f"{nonsense}\n", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("trace: ")
    assert "Sanitizer" not in done.stderr


@pytest.mark.parametrize("argv", [(), ("a", "b", "c", "d"), ("--what",)])
def test_the_loader_says_how_it_is_used(sanitized_trace: Path, argv: tuple[str, ...]) -> None:
    done = subprocess.run([sanitized_trace, *argv], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("usage: ")


def test_an_object_that_is_none_is_refused(sanitized_trace: Path, tmp_path: Path) -> None:
    (tmp_path / "x.o").write_text("no object")
    done = subprocess.run(
        [sanitized_trace, "--probe", tmp_path / "x.o"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert str(tmp_path / "x.o") in done.stderr
