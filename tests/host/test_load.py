"""The load generator against commands that behave and commands that do not."""

import errno
import mmap
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.errors import Failed
from firstlight.lab.backends import Command, Execute
from firstlight.lab.load import Burst, Generator, Outcome, Poisson, Sequence, Shape, offsets

READY = 'echo "firstlight ready 1"'
MS = 1_000_000


def shell(script: str, *arguments: str, **environment: str) -> Execute:
    return Execute(("/bin/sh", "-c", script, "sh", *arguments), environment)


def both(
    generator: Generator,
    *commands: Command,
    shape: Shape = Burst(),  # noqa: B008 - a frozen value
    deadline: float = 60,
) -> tuple[list[Outcome], list[Outcome]]:
    """What was seen when all were ready, and when all had ended."""
    seen = generator.run(1, commands, shape, deadline=deadline)
    return seen, generator.stop(1, deadline=60)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_start_is_stamped_in_order(generator: Generator) -> None:
    before = time.monotonic_ns()
    [seen], [ended] = both(generator, shell(f"{READY}; cat"))
    assert before <= seen.intended <= seen.spawned <= seen.seen
    assert (seen.status, seen.exited, seen.expired) == (None, 0, False)
    assert ended.exited > seen.seen
    assert ended.exited <= time.monotonic_ns()
    assert ended.output == "firstlight ready 1\n"


def test_processor_time_is_that_of_the_whole_tree(generator: Generator) -> None:
    burn = "i=0; while [ $i -lt 40000 ]; do i=$((i+1)); done"
    _, [ended] = both(generator, shell(f"sh -c '{burn}'; {READY}"))
    _, [idle] = both(generator, shell(READY))
    assert ended.user_ns + ended.system_ns > idle.user_ns + idle.system_ns + 5 * MS


def test_page_faults_are_those_of_the_whole_tree(generator: Generator) -> None:
    touch = "dd if=/dev/zero of=/dev/null bs=4M count=1 2>/dev/null"
    _, [ended] = both(generator, shell(f"{touch}; {READY}"))
    _, [idle] = both(generator, shell(READY))
    assert ended.page_faults >= idle.page_faults + (4 << 20) // mmap.PAGESIZE // 2


REFUSED = """
import ctypes, struct, sys
from firstlight.lab.backends import Execute
from firstlight.lab.load import Burst, Generator

CLOSE_RANGE, code = 436, int(sys.argv[1])
words = ((0x20, 0, 0, 0), (0x15, 0, 1, CLOSE_RANGE), (6, 0, 0, 0x50000 | code),
         (6, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *word) for word in words))
program = ctypes.create_string_buffer(struct.pack("@HP", len(words), ctypes.addressof(code)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program, 0, 0) == 0  # seccomp
with Generator() as generator:
    start = Execute(("/bin/sh", "-c", 'echo "firstlight ready 1"'), {})
    generator.run(1, (start,), Burst(), deadline=60)
    [ended] = generator.stop(1, deadline=60)
print(ended.output, end="")
"""


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_starts_work_where_a_profile_refuses_close_range(code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, str(code)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "firstlight ready 1\n", done.stderr


words = st.text(
    st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("\udc80\udcff\n\"'\\$")
)


@settings(max_examples=40)
@given(
    arguments=st.lists(words, max_size=5),
    environment=st.dictionaries(st.from_regex("[a-z]{1,5}", fullmatch=True), words, max_size=3),
)
def test_arguments_and_environment_arrive_byte_for_byte(
    generator: Generator, arguments: list[str], environment: dict[str, str]
) -> None:
    with tempfile.NamedTemporaryFile() as file:
        script = f'cat /proc/$$/cmdline /proc/$$/environ >"$0"; {READY}'
        argv = ("/bin/sh", "-c", script, file.name, *arguments)
        both(generator, Execute(argv, environment))
        written = Path(file.name).read_bytes()
    expected = [*argv, *(f"{name}={value}" for name, value in environment.items())]
    assert written == b"".join(os.fsencode(text) + b"\0" for text in expected)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (Execute(()), "the command is empty"),
        (Execute(("",)), "the command is empty"),
        (Execute(("/bin/true", "a\0b")), "/bin/true: its arguments or environment contain a NUL"),
        (
            Execute(("/bin/true",), {"A": "\0"}),
            "/bin/true: its arguments or environment contain a NUL",
        ),
    ],
)
def test_generator_refuses_arguments_beyond_kernel_limits(
    generator: Generator, command: Command, text: str
) -> None:
    with pytest.raises(Failed, match=text):
        generator.run(1, [command], deadline=1)
    [seen], _ = both(generator, shell(READY))
    assert seen.seen


