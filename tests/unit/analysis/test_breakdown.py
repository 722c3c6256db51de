"""The division of a start's time, on spans made up so that the answer is known.

Over 500 lines: every rule of the division is seen on the same made-up start.
"""

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.analysis import breakdown as breakdowns
from firstlight.analysis.breakdown import breakdown, timelines
from firstlight.analysis.causes import TIMEOUT
from firstlight.analysis.phases import LONGEST_PAUSE, LONGEST_PREPARATION
from firstlight.model import Ending, EndPoint, Header, Sample, Stamps, Step
from firstlight.store import SPAN_SCHEMA, TIMER, Run, read

ROOT, GENERATOR = 100, 9
NAP = "do_nanosleep;hrtimer_nanosleep"
CHILD = "do_wait;kernel_wait4"
PIPE = "anon_pipe_read;vfs_read"
FUTEX = "futex_do_wait;__futex_wait"
GRACE = "synchronize_rcu_expedited;namespace_unlock;path_umount"
POLL = "schedule_hrtimeout_range_clock;do_epoll_wait"


@dataclass(frozen=True)
class Held(Run):
    """A run whose spans are in memory."""

    spans: pl.DataFrame

    @property
    def traced_batches(self) -> list[int]:
        return [0]

    def span_batches(self) -> Iterator[tuple[int, pl.DataFrame]]:
        yield 0, self.spans

    def spans_of(self, *samples: Sample) -> pl.DataFrame:
        return self.spans.filter(pl.col("sample").is_in([each.index for each in samples]))


Row = dict[str, Any]


def span(
    kind: str, start: int, end: int | None = None, tid: int = ROOT, pid: int | None = None,
    **more: Any,
) -> Row:  # fmt: skip
    row = {"sample": 0, "kind": kind, "name": "", "detail": "", "stack": "", "start": start,
           "end": start if end is None else end, "pid": tid if pid is None else pid, "tid": tid,
           "result": None, "peer": None}  # fmt: skip
    return row | more


def call(name: str, detail: str, start: int, end: int, tid: int = ROOT, **more: Any) -> Row:
    return span("call", start, end, tid, name=name, detail=detail, result=0, **more)


def fork(start: int, child: int, tid: int = ROOT, name: str = "process", **more: Any) -> Row:
    return span("fork", start, tid=tid, name=name, peer=child, **more)


def wait(stack: str, start: int, end: int, waker: int = 0, tid: int = ROOT, **more: Any) -> Row:
    return span("blocked", start, end, tid, stack=stack, peer=waker, result=1, **more)


def start_of_root(at: int = 0) -> list[Row]:
    return [fork(at, ROOT, GENERATOR), span("exec", at + 1, detail="/bin/known", name="exec")]


def timeline(run: Run, sample: Sample) -> pl.DataFrame:
    """By the function as it is imported here: other tests replace the module's."""
    return timelines(run, [sample])[sample.index]


def sample(end: int, begin: int = 0, index: int = 0) -> Sample:
    return Sample(
        index=index, batch=0, instance=index, repetition=0, point={"instances": 1}, traced=True,
        ending=Ending.READY, stamps=Stamps(begin, begin, end, end), pid=ROOT + 1000 * index,
    )  # fmt: skip


def run(rows: list[Row], *samples: Sample, end_point: EndPoint = EndPoint.EXIT) -> Held:
    header = Header(
        run="r", experiment="e", question="?", end_point=end_point, axes=(), points=(), argv=(),
        seed=0, started="", revision="", repetitions=1,
    )  # fmt: skip
    frame = pl.DataFrame(rows, schema=SPAN_SCHEMA, orient="row")
    return Held(Path("/nonexistent"), header, list(samples), None, frame.sort("start"))


def wall(held: Held, phase: str | None = None, cause: str | None = None) -> int:
    table = breakdown(held)
    for column, value in (("phase", phase), ("cause", cause)):
        if value is not None:
            table = table.filter(pl.col(column) == value)
    return int(table["wall"].sum())


