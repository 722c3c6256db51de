"""Runs of nodes as one run."""

from pathlib import Path

import msgspec
import pytest
from tests.support import synthetic

from firstlight.analysis import Analysis
from firstlight.lab.nodes.merge import merge
from firstlight.model import Ending, Header, Sample, Stamps
from firstlight.report import views
from firstlight.store import Run, Writer, read


def slower(run: Run, out: Path, times: int) -> Path:
    """The same run with longer latencies, of a node with another kernel."""

    def longer(sample: Sample) -> Sample:
        if sample.latency is None:
            return sample
        stamps = sample.stamps
        ready = stamps.intended + sample.latency * times
        stamps = Stamps(stamps.intended, stamps.spawned, ready, ready, stamps.stopped)
        return msgspec.structs.replace(sample, stamps=stamps)

    environment = run.header.environment | {"kernel": "5.15"}
    with Writer(out, msgspec.structs.replace(run.header, environment=environment)) as writer:
        writer.append(map(longer, run.samples))
        for batch, spans in run.span_batches():
            writer.append_spans(batch, spans)
        assert run.footer
        writer.finish(run.footer)
    return out


@pytest.fixture
def plain(tmp_path: Path) -> Header:
    header = synthetic.container_creation(tmp_path / "plain", repetitions=1).header
    return msgspec.structs.replace(header, run="all", argv=("firstlight", "run"))


def test_the_node_is_an_axis_and_differences_are_named(tmp_path: Path, plain: Header) -> None:
    fast = synthetic.container_creation(tmp_path / "fast", repetitions=4)
    slow = slower(fast, tmp_path / "slow", 3)
    outcomes: dict[str, Path | str] = {
        "a": fast.path, "b": slow, "c": "the node is not Ready"
    }  # fmt: skip
    merge(outcomes, plain, fast.header.points, tmp_path / "out")
    run = read(tmp_path / "out")
    assert run.header.run == "all"
    assert run.header.axes == ("node", *fast.header.axes)
    assert len(run.header.points) == 3 * len(fast.header.points)
    assert [sample.index for sample in run.samples] == sorted({s.index for s in run.samples})
    assert run.header.environment["nodes"] == ["a", "b"]
    assert "kernel" not in run.header.environment
    assert "Nodes differ in kernel: a 6.18.0-synthetic; b 5.15" in run.header.notes
    failed = [sample for sample in run.samples if sample.point["node"] == "c"]
    assert len(failed) == len(fast.header.points)
    assert all(each.ending is Ending.FAILED for each in failed)
    assert failed[0].error == "node c: the node is not Ready"
    assert run.footer
    assert "Node c has no run: the node is not Ready." in run.footer.warnings

    traced = [sample for sample in run.samples if sample.traced and sample.point["node"] == "b"]
    before = [sample for sample in read(slow).samples if sample.traced]
    assert [run.spans_of(s).height for s in traced] == [
        read(slow).spans_of(s).height for s in before
    ]

    answer = views.of(run.header).answer(Analysis(run))
    assert answer
    assert answer.startswith("b is the slowest node: there ")
    assert "as long as on a" in answer
    [table] = views.of(run.header).tables(Analysis(run))
    assert table.rows[0][0].startswith("a · ")
    assert table.rows[0][2] == "–"
    assert table.rows[1][0].startswith("b · ")


def test_equal_nodes_are_not_ranked(tmp_path: Path, plain: Header) -> None:
    first = synthetic.container_creation(tmp_path / "one", repetitions=4)
    merge({"a": first.path, "b": first.path}, plain, first.header.points, tmp_path / "out")
    answer = views.of(read(tmp_path / "out").header).answer(Analysis(read(tmp_path / "out")))
    assert answer
    assert answer.startswith("Between 2 nodes, no difference seen")


def test_nodes_that_all_fail_make_a_run(tmp_path: Path, plain: Header) -> None:
    merge({"a": "it has vanished", "b": "no image"}, plain, plain.points, tmp_path / "out")
    run = read(tmp_path / "out")
    assert {sample.error for sample in run.samples} == {
        "node a: it has vanished", "node b: no image"
    }  # fmt: skip
    assert len(run.samples) == 2 * len(plain.points)
