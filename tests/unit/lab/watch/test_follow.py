"""Windows of the tracer: all are read, and no start is cut in two by the end of one."""

import sys
from pathlib import Path

import numpy as np
import pytest

from firstlight.errors import Failed
from firstlight.lab.watch.follow import Follower, _daemons
from firstlight.trace import bpf

TRACER = """
import os, socket, sys
out = socket.socket(fileno=1)
out.send(b"watching")
at = 0
for line in open(os.environ["WINDOWS"]):
    at += 1000
    events, text, lost, whole, last = line.rstrip("\\n").split(":")
    files = []
    for content in (events, text, "", ""):
        file = os.memfd_create("x")
        os.write(file, bytes.fromhex(content))
        files.append(file)
    socket.send_fds(out, [f"window {at} {lost} {whole} {last}".encode()], files)
sys.stdin.read()
"""


def begin(tid: int, at: int, *words: str) -> tuple[np.ndarray, bytes]:
    event = np.zeros(1, bpf.EVENT)
    arguments = "".join(f"{word}\0" for word in words).encode()
    event["kind"], event["root"], event["pid"], event["tid"] = bpf.BEGIN, tid, tid, tid
    event["start"] = event["end"] = at
    event["args"][0, 0] = len(arguments)
    text = b"/usr/bin/runc".ljust(256, b"\0") + arguments.ljust(2048, b"\0") + bytes(2048)
    event["text"] = len(text)
    return event, text


def fork(parent: int, child: int, at: int) -> tuple[np.ndarray, bytes]:
    event = np.zeros(1, bpf.EVENT)
    event["kind"], event["root"], event["pid"], event["tid"] = bpf.FORK, parent, parent, parent
    event["peer"], event["args"][0, 0], event["start"] = child, child, at
    return event, b""


def execute(root: int, pid: int, at: int) -> tuple[np.ndarray, bytes]:
    event = np.zeros(1, bpf.EVENT)
    event["kind"], event["root"], event["pid"], event["tid"] = bpf.EXEC, root, pid, pid
    event["args"][0] = (1, 1, 0, 0)
    event["start"] = event["end"] = at
    return event, b""


def wait(root: int, at: int) -> tuple[np.ndarray, bytes]:
    event = np.zeros(1, bpf.EVENT)
    event["kind"], event["root"], event["pid"], event["tid"] = 5, root, root, root
    event["start"], event["end"], event["result"], event["stack"] = at, at + 1, 1, -1
    return event, b""


def window(
    *events: tuple[np.ndarray, bytes], lost: int = 0, whole: int = True, last: int = 1
) -> str:
    heads = b"".join(event.tobytes() for event, _ in events)
    text = b"".join(text for _, text in events)
    return f"{heads.hex()}:{text.hex()}:{lost}:{int(whole)}:{last}\n"


@pytest.fixture
def follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Follower:
    (tmp_path / "tracer.py").write_text(TRACER)
    monkeypatch.setenv("WINDOWS", str(tmp_path / "windows"))
    monkeypatch.setattr(bpf, "program", lambda: [sys.executable, str(tmp_path / "tracer.py")])
    monkeypatch.setattr("firstlight.lab.watch.follow._daemons", lambda: iter([1]))
    return Follower(["runc"])


def test_windows_that_end_at_once_are_all_read(follower: Follower, tmp_path: Path) -> None:
    (tmp_path / "windows").write_text(window() + window(lost=7) + window())
    with follower:
        assert [follower.read().lost for _ in range(3)] == [0, 7, 0]


def test_the_tracer_names_the_engine_above_a_runtime(follower: Follower, tmp_path: Path) -> None:
    made = begin(10, 500, "runc", "run", "a")
    made[0]["args"][0, 2:] = np.frombuffer(b"podman".ljust(16, b"\0"), "u8")
    (tmp_path / "windows").write_text(window(made, fork(10, 11, 600), execute(10, 11, 700)))
    with follower:
        [start] = follower.read().starts
    assert start.labels["engine"] == "podman"


def test_start_divided_by_a_cut_is_whole_afterwards(follower: Follower, tmp_path: Path) -> None:
    (tmp_path / "windows").write_text(
        window(begin(10, 500, "runc", "run", "a"), fork(10, 11, 600), last=0, lost=1)
        + window(execute(10, 11, 1500), begin(20, 1600, "runc", "run", "b"), last=0)
        + window()
    )
    with follower:
        first, second, third = (follower.read() for _ in range(3))
    assert first.starts == []
    [start] = second.starts
    assert (start.container, start.began, start.ready, start.traced) == ("a", 500, 1500, True)
    assert second.lost == 1
    [failed] = third.starts
    assert (failed.container, failed.ready) == ("b", None)