def test_a_command_that_does_not_exist_says_so(generator: Generator) -> None:
    [seen], [ended] = both(generator, Execute(("/nonexistent/program",)))
    assert seen.output == (
        "firstlight error execute /nonexistent/program: No such file or directory\n"
    )
    assert seen.seen
    assert os.waitstatus_to_exitcode(ended.status or 0) == 127


def test_a_directory_that_does_not_exist_says_so(generator: Generator) -> None:
    [seen], _ = both(generator, Execute(("/bin/true",), cwd=Path("/nonexistent")))
    assert "No such file" in seen.output


def test_a_command_that_dies_by_a_signal_is_settled_at_once(generator: Generator) -> None:
    [seen], [ended] = both(generator, shell("echo last words; kill -SEGV $$"), deadline=60)
    assert seen.status is not None
    assert os.WTERMSIG(seen.status) == signal.SIGSEGV
    assert (seen.seen, seen.expired, seen.output) == (0, False, "last words\n")
    assert ended.status == seen.status


@pytest.mark.parametrize("size", [16_000, 16_384, 70_000, 3_000_000])
@pytest.mark.parametrize("width", [1, 79, 20_000])
def test_excess_output_keeps_stamps_and_tail(generator: Generator, size: int, width: int) -> None:
    flood = f"head -c {size} /dev/zero | tr '\\0' x | fold -w {width}"
    step = 'echo "firstlight step first 1 2"'
    [seen], _ = both(generator, shell(f"{step}; {flood}; echo; echo last words; {READY}; cat"))
    assert seen.seen
    lines = seen.output.splitlines()
    assert lines[-2:] == ["last words", "firstlight ready 1"]
    assert "firstlight step first 1 2" in lines
    assert len(seen.output) <= 16_384


def test_nuls_and_odd_bytes_do_not_hide_what_follows(generator: Generator) -> None:
    [seen], _ = both(generator, shell(f"printf 'a\\0b\\377\\n'; {READY}; cat"))
    assert seen.seen
    assert seen.output == "a\0b\N{REPLACEMENT CHARACTER}\nfirstlight ready 1\n"


def test_word_in_or_without_a_line_end_is_not_ready(generator: Generator) -> None:
    [seen], _ = both(
        generator, shell("echo not firstlight ready 1; printf 'firstlight ready 1'"), deadline=5
    )
    assert seen.seen == 0
    assert seen.status == 0


def test_endless_writer_delays_no_other(generator: Generator) -> None:
    [flood, quiet], _ = both(generator, shell("exec yes"), shell(READY), deadline=3)
    assert flood.expired
    assert quiet.seen
    assert not quiet.expired


def test_command_with_closed_output_is_never_ready(generator: Generator) -> None:
    [closed, ended], _ = both(
        generator, shell("exec >&- 2>&-; sleep 1000"), shell("exec >&- 2>&-; exit 3"), deadline=2
    )
    assert (closed.expired, closed.seen, closed.status) == (True, 0, None)
    assert os.waitstatus_to_exitcode(ended.status or 0) == 3
    assert not ended.expired


ORPHANS = "(setsid sleep 1000 & echo $! >&2) 2>&1; (sleep 1000 & echo $!)"


def pids(outcome: Outcome) -> list[int]:
    numbers = [int(line) for line in outcome.output.splitlines() if line.isdigit()]
    assert len(numbers) == 2
    return numbers


def test_orphans_do_not_outlive_the_last_batch(generator: Generator) -> None:
    [seen], [ended] = both(generator, shell(f"{ORPHANS}; {READY}; cat"))
    assert ended.status == 0
    assert not any(map(runs, pids(seen)))


def test_orphans_of_a_batch_live_as_long_as_another_does(generator: Generator) -> None:
    generator.run(1, [shell(f"{READY}; cat")], deadline=60)
    [seen] = generator.run(2, [shell(f"{ORPHANS}; {READY}")], deadline=60)
    generator.stop(2, deadline=60)
    assert all(map(runs, pids(seen)))
    generator.stop(1, deadline=60)
    assert not any(map(runs, pids(seen)))