def summed(held: Held, phase: str, cause: str) -> int:
    table = breakdown(held).filter((pl.col("phase") == phase) & (pl.col("cause") == cause))
    return int(table["summed"].sum())


def owners(held: Held) -> list[tuple[int, int, int]]:
    """(tid, start, end) of the critical path, neighbours joined."""
    path: list[tuple[int, int, int]] = []
    for start, end, tid in timeline(held, held.samples[0]).select("start", "end", "tid").rows():
        if path and path[-1][0] == tid and path[-1][2] == start:
            path[-1] = (tid, path[-1][1], end)
        elif end > start:
            path.append((tid, start, end))
    return path


def test_untraced_end_belongs_to_last_traced_thread() -> None:
    call_over_http = msgspec.structs.replace(sample(100), pid=0)
    held = run(start_of_root(), call_over_http, end_point=EndPoint.FIRST_INSTRUCTION)
    assert wall(held) == 100
    assert owners(held) == [(ROOT, 0, 100)]


def test_a_call_is_kernel_and_what_prepares_it_is_around() -> None:
    held = run([*start_of_root(), call("mount", "/x tmpfs", 10, 30),
                call("umount2", "/x", 70, 100)], sample(100))  # fmt: skip
    table = breakdown(held).filter(pl.col("phase") == "mount")
    assert dict(table.group_by("shade").agg(pl.col("wall").sum()).rows()) == {
        "kernel": 50, "around": 40,
    }  # fmt: skip
    assert wall(held, "process.start") == 10


def work(length: int, sleep: bool = False) -> dict[str, int]:
    """The phases of a mount, this much work in ns, and an unmount."""
    spans = [*start_of_root(), call("mount", "/x tmpfs", 10, 20),
             call("umount2", "/x", 20 + length, 30 + length)]  # fmt: skip
    if sleep:
        spans.append(wait(NAP, 20, 20 + length))
    table = breakdown(run(spans, sample(30 + length)))
    return dict(table.group_by("phase").agg(pl.col("wall").sum()).rows())


def test_short_work_belongs_to_next_call() -> None:
    assert work(LONGEST_PREPARATION) == {"process.start": 10, "mount": 20 + LONGEST_PREPARATION}
    longer = LONGEST_PREPARATION + 1
    assert work(longer) == {"process.start": 10, "mount": 20, "compute": longer}


def test_short_sleep_belongs_to_next_call() -> None:
    assert work(LONGEST_PAUSE, sleep=True) == {"process.start": 10, "mount": 20 + LONGEST_PAUSE}
    longer = LONGEST_PAUSE + 1
    assert work(longer, sleep=True) == {"process.start": 10, "mount": 20, "sleep": longer}


def test_neutral_calls_neither_end_a_computation_nor_a_sleep() -> None:
    for stack, length, phase in (
        ("", LONGEST_PREPARATION, "compute"), (NAP, LONGEST_PAUSE, "sleep"),
    ):  # fmt: skip
        half = length * 3 // 4
        spans = [*start_of_root(), call("mount", "/x tmpfs", 10, 20),
                 call("openat", "/etc/hostname", 20 + half, 30 + half),
                 call("umount2", "/x", 30 + 2 * half, 40 + 2 * half)]  # fmt: skip
        if stack:
            spans += [wait(stack, 20, 20 + half), wait(stack, 30 + half, 30 + 2 * half)]
        held = run(spans, sample(40 + 2 * half))
        assert wall(held, phase) == 2 * half
        assert wall(held, "mount") == 30


def test_a_wait_that_a_timer_ends_is_a_sleep() -> None:
    long = LONGEST_PAUSE + 1
    for name, phase, cause in ((TIMER, "sleep", TIMEOUT), ("", "mount", "another thread: futex")):
        held = run([*start_of_root(), call("mount", "/x tmpfs", 10, 20),
                    wait(FUTEX, 20, 20 + long, name=name),
                    call("umount2", "/x", 20 + long, 30 + long)], sample(30 + long))  # fmt: skip
        assert wall(held, phase, cause) == long


