"""``firstlight watch``: starts that others make, found by name, and nothing left attached."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from tests.support.otlp_receiver import PARENT, TRACE, receiver
from tests.support.watch_host import FIRSTLIGHT, SECONDS, watching

from firstlight import store
from firstlight.cli.watch import NEEDED
from firstlight.errors import Failed
from firstlight.host import capabilities
from firstlight.native import native
from firstlight.trace.bpf import is_preemptible

pytestmark = pytest.mark.usefixtures("can_trace")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle" / "rootfs"
    for name in ("bin", "proc", "dev", "sys"):
        (root / name).mkdir(parents=True)
    (root / "bin/payload").write_bytes(native("payload").read_bytes())
    (root / "bin/payload").chmod(0o755)
    subprocess.run(["runc", "spec", "--bundle", root.parent], check=True)
    config = root.parent / "config.json"
    document = json.loads(config.read_text())
    document["process"] |= {"args": ["/bin/payload", "once"], "terminal": False}
    document["annotations"] = {
        "io.kubernetes.cri.sandbox-name": "shop-1",
        "io.kubernetes.cri.sandbox-namespace": "web",
        "io.kubernetes.cri.container-name": "nginx",
    }
    config.write_text(json.dumps(document))
    return root.parent


def run(bundle: Path, state: Path, name: str, **environment: str) -> None:
    done = subprocess.run(
        ["runc", "--root", state, "run", "--bundle", bundle, name],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        env=os.environ | environment,
    )  # fmt: skip
    assert "usage" not in done.stderr
    assert "runc" not in done.stderr, done.stderr


def test_starts_of_others_are_found_by_name_and_kept_as_a_run(bundle: Path, tmp_path: Path) -> None:
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    with watching("--sample", 1, "--out", tmp_path / "kept") as watch:
        for index in range(3):
            run(bundle, tmp_path / "state", f"{prefix}{index}")
        seen = watch.starts(prefix, 3)
        unnamed = []
        for record in seen:
            assert record["lost_events"] == 0
            assert record["error"] is None
            phases = record["phases_ns"]
            assert isinstance(phases, dict)
            assert sum(phases.values()) == record["latency_ns"]
            unnamed.append(phases.get("unattributed", 0) / sum(phases.values()))
            labels = record["labels"]
            assert isinstance(labels, dict)
            assert (labels["pod"], labels["namespace"]) == ("shop-1", "web")
            assert (labels["container"], labels["runtime"]) == ("nginx", "runc")
        watch.process.send_signal(signal.SIGHUP)  # its terminal is closed
        assert watch.process.wait(SECONDS) == 0
    assert min(unnamed) < 0.05  # on a busy machine a wait for a CPU may be where nothing names it
    [kept] = (tmp_path / "kept").iterdir()
    stored = store.read(kept)
    assert stored.footer
    own = [sample for sample in stored.samples if sample.labels["id"].startswith(prefix)]
    assert [sample.latency for sample in own] == [record["latency_ns"] for record in seen]
    report = subprocess.run([FIRSTLIGHT, "report", kept], capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    assert "Where do the starts" in report.stdout


@pytest.mark.parametrize("words", [("--sample", 1), ("--budget", 0)])
def test_what_started_just_before_it_stops_is_shown(
    bundle: Path, tmp_path: Path, words: tuple[object, ...]
) -> None:
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    with watching(*words) as watch:
        for index in range(3):
            run(bundle, tmp_path / "state", f"{prefix}{index}")
        watch.process.terminate()
        seen = watch.starts(prefix, 3)
        assert watch.process.wait(SECONDS) == 0
    assert [record["error"] for record in seen] == [None] * 3


def test_a_tracer_that_fails_at_the_end_is_named() -> None:
    with watching() as watch:
        tracer = loader_of(watch.process.pid)
        os.kill(tracer, signal.SIGSTOP)
        watch.process.terminate()
        os.kill(tracer, signal.SIGKILL)
        _, errors = watch.process.communicate(timeout=SECONDS)
        assert watch.process.returncode == Failed.exit_status
        assert b"the tracer failed" in errors


def test_a_start_is_a_span_below_that_of_who_asked_for_it(bundle: Path, tmp_path: Path) -> None:
    name = f"w{uuid.uuid4().hex[:8]}-0"
    with receiver() as (collector, spans):
        with watching("--sample", 1, "--otlp", collector) as watch:
            run(bundle, tmp_path / "state", name, TRACEPARENT=f"00-{TRACE}-{PARENT}-01")
            watch.starts(name, 1)
        [start] = [span for span in spans if span.parent_span_id.hex() == PARENT]
        parts = [span for span in spans if span.parent_span_id == start.span_id]
    assert start.trace_id.hex() == TRACE
    assert start.name == "start web/shop-1/nginx"
    assert sum(part.end_time_unix_nano - part.start_time_unix_nano for part in parts) == (
        start.end_time_unix_nano - start.start_time_unix_nano
    )


def test_a_killed_watch_leaves_no_file(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    name = f"w{uuid.uuid4().hex[:8]}-0"
    with watching("--sample", 1) as watch:
        run(bundle, tmp_path / "state", name)
        watch.starts(name, 1)
        watch.process.kill()
        watch.process.wait(SECONDS)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_of_a_sample_the_others_have_a_total_alone(bundle: Path, tmp_path: Path) -> None:
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    with watching("--sample", 2) as watch:
        seen = []
        for index in range(8):
            run(bundle, tmp_path / "state", f"{prefix}{index}")
            seen += watch.starts(prefix, 1)
    assert [(record["lost_events"], record["error"]) for record in seen] == [(0, None)] * 8
    assert {bool(record["phases_ns"]) for record in seen} == {True, False}


def change(bundle: Path, copy: Path, namespaces: list[dict[str, str]], *words: str) -> Path:
    """A copy of the bundle with these PID namespaces."""
    shutil.copytree(bundle, copy)
    document = json.loads((copy / "config.json").read_text())
    others = [each for each in document["linux"]["namespaces"] if each["type"] != "pid"]
    document["linux"]["namespaces"] = [*others, *namespaces]
    document["process"]["args"] = list(words or ("/bin/payload", "once"))
    (copy / "config.json").write_text(json.dumps(document))
    return copy


# With runc alone: Debian 12's crun refuses hosts with both versions of control groups.
CREATE = """
cd "$D/bundle"
{ runc --root "$D/state" create "$ID" < /dev/null 2>&1
  sleep "$1" # longer than a window stays open
  runc --root "$D/state" start "$ID"
} | cat # until the container has ended: it executes its program after "start" has returned
runc --root "$D/state" delete --force "$ID"
"""
RUN = "exec $0 --root $D/state run --bundle ${BUNDLE:-$D/bundle} $ID"
THREAD = """
import os, sys, threading, time
threading.Thread(target=lambda: os.execvp("runc", ["runc", *sys.argv[1:]])).start()
time.sleep(60)
"""


def test_starts_made_in_unusual_ways_are_found(bundle: Path, tmp_path: Path) -> None:
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    renamed = tmp_path / "my-runtime"
    shutil.copy(str(shutil.which("runc")), renamed)
    wrapper = tmp_path / "nvidia" / "runc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh -e\nexec {renamed} "$@"\n')
    wrapper.chmod(0o755)
    composed = tmp_path / "nerdctl"
    composed.write_text('#!/bin/sh -e\nrunc --root "$D/state" run --bundle "$D/bundle" "$ID"\n')
    composed.chmod(0o755)
    host = change(bundle, tmp_path / "host", [])
    runc = ["runc", "--root", tmp_path / "state"]
    with watching("--runtime", "my-runtime") as watch:

        def start(name: str, *command: object, **environment: str) -> None:
            subprocess.run(
                list(map(str, command)), check=True, timeout=SECONDS, stdin=subprocess.DEVNULL,
                env=os.environ | {"D": str(tmp_path), "ID": prefix + name} | environment,
            )  # fmt: skip

        start("created", "bash", "-euo", "pipefail", "-c", CREATE, "-", 0.5)
        start("renamed", "sh", "-c", RUN, renamed)
        start("wrapped", "sh", "-c", RUN, wrapper)
        start("composed", composed, "compose", "up")
        start("host", "sh", "-c", RUN, "runc", BUNDLE=str(host))
        own = ("run", "--bundle", bundle, f"{prefix}thread")
        start("thread", sys.executable, "-c", THREAD, *runc[1:], *own)
        for _ in range(3):
            start("again", "sh", "-c", RUN, "runc")
        seen = watch.starts(prefix, 9)
    assert {record["error"] for record in seen} == {None}
    labels = [record["labels"] for record in seen]
    names = [str(label["id"]).removeprefix(prefix) for label in labels]  # type: ignore[index]
    assert sorted(names) == [
        *3 * ["again"], "composed", "created", "host", "renamed", "thread", "wrapped"
    ]  # fmt: skip
    engines = [label["engine"] for label in labels if "engine" in label]  # type: ignore[operator,index]
    assert engines == ["nerdctl"]


DAEMON = """
read -r begin
SLEEP=1 "$D/bin/runc" run --bundle "$D/bundle" "${ID}0" &
read -r traced
SLEEP=2 "$D/bin/runc" run --bundle "$D/bundle" "${ID}1" &
"$D/bin/runc" run --bundle "$D/bundle" "${ID}2"
wait
"""


def test_starts_of_one_daemon_end_by_themselves(bundle: Path, tmp_path: Path) -> None:
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    slow = tmp_path / "bin" / "runc"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh -e\nsleep "${{SLEEP:-0}}"\nexec {shutil.which("runc")} "$@"\n')
    slow.chmod(0o755)
    shutil.copy("/bin/bash", tmp_path / "containerd")
    daemon = subprocess.Popen(
        [tmp_path / "containerd", "-c", DAEMON], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        env=os.environ | {"D": str(tmp_path), "ID": prefix},
    )  # fmt: skip
    assert daemon.stdin is not None
    with watching("--sample", 1) as watch:
        loader = loader_of(watch.process.pid)
        wait_for_links(loader, {IDLE})
        daemon.stdin.write(b"begin\n")
        daemon.stdin.flush()
        wait_for_links(loader, range(IDLE + 1, 100))
        daemon.communicate(b"traced\n", timeout=SECONDS)
        seen = watch.starts(prefix, 3)
    assert [record["error"] for record in seen] == [None] * 3


def test_a_container_in_the_namespace_of_another_is_found(bundle: Path, tmp_path: Path) -> None:
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    holder = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "echo; exec sleep 60"],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        holder.stdout.read(1)
        space = {"type": "pid", "path": f"/proc/{holder.pid}/ns/pid_for_children"}
        joined = change(bundle, tmp_path / "joined", [space])
        with watching() as watch:
            run(joined, tmp_path / "state", f"{prefix}0")
            [record] = watch.starts(prefix, 1)
    finally:
        holder.kill()
        holder.communicate(timeout=SECONDS)
    assert record["error"] is None


def test_a_probe_in_a_container_is_no_start(bundle: Path, tmp_path: Path) -> None:
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    state = ["runc", "--root", str(tmp_path / "state")]
    bundle = change(bundle, tmp_path / "lasting", [{"type": "pid"}], "/bin/payload", "hold")
    subprocess.run(
        [*state, "run", "--detach", "--bundle", bundle, f"{prefix}0"], check=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=SECONDS,
    )  # fmt: skip
    try:
        with watching("--sample", 1) as watch:
            subprocess.run(
                [*state, "exec", f"{prefix}0", "/bin/payload", "once"], check=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=SECONDS,
            )  # fmt: skip
            run(change(tmp_path / "bundle", tmp_path / "next", [{"type": "pid"}]),
                tmp_path / "state", f"{prefix}1")  # fmt: skip
            [record] = watch.starts(prefix, 1)
    finally:
        subprocess.run([*state, "delete", "--force", f"{prefix}0"], check=True, timeout=SECONDS)
    labels = record["labels"]
    assert isinstance(labels, dict)
    assert labels["id"] == f"{prefix}1"


def test_a_burst_is_found_whole(bundle: Path, tmp_path: Path) -> None:
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    with watching("--sample", 1) as watch:
        processes = [
            subprocess.Popen(
                ["runc", "--root", tmp_path / "state", "run", "--bundle", bundle,
                 f"{prefix}{index}"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for index in range(20)
        ]  # fmt: skip
        try:
            seen = watch.starts(prefix, 20)
            for process in processes:
                process.wait(SECONDS)
        finally:
            for process in processes:
                process.kill()
    assert {record["error"] for record in seen} == {None}
    assert {record["lost_events"] for record in seen} == {0}


LASTING = """#!/bin/sh
exec 3<&0
{ echo forked; read -r go <&3 || exit
  "$D/slow/runc" --root "$D/state" run --bundle "$D/bundle" "$ID-slow" &
  runc --root "$D/state" run --bundle "$D/bundle" "$ID-quick"
  wait
} &
wait
"""
SLOW = '#!/bin/sh\nsleep 1 # longer than a window stays open\nexec "$D/my-runtime" "$@"\n'


@pytest.mark.parametrize("name", ["dockerd", "conmonrs"])
def test_unseen_forks_are_no_part_of_later_starts(bundle: Path, tmp_path: Path, name: str) -> None:
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    (tmp_path / "slow").mkdir()
    shutil.copy(str(shutil.which("runc")), tmp_path / "my-runtime")
    for file, script in ((tmp_path / name, LASTING), (tmp_path / "slow/runc", SLOW)):
        file.write_text(script)
        file.chmod(0o755)
    with watching() as watch:
        tracer = loader_of(watch.process.pid)
        os.kill(tracer, signal.SIGSTOP)
        lasting = subprocess.Popen(
            [tmp_path / name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"D": str(tmp_path), "ID": prefix},
        )  # fmt: skip
        try:
            assert lasting.stdin is not None
            assert lasting.stdout is not None
            assert lasting.stdout.readline() == b"forked\n"
            os.kill(tracer, signal.SIGCONT)
            run(bundle, tmp_path / "state", f"{prefix}after")
            watch.starts(f"{prefix}after", 1)
            lasting.stdin.write(b"go\n")
            lasting.stdin.flush()
            seen = watch.starts(prefix, 2)
            lasting.wait(SECONDS)
        finally:
            lasting.kill()
            lasting.communicate(timeout=SECONDS)
    assert {record["error"] for record in seen} == {None}


def test_what_watch_cannot_hand_on_is_bounded(bundle: Path, tmp_path: Path) -> None:
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    large = tmp_path / "large" / "config.json"
    large.parent.mkdir()
    large.write_text(json.dumps({"annotations": {"large": "x" * 1_000_000}}))
    ends_at_once = tmp_path / "runc"
    shutil.copy("/bin/true", ends_at_once)
    with watching() as watch:
        tracer = Path(f"/proc/{loader_of(watch.process.pid)}/fd")
        watch.process.send_signal(signal.SIGSTOP)
        for index in range(100):
            subprocess.run(
                [ends_at_once, "run", "--bundle", large.parent, f"{prefix}{index}"], check=True
            )
        most = held(tracer)
        watch.process.send_signal(signal.SIGCONT)
        is_seen = threading.Event()

        def start_until_seen() -> None:  # none is shown while so much waits
            for index in count():
                run(bundle, tmp_path / "state", f"{prefix}real{index}")
                if is_seen.wait(0.2):
                    return

        with ThreadPoolExecutor(1) as threads:
            starting = threads.submit(start_until_seen)
            try:
                [seen] = watch.starts(f"{prefix}real", 1)
            finally:
                is_seen.set()
            starting.result()
    assert most < 70 << 20
    assert seen["error"] is None


def held(descriptors: Path) -> int:
    """The bytes of the files that a process has open."""
    sizes = {}
    for each in descriptors.iterdir():
        with suppress(OSError):
            status = each.stat()
            sizes[status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


IDLE = 6 if is_preemptible() else 3  # forks, executions and exits, with copies if there are any


def loader_of(watch: int) -> int:
    """The child of watch that has the programs."""
    [loader] = map(int, Path(f"/proc/{watch}/task/{watch}/children").read_text().split())
    return loader


def links(pid: int) -> int:
    """How many eBPF programs a process keeps attached."""
    count = 0
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                count += "bpf_link" in str(entry.readlink())
    return count


def wait_for_links(pid: int, counts: Container[int]) -> None:
    """Until it has so many: starts of others on this machine attach more for a while."""
    until = time.monotonic() + SECONDS
    while links(pid) not in counts:
        assert time.monotonic() < until, links(pid)
        time.sleep(0.05)


def test_tracer_is_attached_only_during_starts(bundle: Path, tmp_path: Path) -> None:
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    with watching("--sample", 1) as watch:
        loader = loader_of(watch.process.pid)
        wait_for_links(loader, {IDLE})
        run(bundle, tmp_path / "state", f"{prefix}0")
        watch.starts(prefix, 1)
        wait_for_links(loader, {IDLE})
        watch.process.kill()
        watch.process.wait()
    wait_for_links(loader, {0})  # it ends when the pipe from its parent does


def test_a_wait_that_began_before_tracing_is_no_computing(tmp_path: Path) -> None:
    prefix, fifo = f"w{uuid.uuid4().hex[:8]}-", tmp_path / "fifo"
    os.mkfifo(fifo)
    runtime = tmp_path / "runc"
    runtime.write_text(f"#!/bin/sh\nread go < {fifo}\nunshare --pid --fork true\n")
    runtime.chmod(0o755)
    with watching("--sample", 1) as watch:
        loader = loader_of(watch.process.pid)
        wait_for_links(loader, {IDLE})
        os.kill(loader, signal.SIGSTOP)
        process = subprocess.Popen([runtime, "run", f"{prefix}0"])
        with fifo.open("w") as waited_for:
            while "pipe" not in Path(f"/proc/{process.pid}/stack").read_text():
                assert process.poll() is None
            os.kill(loader, signal.SIGCONT)
            wait_for_links(loader, range(IDLE + 1, 40))
            time.sleep(0.1)  # the wait that is to be seen
            waited_for.write("go\n")
        [record] = watch.starts(prefix, 1)
        assert process.wait(SECONDS) == 0
    causes = record["causes_ns"]
    assert isinstance(causes, dict)
    assert causes.get("another process: request", 0) > 0.08e9, record


def test_it_keeps_no_right_but_those_that_it_needs() -> None:
    with watching("--sample", 1) as watch:
        children = Path(f"/proc/{watch.process.pid}/task/{watch.process.pid}/children")
        for pid in (watch.process.pid, *map(int, children.read_text().split())):
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            )
            for kind in ("CapPrm", "CapEff", "CapBnd"):
                held = int(status[kind], 16)
                assert held & ~sum(1 << capabilities.NUMBERS[name] for name in NEEDED) == 0, kind
            assert int(status["CapAmb"], 16) == 0


def test_it_gives_up_nothing_where_it_has_nothing_else() -> None:
    """As in a container with these rights alone, which lacks CAP_SETPCAP."""
    held = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in NEEDED)
    keep = f"from firstlight.host import capabilities as c; c.keep_only({NEEDED!r})"
    subprocess.run(
        ["setpriv", f"--bounding-set=-all,{held}", "--inh-caps=-all", sys.executable, "-c", keep],
        check=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"), "in this PID namespace"),
        (("setpriv", "--bounding-set=-syslog"), ""),
        (("setpriv", "--bounding-set=-sys_ptrace"), "this process lacks CAP_SYS_PTRACE"),
        ((), ""),
    ],
)
def test_what_it_cannot_see_is_said_at_the_start(command: tuple[str, ...], expected: str) -> None:
    done = subprocess.run(
        [*command, FIRSTLIGHT, "watch", "--duration", "0"],
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    first, *rest = done.stderr.splitlines()
    assert first.startswith("watching "), done.stderr
    assert done.returncode == 0
    # whether they are hidden is also a matter of kernel.kptr_restrict and perf_event_paranoid
    address = ("grep", "-qm1", "^0*[1-9a-f]", "/proc/kallsyms")
    are_hidden = subprocess.run([*command, *address], timeout=SECONDS).returncode == 1
    others = [line for line in rest if "waits inside the kernel have no names" not in line]
    assert len(rest) - len(others) == are_hidden, done.stderr
    if expected:
        assert any(expected in line for line in others), done.stderr
    elif Path("/proc/self/ns/pid").readlink() == Path("pid:[4026531836]"):
        assert others == []


def test_a_container_that_fails_is_a_failed_start(bundle: Path, tmp_path: Path) -> None:
    config = bundle / "config.json"
    document = json.loads(config.read_text())
    document["process"]["args"] = ["/bin/missing"]
    config.write_text(json.dumps(document))
    prefix = f"w{uuid.uuid4().hex[:8]}-"
    with watching("--sample", 1) as watch:
        subprocess.run(
            ["runc", "--root", tmp_path / "state", "run", "--bundle", bundle, f"{prefix}0"],
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        [record] = watch.starts(prefix, 1)
    assert record["latency_ns"] is None
    assert record["error"]