def test_leaving_ends_every_start_and_its_orphans(program: str) -> None:
    with Generator() as generator:
        [seen] = generator.run(
            1, [shell(f"trap '' TERM HUP; {ORPHANS}; {READY}; sleep 1000")], deadline=60
        )
        alive = [seen.pid, *pids(seen)]
        assert all(map(runs, alive))
    assert not any(map(runs, alive))


def test_hung_start_stays_until_stopped(generator: Generator) -> None:
    [seen] = generator.run(1, [shell("trap '' TERM; while :; do sleep 1000; done")], deadline=0.3)
    assert (seen.expired, seen.seen, seen.status) == (True, 0, None)
    assert runs(seen.pid)
    begun = time.monotonic()
    [ended] = generator.stop(1, deadline=250)
    assert time.monotonic() - begun < 120  # it is killed at once, not at the deadline
    assert ended.status == signal.SIGKILL
    assert ended.expired


def test_start_ignoring_eof_is_killed_at_deadline(
    generator: Generator,
) -> None:
    generator.run(1, [shell(f"trap '' TERM; {READY}; sleep 1000")], deadline=60)
    [ended] = generator.stop(1, deadline=0.3)
    assert ended.status == signal.SIGKILL


def test_sequence_requests_each_after_previous(
    generator: Generator,
) -> None:
    seen, _ = both(
        generator, shell(f"{READY}; cat"), shell("exit 1"), shell("sleep 1000"),
        shell(f"{READY}; cat"), shape=Sequence(), deadline=2,
    )  # fmt: skip
    settled = [seen[0].seen, seen[1].exited, seen[2].intended + 2000 * MS]
    for before, after in zip(settled, seen[1:], strict=True):
        assert before <= after.intended <= after.spawned
    assert [each.expired for each in seen] == [False, False, True, False]


def test_arrivals_keep_to_their_schedule(generator: Generator) -> None:
    shape = Poisson(rate=200)
    seen, _ = both(generator, *[shell(READY)] * 20, shape=shape)
    first, asked = seen[0].intended, offsets(shape, 20)
    assert [each.intended - first for each in seen] == [at - asked[0] for at in asked]
    assert all(each.spawned >= each.intended for each in seen)


@given(st.integers(0, 2**32), st.floats(0.1, 1e4), st.integers(0, 50))
def test_poisson_arrivals_are_ordered_and_repeatable(seed: int, rate: float, count: int) -> None:
    asked = offsets(Poisson(rate), count, seed)
    assert asked == sorted(asked)
    assert all(at >= 0 for at in asked)
    assert asked == offsets(Poisson(rate), count + 1, seed)[:count]