def test_long_waits_for_a_cpu_are_no_computation() -> None:
    length = 3 * LONGEST_PREPARATION
    held = run([*start_of_root(), call("mount", "/x tmpfs", 10, 20), span("queued", 30, length),
                call("umount2", "/x", 20 + length, 30 + length)], sample(30 + length))  # fmt: skip
    assert wall(held, "compute") == 0


def test_a_runtimes_start_and_a_helper_may_compute_for_long() -> None:
    long = 3 * LONGEST_PREPARATION
    start = [call("openat", "/lib/libc.so", 10, 20),
             call("openat", "/lib/libm.so", 20 + long, 30 + long)]  # fmt: skip
    end = call("mount", "/x tmpfs", 40 + long, 50 + long)
    held = run([*start_of_root(), *start, end], sample(50 + long))
    assert wall(held, "compute") == 0
    assert wall(held, "process.start") == 40 + long
    helper = [*start_of_root(), fork(10, 101), span("exec", 12, tid=101, detail="/sbin/iptables"),
              call("socket", "inet", 20, 30, 101),
              call("setsockopt", "inet", 30 + long, 40 + long, 101),
              span("exit", 50 + long, tid=101), wait(CHILD, 15, 50 + long, 101),
              call("umount2", "/x", 60 + long, 70 + long)]  # fmt: skip
    held = run(helper, sample(70 + long))
    assert wall(held, "compute") == 0
    assert wall(held, "firewall") > long


def test_a_sleep_before_a_call_is_of_its_phase() -> None:
    held = run([*start_of_root(), call("mount", "/x tmpfs", 10, 20), wait(NAP, 20, 90),
                call("umount2", "/x", 90, 100)], sample(100))  # fmt: skip
    assert wall(held, "mount", "sleep") == 70


def test_a_grace_period_within_a_call_is_its_cause() -> None:
    held = run([*start_of_root(), call("umount2", "/x", 10, 100), wait(GRACE, 20, 80, 17)],
               sample(100))  # fmt: skip
    assert wall(held, "mount", "RCU: synchronize_rcu_expedited (namespace_unlock)") == 60
    assert wall(held, "mount", "on CPU") == 30


def test_waiting_for_a_cpu_is_apart_from_what_was_waited_for() -> None:
    held = run([*start_of_root(), call("umount2", "/x", 10, 100), wait(GRACE, 20, 80, 17),
                span("queued", 80, 95)], sample(100))  # fmt: skip
    assert wall(held, "mount", "waiting for a CPU") == 15


def test_a_contended_lock_names_the_wait_within_it() -> None:
    held = run(
        [*start_of_root(), call("unshare", "net", 10, 100),
         span("lock", 20, 70, name="mutex", detail="0x1", stack="__mutex_lock;rtnl_newlink"),
         wait("schedule_preempt_disabled;__mutex_lock;rtnl_newlink", 30, 60)],
        sample(100),
    )  # fmt: skip
    assert wall(held, "ns.net", "lock: rtnl_mutex (rtnl_newlink)") == 50


def test_the_path_follows_a_child_that_is_waited_for() -> None:
    held = run(
        [*start_of_root(), fork(20, 101), wait(CHILD, 25, 80, 101),
         call("mount", "/x tmpfs", 40, 70, 101), call("exit_group", "", 75, 80, 101),
         span("exit", 80, tid=101)],
        sample(100),
    )  # fmt: skip
    assert owners(held) == [(ROOT, 0, 20), (101, 20, 80), (ROOT, 80, 100)]
    assert wall(held, "mount") == 50  # the call, and what prepared it
    assert wall(held, "process.exit") == 5


