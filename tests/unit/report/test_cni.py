"""The side-by-side table, on spans whose counts are known."""

from dataclasses import replace
from pathlib import Path

import msgspec
import polars as pl
import pytest
from rich.console import Console

from firstlight import store
from firstlight.analysis import Analysis, breakdown
from firstlight.analysis.breakdown import SCHEMA
from firstlight.lab.experiments.cni_breakdown import CNI_BREAKDOWN
from firstlight.model import Ending, EndPoint, Header, Sample, Stamps, Step
from firstlight.report import answer, terminal
from firstlight.report.views import cni
from firstlight.store import SPAN_SCHEMA

ROOT, PLUGIN, IPAM, DAEMON = 100, 101, 102, 900
LINK = "socket:netlink.route RTM_NEWLINK create kind=veth"


def spans() -> pl.DataFrame:
    rows: list[dict[str, object]] = []

    def add(kind: str, name: str, detail: str, pid: int, **more: object) -> None:
        start = 1000 * (len(rows) + 1)
        row = {"sample": 1, "kind": kind, "name": name, "detail": detail, "stack": "",
               "start": start, "end": start + 500, "pid": pid, "tid": pid, "result": 1,
               "peer": None}  # fmt: skip
        rows.append({**row, **more})

    add("call", "setns", "net", ROOT)
    add("fork", "process", "", ROOT, peer=PLUGIN)
    add("exec", "exec", "/opt/cni/bin/bridge", PLUGIN)
    add("call", "setns", "net", PLUGIN)
    add("call", "setns", "mount", PLUGIN)
    add("call", "sendto", LINK, PLUGIN)
    add("call", "sendto", LINK, PLUGIN)
    add("fork", "process", "", PLUGIN, peer=IPAM)
    add("exec", "exec", "/opt/cni/bin/host-local", IPAM)
    for _ in range(2):
        add("call", "write", "socket:unix /run/agent.sock", PLUGIN)
        add("call", "write", "socket:unix /run/agent.sock", PLUGIN)
        add("call", "read", "socket:unix /run/agent.sock", PLUGIN, result=-11)
        add("call", "read", "socket:unix /run/agent.sock", PLUGIN)
    add("call", "bpf", "PROG_LOAD", DAEMON)
    add("call", "bpf", "PROG_LOAD cgroup", DAEMON)
    add("call", "sendto", LINK, DAEMON)
    add("fork", "process", "", DAEMON, peer=DAEMON + 1)
    add("exec", "exec", "/usr/bin/clang", DAEMON + 1)
    return pl.DataFrame(rows, schema=SPAN_SCHEMA)


@pytest.fixture
def run(tmp_path: Path) -> store.Run:
    header = Header(
        run="r",
        experiment="cni-breakdown",
        question="?",
        end_point=EndPoint.REQUEST_DONE,
        axes=("cni", "instances"),
        points=({"cni": "bridge", "instances": 1},),
        argv=(),
        seed=1,
        started="2026-01-01",
        revision="",
        repetitions=1,
        presentation=CNI_BREAKDOWN.presentation,
    )
    samples = [
        Sample(
            index=index,
            batch=index,
            instance=0,
            repetition=0,
            point={"cni": "bridge", "instances": 1},
            traced=index == 1,
            ending=Ending.READY,
            stamps=Stamps(0, 0, latency),
            steps=(Step("packet", latency, latency + 70_000),),
            pid=ROOT,
        )
        for index, latency in enumerate([10_000_000, 100_000, *[10_000_000] * 8, 200_000_000])
    ]
    with store.Writer(tmp_path / "run", header) as writer:
        writer.append_spans(1, spans())
        writer.append(samples)
    return store.read(tmp_path / "run")


def test_report_counts_only_plugin_operations(
    run: store.Run,
) -> None:
    [row] = cni.side_by_side(Analysis(run)).iter_rows(named=True)
    assert (row["switches"], row["netlink"], row["processes"]) == (1, 2, 2)
    assert row["asks"] == 2
    assert row["programs"] == 1
    assert row["netlink_ns"] == 1000