def test_poisson_arrivals_come_at_their_rate() -> None:
    asked = offsets(Poisson(rate=100), 20_000, random.Random(7).getrandbits(32))
    gaps = [later - sooner for sooner, later in zip([0, *asked], asked, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(10 * MS, rel=0.03)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.05)  # as only an exponential's is


def test_hundred_at_once_are_ready_with_lateness(generator: Generator) -> None:
    seen, ended = both(generator, *[shell(f"{READY}; cat")] * 100, deadline=60)
    assert all(each.seen for each in seen)
    assert len({each.intended for each in seen}) == 1
    late = [each.spawned - each.intended for each in seen]
    assert late == sorted(late)
    assert late[0] >= 0
    assert len({each.pid for each in seen}) == 100
    assert [each.status for each in ended] == [0] * 100


def test_starts_may_exceed_file_limit(program: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 16 + max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        with Generator() as generator:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            seen, _ = both(generator, *[shell(f"ulimit -n; {READY}; cat")] * (few + 20))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert {each.output for each in seen} == {f"{few}\nfirstlight ready 1\n"}


def test_batches_may_overlap(generator: Generator) -> None:
    up = generator.run(1, [shell(f"{READY}; cat")] * 3, deadline=60)
    [new] = generator.run(2, [shell(f"{READY}; cat")], deadline=60)
    assert all(runs(each.pid) for each in [*up, new])
    [ended] = generator.stop(2, deadline=60)
    assert (ended.pid, ended.status) == (new.pid, 0)
    assert all(runs(each.pid) for each in up)
    assert [each.pid for each in generator.stop(1, deadline=60)] == [each.pid for each in up]


def test_no_commands_is_an_empty_batch(generator: Generator) -> None:
    assert both(generator) == ([], [])


def test_inherited_streams_are_ours(generator: Generator, tmp_path: Path) -> None:
    script = (
        "from firstlight.lab.load import Generator; from firstlight.lab.backends import Execute\n"
        "with Generator() as g:\n"
        "    g.run(0, [Execute(('/bin/cat',))], deadline=10, inherit=True)\n"
        "    g.stop(0, deadline=0, inherit=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input="words", capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("words", "", 0)


def test_many_open_files_of_ours_are_no_hindrance(program: str) -> None:
    with ExitStack() as files:
        for _ in range(20):
            files.enter_context(Path("/dev/null").open())
        with Generator() as generator:
            [seen], _ = both(generator, shell(READY))
            assert seen.seen


def test_a_start_has_no_descriptors_but_the_standard_ones(generator: Generator) -> None:
    _, [ended] = both(generator, shell(f"echo $(cd /proc/self/fd; echo *); {READY}; cat"))
    assert ended.output.split("\n")[0] in {"0 1 2", "0 1 2 3"}  # 3 is the listing's own


def test_killed_generator_fails_next_request(program: str) -> None:
    with Generator() as generator:
        [seen] = generator.run(1, [shell(f"{READY}; cat")], deadline=60)
        os.kill(generator.pid, signal.SIGKILL)
        generator._process.wait()
        with pytest.raises(Failed, match="the load generator has ended") as caught:
            generator.stop(1, deadline=60)
        assert caught.value.hint
    deadline = time.monotonic() + 60
    while runs(seen.pid) and time.monotonic() < deadline:
        os.sched_yield()  # its input has ended with the generator
    assert not runs(seen.pid)


def test_a_generator_that_is_killed_meanwhile_is_an_error(program: str) -> None:
    with (
        Generator() as generator,
        pytest.raises(Failed, match="the load generator has ended"),
    ):
        generator.run(1, [shell("kill -KILL $PPID; cat")], deadline=60)


def test_interrupt_is_answered_at_once(
    generator: Generator,
) -> None:
    """Polars installs one that restarts what it interrupts."""
    signal.siginterrupt(signal.SIGINT, False)
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            generator.run(1, [shell(f"kill -INT {os.getpid()}; sleep 1000")], deadline=250)
        assert time.monotonic() - begun < 120
    finally:
        signal.siginterrupt(signal.SIGINT, True)


HEAD = struct.Struct("=IIIIqqQ")


@pytest.mark.parametrize(
    "request_",
    [
        HEAD.pack(9, 1, 0, 0, 0, 0, 0),  # no such verb
        HEAD.pack(1, 1, 1, 0, 0, 0, 0),  # a start that is not there
        HEAD.pack(1, 1, 1, 0, 0, 0, 16) + struct.pack("=qII", 0, 0, 0),  # no argv
        HEAD.pack(1, 1, 1, 0, 0, 0, 18) + struct.pack("=qII", 0, 2**32 - 1, 2**32 - 1) + b"a\0",
        HEAD.pack(1, 1, 1, 0, 0, 0, 18) + struct.pack("=qII", 0, 1, 0) + b"a\0",  # no directory
        HEAD.pack(1, 1, 1, 0, 0, 0, 18) + struct.pack("=qII", 0, 1, 0) + b"ab",  # no end
    ],
)
def test_a_foreign_request_is_refused(sanitized: Path, request_: bytes) -> None:
    assert converse(sanitized, request_) == 1


@settings(max_examples=60)
@given(data=st.data())
def test_no_request_makes_the_generator_misbehave(sanitized: Path, data: st.DataObject) -> None:
    """It answers, or ends with its own complaint: never by a signal or a sanitizer."""
    count = data.draw(st.integers(0, 3))
    body = b"".join(
        struct.pack("=qII", 0, data.draw(st.integers(0, 4)), data.draw(st.integers(0, 3)))
        + data.draw(st.binary(max_size=24).map(lambda raw: raw.replace(b"/", b"\0")))
        for _ in range(count)
    )
    declared = max(0, len(body) + data.draw(st.sampled_from([0, 0, 0, -1, 1])))
    head = HEAD.pack(data.draw(st.sampled_from([1, 1, 1, 2, 3])), data.draw(st.integers(0, 200)),
                     count, data.draw(st.sampled_from([0, 1])), 0, 100 * MS, declared)  # fmt: skip
    assert converse(sanitized, head + body) in {0, 1}


def converse(program: Path, sent: bytes) -> int:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [program, str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE
        )
        theirs.close()
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):  # it left what it refused unread
            while ours.recv(65536):
                pass
        _, complaint = process.communicate(timeout=60)
    assert b"Sanitizer" not in complaint
    assert b"runtime error" not in complaint
    return process.returncode