def test_what_follows_an_exit_is_not_the_processs_own() -> None:
    spans = [*start_of_root(), call("mount", "/x tmpfs", 10, 60), call("exit_group", "", 60, 65),
             span("exit", 65), span("queued", 70, 80)]  # fmt: skip
    for gone, working, late in (([], 30, 0), ([span("gone", 85)], 15, 15)):
        held = run([*spans, *gone], sample(100))
        table = breakdown(held).filter((pl.col("phase") == "process.exit") & (pl.col("wall") > 0))
        assert set(table.select("shade", "cause", "wall").rows()) == {
            ("kernel", "on CPU", working), ("kernel", "waiting for a CPU", 10),
            *[("around", "load generator", late)] * bool(late),
        }  # fmt: skip


def test_a_process_is_over_when_its_last_thread_is() -> None:
    spans = [*start_of_root(), fork(5, 101, name="thread"), span("exit", 20), span("gone", 25),
             call("mount", "/x tmpfs", 30, 60, 101, pid=ROOT),
             span("exit", 70, tid=101, pid=ROOT), span("gone", 80, tid=101, pid=ROOT)]  # fmt: skip
    assert wall(run(spans, sample(100)), cause="load generator") == 20
    assert wall(run(spans[:-2], sample(100)), cause="load generator") == 0
    goes_on = [*start_of_root(), span("exit", 20), span("gone", 25), span("exec", 30, name="exec"),
               call("mount", "/x tmpfs", 40, 60)]  # fmt: skip
    table = breakdown(run(goes_on, sample(100)))
    assert dict(table.group_by("shade").agg(pl.col("wall").sum()).rows()) == {
        "kernel": 20, "around": 80,
    }  # fmt: skip


def test_work_beside_the_path_is_in_the_sum_alone() -> None:
    held = run(
        [*start_of_root(), fork(20, 101), call("mount", "/x tmpfs", 30, 70, 101),
         span("exit", 70, tid=101), call("unshare", "net", 50, 100)],
        sample(100),
    )  # fmt: skip
    assert wall(held, "mount") == 0
    assert summed(held, "mount", "on CPU") == 50
    assert wall(held, "ns.net") + wall(held, "process.start") == 100


def test_a_thread_without_calls_follows_its_process() -> None:
    held = run(
        [*start_of_root(), fork(10, 101), fork(20, 102, 101, "thread"),
         call("mount", "/x tmpfs", 30, 50, 101), call("write", "cgroup:cgroup.procs", 70, 90, 101),
         span("exit", 95, tid=101), span("exit", 95, tid=102, pid=101),
         call("unshare", "net", 50, 100)],
        sample(100),
    )  # fmt: skip
    assert summed(held, "mount", "on CPU") == 40 + 10  # until the call before the next phase
    assert summed(held, "cgroup", "on CPU") == 45 + 65


def test_mutual_waits_beside_the_path_count_nowhere() -> None:
    held = run(
        [*start_of_root(), fork(20, 101), wait(PIPE, 30, 90, tid=101),
         span("exit", 100, tid=101), call("unshare", "net", 50, 100)],
        sample(100),
    )  # fmt: skip
    assert breakdown(held).filter(pl.col("cause").str.starts_with("another")).is_empty()


def test_the_path_is_passed_to_and_fro_over_pipes() -> None:
    held = run(
        [*start_of_root(), fork(10, 101),
         wait(PIPE, 20, 40, 101), wait(PIPE, 40, 60, ROOT, tid=101), wait(PIPE, 60, 80, 101)],
        sample(100),
    )  # fmt: skip
    assert owners(held) == [(ROOT, 0, 10), (101, 10, 40), (ROOT, 40, 60), (101, 60, 80),
                            (ROOT, 80, 100)]  # fmt: skip