def test_a_start_is_traced_only_if_all_its_windows_were(follower: Follower, tmp_path: Path) -> None:
    (tmp_path / "windows").write_text(
        window(begin(10, 500, "runc", "run", "a"), fork(10, 11, 600), last=0, whole=False)
        + window(execute(10, 11, 1500), begin(20, 1600, "runc", "run", "b"), execute(20, 20, 1700))
        + window(begin(30, 2500, "runc", "run", "c"), execute(30, 30, 2600), whole=False)
    )
    with follower:
        starts = [start for _ in range(3) for start in follower.read().starts]
    assert [(start.container, start.traced) for start in starts] == [
        ("a", False), ("b", True), ("c", False)
    ]  # fmt: skip


def test_starts_untraced_for_a_late_analysis_are_counted(
    follower: Follower, tmp_path: Path
) -> None:
    (tmp_path / "windows").write_text(
        window(begin(10, 500, "runc", "run", "a"), fork(10, 11, 600), last=0, whole=2)
        + window(execute(10, 11, 1500), begin(20, 1600, "runc", "run", "b"), execute(20, 20, 1700))
        + window(begin(30, 2500, "runc", "run", "c"), execute(30, 30, 2600), whole=False)
    )
    with follower:
        windows = [follower.read() for _ in range(3)]
    assert [each.late for each in windows] == [0, 1, 0]


def test_all_that_the_earliest_start_under_way_did_is_kept(
    follower: Follower, tmp_path: Path
) -> None:
    (tmp_path / "windows").write_text(
        window(
            begin(10, 500, "runc", "run", "a"), fork(10, 11, 600), wait(10, 650),
            begin(20, 800, "runc", "run", "b"), fork(20, 21, 850), last=0,
        )
        + window(execute(10, 11, 1500), execute(20, 21, 1600))
    )  # fmt: skip
    with follower:
        windows = [follower.read() for _ in range(2)]
    first, second = windows[1].starts
    assert (first.began, second.began) == (500, 800)
    assert 650 in windows[1].spans_of(first, 0)["start"].to_list()


def test_daemons_are_kept_only_for_starts_under_way(follower: Follower, tmp_path: Path) -> None:
    (tmp_path / "windows").write_text(
        "".join(
            window(
                wait(1, at + 100),
                *([execute(at, at + 1, at + 200)] if at else []),  # of the start begun below
                begin(at + 1000, at + 500, "runc", "run", f"c{at}"),
                fork(at + 1000, at + 1001, at + 600),
                wait(1, at + 700),
                last=0,
            )
            for at in range(0, 9000, 1000)
        )
    )
    with follower:
        windows = [follower.read() for _ in range(9)]
    assert [each.spans.filter(sample=1).height for each in windows] == [2, *[3] * 8]
    last = windows[-1]
    [start] = last.starts
    assert (start.began, start.ready) == (7500, 8200)
    assert last.spans_of(start, 0).filter(pid=1)["start"].to_list() == [7700, 8100]


def test_a_container_that_waits_for_its_start_has_a_total_alone(
    follower: Follower, tmp_path: Path
) -> None:
    (tmp_path / "windows").write_text(
        window(begin(10, 500, "runc", "create", "a"), fork(10, 11, 600), last=2)
        + window(begin(20, 9000, "runc", "start", "a"), execute(10, 11, 9500))
    )
    with follower:
        first, second = follower.read(), follower.read()
    assert first.starts == []
    [start] = second.starts
    assert (start.began, start.ready, start.traced) == (500, 9500, False)


def test_a_tracer_that_is_killed_is_named_with_its_signal(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf, "program", lambda: ["sh", "-c", "kill -KILL $$", "sh"])
    with pytest.raises(Failed, match="the tracer failed: it was ended by SIGKILL"), follower:
        pass


def test_the_name_of_a_process_may_be_any_bytes() -> None:
    own = Path("/proc/self/comm")
    name = own.read_bytes()
    try:
        own.write_bytes(b"\xff\xfe")
        list(_daemons())
    finally:
        own.write_bytes(name)