def test_latencies_are_of_the_untraced(run: store.Run) -> None:
    [row] = cni.side_by_side(Analysis(run)).iter_rows(named=True)
    assert row["latency"] == 10_000_000
    assert row["packet"] == 70_000
    assert row["p99"] > cni.TAIL * row["latency"]


def test_the_figures_name_their_end_point(run: store.Run) -> None:
    assert cni.headings(Analysis(run))[1:4] == ("ADD returned", "P99", "+ packet")
    header = msgspec.structs.replace(run.header, end_point=EndPoint.FIRST_PACKET)
    reaching = Analysis(replace(run, header=header))
    assert cni.headings(reaching)[1:4] == ("first packet answered", "P99", "of which packet")
    assert len(cni.headings(reaching)) == len(cni.cells(reaching)[0])
    console = Console(width=120)
    with console.capture() as capture:
        console.print(terminal.summary([reaching]))
    assert "packet back" in capture.get()


def test_the_answer_is_of_a_pods_network(run: store.Run) -> None:
    shown = answer.answer(Analysis(run))
    assert shown.startswith("On this machine a pod's network (bridge) takes ")


def test_a_long_tail_can_be_seen(run: store.Run) -> None:
    console = Console(width=200, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(terminal.summary([Analysis(run)]))
    shown = capture.get()
    assert "183 ms" in shown
    assert "(×18)" in shown
    assert "10.0 ms" in shown


def test_advice_names_the_largest_phase_that_has_a_remedy(
    run: store.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        (1, "veth", "kernel", "on CPU", 70_000, 0),
        (1, "garp", "kernel", "RCU: synchronize_rcu (packet_release)", 25_000, 0),
        (1, "garp", "around", "on CPU", 5_000, 0),
    ]
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    monkeypatch.setattr(breakdown, "breakdown", lambda _run: frame)
    message = cni.advice(Analysis(run))
    assert message.startswith(
        "A large possible gain is in bridge: garp takes 30.0 µs of 100 µs (30 %"
    )
    assert "RCU: synchronize_rcu (packet_release)" in message
    assert "arp_notify" in message


def test_the_share_of_a_gain_is_that_of_the_times_beside_it(
    run: store.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = [msgspec.structs.replace(run.samples[0], index=at, traced=True) for at in range(3)]
    rows = [
        (at, phase, "kernel", "on CPU", wall * 1000, 0)
        for at, pair in enumerate(((90, 10), (50, 150), (40, 60)))
        for phase, wall in zip(("garp", "exec"), pair, strict=True)
    ]
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    monkeypatch.setattr(breakdown, "breakdown", lambda _run: frame)
    message = cni.advice(Analysis(replace(run, samples=traced)))
    assert "garp takes 50.0 µs of 100 µs (50 %" in message


@pytest.mark.parametrize("wall", [0, 1700])
def test_phases_that_take_little_promise_no_gain(
    run: store.Run, monkeypatch: pytest.MonkeyPatch, wall: int
) -> None:
    rows = [(1, "veth", "kernel", "on CPU", 70_000, 0)]
    rows += [(1, phase, "kernel", "on CPU", wall, 0) for phase in ("garp", "bridge")]
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    monkeypatch.setattr(breakdown, "breakdown", lambda _run: frame)
    assert cni.advice(Analysis(run)) == ""


def test_what_http2_says_of_itself_asks_nothing() -> None:
    message = [(True, 24), (True, 9), (True, 65), (True, 82), (False, 21), (True, 9), (False, 457),
            (True, 30), (False, 17), (True, 300), (False, 93), (True, 47), (False, 17)]  # fmt: skip
    rows = [
        {"sample": 1, "kind": "call", "name": "write" if says else "read", "detail": "socket:inet",
         "stack": "", "start": at, "end": at, "pid": PLUGIN, "tid": PLUGIN, "result": size,
         "peer": None}
        for at, (says, size) in enumerate(message)
    ]  # fmt: skip
    calls = pl.DataFrame(rows, schema=SPAN_SCHEMA).with_columns(
        pl.col("name", "detail").cast(pl.String)
    )
    assert cni._turns(calls) == 2
    other = calls.with_columns(result=pl.when(pl.col("result") == 24).then(25).otherwise("result"))
    assert cni._turns(other) == 5