def test_a_wait_for_what_is_not_of_the_start_stays_its_own() -> None:
    held = run([*start_of_root(), wait(PIPE, 20, 80, 555),
                call("mount", "/x tmpfs", 90, 100)], sample(100))  # fmt: skip
    assert owners(held) == [(ROOT, 0, 100)]
    assert wall(held, cause="another process: pipe") == 60


def test_wake_up_by_later_thread_is_ignored() -> None:
    late = [fork(60, 101), call("mount", "/x tmpfs", 70, 90, 101)]
    held = run([*start_of_root(), wait(PIPE, 20, 40, 101), *late], sample(100))
    assert owners(held) == [(ROOT, 0, 100)]


def test_a_parent_whose_number_was_used_again_ends_the_path() -> None:
    held = run(
        [*start_of_root(), fork(10, 101, 102), fork(50, 102), call("write", "pipe:", 81, 85, 101)],
        sample(80), end_point=EndPoint.REQUEST_DONE,
    )  # fmt: skip
    assert owners(held) == [(102, 0, 10), (101, 10, 80)]


def test_polling_monitor_yields_to_busy_thread() -> None:
    """As Go's sysmon does: it sleeps, looks, and wakes a thread for want of one."""
    monitor = [fork(10, 101, name="thread"), wait(NAP, 20, 58, tid=101, pid=ROOT)]
    busy = [fork(12, 102, name="thread"), call("mount", "/x tmpfs", 30, 95, 102, pid=ROOT)]
    held = run([*start_of_root(), *monitor, *busy, wait(FUTEX, 15, 60, 101)], sample(100))
    assert owners(held) == [(ROOT, 0, 12), (102, 12, 60), (ROOT, 60, 100)]


def test_a_joined_thread_that_slept_is_no_monitor() -> None:
    joined = [fork(10, 101, name="thread"), wait(NAP, 20, 58, tid=101, pid=ROOT),
              span("exit", 61, tid=101, pid=ROOT)]  # fmt: skip
    held = run([*start_of_root(), *joined, wait(FUTEX, 15, 60, 101)], sample(100))
    assert owners(held) == [(ROOT, 0, 10), (101, 10, 60), (ROOT, 60, 100)]


def test_the_load_generator_owns_the_time_before_the_first_fork() -> None:
    held = run(start_of_root(at=30), sample(100))
    assert wall(held, cause="load generator") == 30
    assert summed(held, "process.start", "load generator") == 30
    table = breakdown(held)
    assert table["summed"].sum() == 100  # and is no thread of the start


def test_time_from_execve_to_first_instruction_is_exec() -> None:
    held = run(
        [*start_of_root(), call("unshare", "net", 10, 20), fork(30, 101),
         call("execve", "", 50, 61, 101),
         span("exec", 60, tid=101, name="exec", detail="/bin/payload"),
         call("write", "pipe:", 90, 95, 101)],
        sample(80), end_point=EndPoint.FIRST_INSTRUCTION,
    )  # fmt: skip
    assert owners(held) == [(ROOT, 0, 30), (101, 30, 80)]
    assert wall(held, "exec") == 50


@pytest.mark.parametrize("answered", [80, 100])
def test_time_after_the_packet_request_is_packet(answered: int) -> None:
    rows = [*start_of_root(), call("unshare", "net", 10, 20), fork(30, 101),
            call("execve", "", 40, 51, 101),
            span("exec", 50, tid=101, name="exec", detail="/bin/payload"),
            call("socket", "", 61, 62, 101), call("sendto", "socket:inet", 64, 70, 101),
            wait(POLL, 71, 78, tid=101), call("write", "pipe:", 110, 111, 101)]  # fmt: skip
    message = msgspec.structs.replace(sample(answered), steps=(Step("packet", 60, answered),))
    held = run(rows, message, end_point=EndPoint.FIRST_PACKET)
    assert wall(held, "packet") == answered - 60
    assert wall(held, "exec") == 30
    assert wall(held) == answered
    other = run(rows, message, end_point=EndPoint.FIRST_INSTRUCTION)
    assert wall(other, "packet") == 0


def test_done_request_belongs_to_its_thread() -> None:
    held = run(
        [*start_of_root(), fork(20, 101), call("mount", "/x tmpfs", 40, 70, 101),
         call("write", "pipe:", 82, 85, 101), call("write", "pipe:", 90, 95)],
        sample(80), end_point=EndPoint.REQUEST_DONE,
    )  # fmt: skip
    assert owners(held) == [(ROOT, 0, 20), (101, 20, 80)]


def test_pipe_of_concurrent_work_is_not_the_requests() -> None:
    held = run(
        [*start_of_root(), fork(20, 101), {**call("write", "pipe:", 82, 85, 101), "peer": 7},
         {**call("write", "pipe:", 90, 95), "peer": 8}],
        sample(80), end_point=EndPoint.REQUEST_DONE,
    )  # fmt: skip
    assert owners(held) == [(ROOT, 0, 80)]


@pytest.mark.parametrize(
    ("marks", "phases"),
    [
        ([(20, "alloc_vfsmnt"), (40, "copy_net_ns"), (70, "setup_net")],
         {"ns.mount": 30, "ns.net": 60}),
        ([(20, "alloc_vfsmnt"), (30, "copy_ipcs"), (60, "setup_net")],
         {"ns.mount": 20, "ns.other": 30, "ns.net": 40}),
        ([(60, "setup_net")], {"ns.mount": 50, "ns.net": 40}),
    ],
)  # fmt: skip
def test_call_making_namespaces_is_divided_by_marks(
    marks: list[tuple[int, str]], phases: dict[str, int]
) -> None:
    detail = "net,mount,ipc" if "ns.other" in phases else "net,mount"
    held = run([*start_of_root(), call("unshare", detail, 10, 100),
                *(span("mark", at, name=name) for at, name in marks)], sample(100))  # fmt: skip
    for phase, took in phases.items():
        assert wall(held, phase) == took


def test_a_start_of_which_no_span_is_left_is_unattributed() -> None:
    other = run([*start_of_root()], sample(100), sample(70, 10, index=1))
    table = breakdown(other).filter(pl.col("sample") == 1)
    assert table["wall"].sum() == 60
    assert set(table.filter(pl.col("wall") > 0)["phase"]) == {"unattributed"}
    path = timeline(other, other.samples[1]).filter(pl.col("end") > pl.col("start"))
    assert path["phase"].to_list() == ["unattributed"]


def test_a_process_goes_on_when_another_of_its_threads_executes() -> None:
    held = run(
        [*start_of_root(), call("unshare", "net", 30, 100), fork(10, 101),
         fork(15, 102, 101, "thread"), wait(FUTEX, 20, 40, 102, 101), span("exit", 45, tid=101),
         span("exit", 50, tid=102, pid=101), span("exec", 51, tid=101, name="exec"),
         call("mount", "/x tmpfs", 60, 90, 101), span("exit", 95, tid=101)],
        sample(100),
    )  # fmt: skip
    assert summed(held, "mount", "on CPU") >= 30
    assert wall(held, "mount") == 0


def test_failed_untraced_and_unready_samples_have_no_breakdown() -> None:
    first = sample(100)
    failed = replace_stamps(first, None)
    assert breakdown(run(start_of_root(), failed)).is_empty()
    assert breakdown(run(start_of_root())).is_empty()


def replace_stamps(sample: Sample, ready: int | None) -> Sample:
    return Sample(
        index=sample.index, batch=0, instance=0, repetition=0, point=sample.point, traced=True,
        ending=Ending.FAILED, stamps=Stamps(0, 0, ready), pid=ROOT,
    )  # fmt: skip


# Whatever the spans are, as long as they are possible, the division is one.

CALLS = (("mount", "/x tmpfs"), ("unshare", "net"), ("unshare", "net,mount"), ("read", "pipe:"),
         ("write", "pipe:"), ("openat", "/nowhere"), ("recvmsg", "socket:netlink.route"),
         ("rt_sigaction", ""), ("rt_sigprocmask", ""), ("wait4", ""), ("clone", ""),
         ("execve", ""), ("seccomp", "FILTER"), ("mkdirat", "/sys/fs/cgroup/x"),
         ("exit_group", ""))  # fmt: skip
STACKS = (NAP, CHILD, PIPE, FUTEX, GRACE, POLL, "", "unheard_of;caller")


@st.composite
def lives(draw: st.DrawFn) -> list[Row]:
    """The threads of one start: each born of an earlier one, its spans nested as a kernel's are."""
    threads = [(ROOT, ROOT, draw(st.integers(0, 50)))]
    rows = [fork(threads[0][2], ROOT, GENERATOR, pid=GENERATOR)]
    for number in range(draw(st.integers(0, 5))):
        parent, process, born = draw(st.sampled_from(threads))
        tid = 101 + number
        birth = born + draw(st.integers(1, 60))
        is_thread = draw(st.booleans())
        pid = process if is_thread else tid
        rows.append(fork(birth, tid, parent, "thread" if is_thread else "process", pid=process))
        threads.append((tid, pid, birth))
    tids = [tid for tid, _, _ in threads]
    for tid, pid, birth in threads:
        rows += draw(one_life(tid, pid, birth, tids))
    return rows


@st.composite
def one_life(draw: st.DrawFn, tid: int, pid: int, birth: int, tids: list[int]) -> list[Row]:
    at, rows = birth, []
    step = st.integers(1, 40)
    waker = st.sampled_from([*tids, 0, 777])
    for _ in range(draw(st.integers(0, 6))):
        at += draw(st.integers(0, 20))
        what = draw(st.sampled_from(["call", "blocked", "queued", "lock", "exec", "mark", "gone"]))
        begin = at
        if what in ("exec", "mark", "gone"):
            name = draw(st.sampled_from(["setup_net", "alloc_vfsmnt", "other"]))
            rows.append(span(what, at, tid=tid, pid=pid, name=name, detail="/bin/x"))
            at += 1
            continue
        at += draw(step)
        if what == "call" or draw(st.booleans()):  # its waits are within it
            inner = at
            at += draw(step)
            name, detail = draw(st.sampled_from(CALLS))
            result = draw(st.sampled_from([0, -1, 4096, None]))
            rows.append(call(name, detail, begin, at, tid, pid=pid) | {"result": result})
        else:
            inner = at
        if what == "queued":
            rows.append(span("queued", begin, inner, tid, pid, peer=draw(waker)))
        elif what in ("blocked", "lock"):
            stack = draw(st.sampled_from(STACKS))
            wakee = draw(st.integers(begin, inner))
            rows.append(wait(stack, begin, wakee, draw(waker), tid, pid=pid))
            rows.append(span("queued", wakee, inner, tid, pid))
            if what == "lock":
                kind = draw(st.sampled_from(["mutex", "rwsem-read", "spinlock"]))
                rows.append(span("lock", begin, inner, tid, pid, name=kind, detail="0x1",
                                 stack=f"__mutex_lock;{stack}"))  # fmt: skip
    if draw(st.booleans()):
        rows.append(span("exit", at + 1, tid=tid, pid=pid, name="exit"))
        rows.append(span("gone", at + draw(step), tid=tid, pid=pid))
    return rows


END_POINTS = st.sampled_from(list(EndPoint))


@settings(max_examples=150)
@given(rows=lives(), begin=st.integers(0, 60), took=st.integers(1, 400), end_point=END_POINTS,
       order=st.randoms(use_true_random=False))  # fmt: skip
def test_the_phases_partition_every_possible_start(
    rows: list[Row], begin: int, took: int, end_point: EndPoint, order: Any
) -> None:
    held = run(rows, sample(begin + took, begin), end_point=end_point)
    table = breakdown(held)
    assert table["wall"].sum() == took
    assert (table["wall"] >= 0).all()
    assert (table["summed"] >= table["wall"]).all()
    assert not table.select("phase", "shade", "cause").is_duplicated().any()
    path = timeline(held, held.samples[0]).filter(pl.col("end") > pl.col("start"))
    assert path["start"].to_list() == [begin, *path["end"].to_list()[:-1]]
    assert path["end"].to_list()[-1] == begin + took
    shuffled = rows.copy()
    order.shuffle(shuffled)
    assert breakdown(run(shuffled, sample(begin + took, begin), end_point=end_point)).equals(table)
    assert breakdown(held).equals(table)


@settings(max_examples=100)
@given(rows=lives(), renamed=st.dictionaries(st.integers(100, 106), st.integers(100, 106)),
       end_point=END_POINTS)  # fmt: skip
def test_sum_holds_with_reused_thread_ids(
    rows: list[Row], renamed: dict[int, int], end_point: EndPoint
) -> None:
    for row in rows:
        for column in ("tid", "peer"):
            if row[column] != ROOT:
                row[column] = renamed.get(row[column], row[column])
    held = run(rows, sample(200), end_point=end_point)
    table = breakdown(held)
    assert table["wall"].sum() == 200
    assert (table["wall"] >= 0).all()


def test_two_samples_of_a_batch_do_not_share_their_time() -> None:
    second = [row | {"sample": 1} for row in [fork(5, ROOT + 1000, GENERATOR),
              call("unshare", "net", 20, 90, ROOT + 1000)]]  # fmt: skip
    first = [*start_of_root(), call("mount", "/x tmpfs", 10, 100)]
    held = run([*first, *second], sample(100), sample(90, index=1))
    table = breakdown(held)
    for index, took in ((0, 100), (1, 90)):
        assert table.filter(pl.col("sample") == index)["wall"].sum() == took
    assert table.filter((pl.col("sample") == 1) & (pl.col("phase") == "mount")).is_empty()
    assert replace(held, samples=held.samples[:1]).samples == held.samples[:1]


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_start_of_unknown_process_is_divided(threads: int) -> None:
    unknown = msgspec.structs.replace(sample(90, index=1), pid=0)
    rows = [call("unshare", "net", 20, 90, ROOT + number) | {"sample": 1}
            for number in range(1, threads + 1)]  # fmt: skip
    table = breakdown(run([*start_of_root(), *rows], sample(100), unknown))
    assert table.filter(pl.col("sample") == 1)["wall"].sum() == 90


def test_many_batches_are_divided_as_each_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of many starts lie on one line: none may see another's calls, waits or wakes."""
    stored = read(Path(__file__).parents[2] / "data" / "schema-1")
    whole = breakdown(stored)
    monkeypatch.setattr(breakdowns, "_CHUNK_SPANS", 1)
    assert breakdown(stored).equals(whole)
    alone = [
        breakdown(replace(stored, samples=[each]))
        for each in stored.samples
        if each.traced and each.latency is not None
    ]
    assert len(alone) > 1
    assert pl.concat(alone).equals(whole)


def test_many_threads_use_linear_memory() -> None:
    """Not for each call in each thread."""
    rows = start_of_root()
    for number in range(1000):
        tid, at = 1000 + number, 100 * number + 10
        rows += [
            fork(at, tid, name="thread"),
            *(call("openat", "/etc/passwd", at + 10 * k, at + 10 * k + 5, tid, pid=ROOT)
              for k in range(1, 6)),
            span("exit", at + 70, tid=tid, pid=ROOT),
        ]  # fmt: skip
    held, start = run(rows, sample(200_000)), sample(200_000)
    tracemalloc.start()
    try:
        for result in timeline(held, start), breakdown(held):
            assert len(result)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20
