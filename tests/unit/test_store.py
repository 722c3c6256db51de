"""Runs on disk: what is written is read back, and what is not a run is refused and left alone."""

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import NoReturn

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from firstlight import store
from firstlight.errors import BadRun, FirstlightError
from firstlight.lab.experiments import catalogue
from firstlight.lab.nodes import merge
from firstlight.model import Ending, EndPoint, Footer, Header, Presentation, Sample, Stamps, Step
from firstlight.store import READ_OF_EXPERIMENTS, READ_OF_VIEWS, SPAN_SCHEMA, Writer, read

HEADER = Header(
    run="r", experiment="e", question="?", end_point=EndPoint.EXIT, axes=("runtime", "instances"),
    points=({"runtime": "runc", "instances": 2},), argv=("firstlight",), seed=1, started="now",
    revision="0", repetitions=1, environment={"cores": 2, "list": ["a"]}, notes=("note",),
    skipped=(("crun", "not here"),),
)  # fmt: skip
FOOTER = Footer(ended="then", interrupted=True, warnings=("late",))


def sample(index: int = 0, **more: object) -> Sample:
    values = {"index": index, "batch": 0, "instance": 0, "repetition": 0, "traced": True,
              "point": {"runtime": "runc", "instances": 2}, "ending": Ending.READY,
              "stamps": Stamps(1, 2, 10, 11, 12)}  # fmt: skip
    return Sample(**(values | more))  # type: ignore[arg-type]


def spans(*starts: int) -> pl.DataFrame:
    rows = [(0, "call", "mount", "/x", "", at, at + 1, 7, 7, 0, None) for at in starts]
    return pl.DataFrame(rows, schema=SPAN_SCHEMA, orient="row")


def written(path: Path, *samples: Sample) -> Path:
    with Writer(path, HEADER) as writer:
        writer.append_spans(0, spans(3, 4))
        writer.append(samples)
        writer.finish(FOOTER)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    first = sample(steps=(Step("netns", 3, 4),), error="\N{SNOWMAN}\n", output="x\0y", lost=3)
    run = read(written(tmp_path / "run", first))
    footer = structs.replace(FOOTER, samples=1)
    assert (run.header, run.samples, run.footer) == (HEADER, [first], footer)
    [(number, frame)] = list(run.span_batches())
    assert number == 0
    assert frame.equals(spans(3, 4))
    assert run.spans_of(first).equals(spans(3, 4))
    assert run.spans_of(sample(batch=9)).is_empty()
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_that_is_continued_keeps_the_given_samples_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "run", sample(0), sample(1, batch=1))
    with Writer(path, HEADER, earlier=[sample(0)]) as writer:
        assert read(path).footer is None
        writer.append([sample(2, batch=1)])
    assert read(path).samples == [sample(0), sample(2, batch=1)]


@given(
    st.lists(st.tuples(st.integers(0, 2**62 - 1), st.none() | st.integers(0, 2**62 - 1), st.text()))
)
def test_any_samples_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[int, int | None, str]]
) -> None:
    samples = [
        sample(index, stamps=Stamps(at, at, ready), output=text)
        for index, (at, ready, text) in enumerate(values)
    ]
    assert read(written(tmp_path_factory.mktemp("x") / "run", *samples)).samples == samples


def test_the_frame_has_a_row_a_sample_and_a_column_an_axis(tmp_path: Path) -> None:
    failed = sample(1, ending=Ending.FAILED, stamps=Stamps(1, 5))
    frame = read(written(tmp_path / "run", sample(), failed)).frame
    assert frame["runtime"].to_list() == ["runc", "runc"]
    assert frame["latency"].to_list() == [9, None]
    assert frame["lateness"].to_list() == [1, 4]
    assert frame["ending"].to_list() == ["ready", "failed"]


@pytest.mark.parametrize("failed", [0, 2])
def test_a_run_of_which_no_start_was_ready_has_the_same_frame(tmp_path: Path, failed: int) -> None:
    good = read(written(tmp_path / "good", sample())).frame
    samples = [sample(i, ending=Ending.FAILED, stamps=Stamps(1, 2)) for i in range(failed)]
    frame = read(written(tmp_path / "bad", *samples)).frame
    assert frame.columns == good.columns
    assert frame["latency"].dtype == pl.Int64
    assert len(frame) == failed


def test_killed_run_is_read_without_footer(
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "run", sample(0), sample(1))
    (path / "footer.json").unlink()
    lines = (path / "samples.jsonl").read_bytes()
    for cut in range(len(lines) // 2 + 1, len(lines)):
        (path / "samples.jsonl").write_bytes(lines[:cut])
        run = read(path)
        assert [each.index for each in run.samples] == [0]
        assert run.footer is None


def _write_and_die(path: Path) -> None:
    with Writer(path, HEADER) as writer:
        writer.append([sample(0), sample(1)])
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_was_appended_survives_a_kill(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_write_and_die, args=(tmp_path / "run",)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [sample.index for sample in read(tmp_path / "run").samples] == [0, 1]


def test_truncated_file_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Writer(tmp_path / "run", HEADER) as writer:
        writer.append_spans(0, spans(1))
        monkeypatch.setattr(Path, "rename", lambda _from, _to: None)  # killed before it
        writer.append_spans(1, spans(2))
        writer.append([sample(0), sample(1, batch=1)])
    assert [number for number, _ in read(tmp_path / "run").span_batches()] == [0]


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("header.json", b"", "is not a run's header"),
        ("header.json", b"{", "is not a run's header"),
        ("header.json", b"[]", "is not a run's header"),
        ("header.json", b"{}", "is not a run's header"),
        ("header.json", b"\xff\xfe", "is not a run's header"),
        ("header.json", b'{"schema": 1}', "cannot read"),
        ("header.json", b'{"schema": 99}', "has schema 99, and this firstlight reads 1"),
        ("header.json", b'{"schema": "1"}', "has schema 1"),
        ("header.json", b"[" * 5000, "is not a run's header"),
        ("samples.jsonl", b"not json\n", "samples.jsonl:1"),
        ("samples.jsonl", b'{"labels":' + b"[" * 5000 + b"\n", "samples.jsonl:1"),
        ("samples.jsonl", b'{"index": "x"}\n', "samples.jsonl:1"),
        ("samples.jsonl", b"\xff\n", "samples.jsonl:1"),
        ("samples.jsonl", b"\n", "samples.jsonl:1"),
        ("footer.json", b"{", "footer.json"),
    ],
)  # fmt: skip
def test_damage_is_an_error_that_names_the_file_and_leaves_it(
    tmp_path: Path, file: str, content: bytes, text: str
) -> None:
    path = written(tmp_path / "run", sample())
    (path / file).write_bytes(content)
    before = contents(path)
    with pytest.raises(BadRun, match=text) as caught:
        read(path)
    assert caught.value.hint
    assert contents(path) == before


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1}', b"line", b"half"])
@pytest.mark.parametrize("interrupted", [True, False])
def test_samples_that_a_whole_run_lacks_are_an_error(
    tmp_path: Path, content: bytes | None, *, interrupted: bool
) -> None:
    """A foreign line without an end looks like the one that a kill cut off."""
    path = tmp_path / "run"
    with Writer(path, HEADER, earlier=None) as writer:
        writer.append([sample()])
        writer.append([sample(1)])
        writer.finish(structs.replace(FOOTER, interrupted=interrupted))
    file = path / "samples.jsonl"
    lines = file.read_bytes()
    file.unlink()
    if content is not None:
        parts = {b"line": lines[: lines.index(b"\n") + 1], b"half": lines[:-9]}
        file.write_bytes(parts.get(content, content))
    count = int(content in (b"line", b"half"))
    with pytest.raises(BadRun, match=rf"samples\.jsonl has {count} of the 2 samples that the run"):
        read(path)
    (path / "footer.json").unlink()
    assert len(read(path).samples) == count


def test_samples_that_are_there_twice_are_an_error(tmp_path: Path) -> None:
    samples = written(tmp_path / "run", sample()) / "samples.jsonl"
    samples.write_bytes(samples.read_bytes() * 2)
    with pytest.raises(BadRun, match="a second sample 0"):
        read(samples.parent)


@pytest.mark.parametrize("name", ["samples.jsonl", "footer.json", "spans/0.arrow"])
def test_what_may_never_end_is_not_read(name: str, tmp_path: Path) -> None:
    file = written(tmp_path / "run", sample()) / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(BadRun, match="not a regular file"):
        list(read(tmp_path / "run").span_batches())


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"\0" * 100, None])
def test_damaged_spans_name_the_file(tmp_path: Path, content: bytes | None) -> None:
    path = written(tmp_path / "run", sample())
    file = path / "spans" / "0.arrow"
    if content is None:
        pl.DataFrame({"other": [1]}).write_ipc(file)
    else:
        file.write_bytes(content)
    with pytest.raises(BadRun, match=r"0\.arrow"):
        list(read(path).span_batches())


@pytest.mark.parametrize(
    ("column", "wrong"), [("tid", -1), ("pid", None), ("start", None), ("name", None)]
)
def test_damaged_spans_of_a_readable_file_name_it(
    tmp_path: Path, column: str, wrong: int | None
) -> None:
    path = written(tmp_path / "run", sample())
    file = path / "spans" / "0.arrow"
    spans = pl.read_ipc(file.read_bytes())
    kind = spans.schema[column]
    spans.with_columns(pl.lit(wrong, kind).alias(column)).write_ipc(file)
    with pytest.raises(BadRun, match=r"0\.arrow has a damaged span"):
        list(read(path).span_batches())


def test_a_panic_of_the_reader_is_an_error_and_not_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "run", sample())
    file = path / "spans" / "0.arrow"
    content = file.read_bytes()
    file.write_bytes(content[:8] + content[len(content) // 2 :])
    with pytest.raises(BadRun, match=r"0\.arrow"):
        list(read(path).span_batches())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (READ_OF_EXPERIMENTS, {name: each.axes for name, each in catalogue.ALL.items()}),
        (
            READ_OF_VIEWS,
            {each.presentation.view: each.axes for each in catalogue.ALL.values()}
            | {"nodes": (merge.AXIS,)},
        ),
    ],
)
def test_header_names_axes_of_experiment(
    table: dict[str, tuple[str, ...]], named: dict[str, tuple[str, ...]]
) -> None:
    for name, axes in table.items():
        assert set(axes) <= set(named[name]), name


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"axes": ("instances",)}, "has no axis runtime"),
        ({"axes": ("runtime",)}, "has no axis instances"),
        ({"axes": ("runtime", "instances", "runtime")}, "'runtime' is not the only column"),
        ({"axes": ("runtime", "instances", "latency")}, "'latency' is not the only column"),
        ({"points": ({"runtime": "runc", "instances": 0},)}, "has 0 instances"),
        ({"points": ({"runtime": "runc", "instances": True},)}, "has True instances"),
        ({"points": ({"runtime": "runc", "instances": 1e99},)}, "has 1e.99 instances"),
        ({"points": ({"runtime": "runc"},)}, "has no instances"),
        ({"points": ({"runtime": 1 << 70, "instances": 1},)}, "Expected `int`"),
        ({"experiment": "ablation"}, "has no axis without"),
        ({"presentation": Presentation(view="churn")}, "has no axis pools"),
        ({"experiment": "density", "axes": ("background", "instances"),
          "points": ({"background": "many", "instances": 1},)}, "has 'many' background"),
    ],
)  # fmt: skip
def test_a_header_without_what_its_readers_ask_for_is_refused(
    tmp_path: Path, changes: dict[str, object], text: str
) -> None:
    header = structs.replace(HEADER, experiment="container-creation")
    with Writer(tmp_path / "run", structs.replace(header, **changes)):
        pass
    with pytest.raises(BadRun, match=text):
        read(tmp_path / "run")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(BadRun, match=r"is not a run: it has no header\.json"):
            read(path)
    with pytest.raises(BadRun, match="missing does not exist"):
        read(tmp_path / "missing")


def test_a_directory_that_is_in_use_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(FirstlightError, match="is not empty"):
        Writer(tmp_path, HEADER)
    assert contents(tmp_path).keys() == {str(tmp_path / "precious")}


def test_of_two_runs_in_a_directory_at_once_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "check_empty", lambda _: None)  # it was, for both
    path = written(tmp_path / "run", sample())
    before = contents(path)
    with pytest.raises(FirstlightError, match="is not empty"):
        Writer(path, HEADER)
    assert contents(path) == before


def test_a_path_that_cannot_be_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    for path, fact in (
        (tmp_path / "file", "Not a directory"),
        (tmp_path / "file" / "run", "Not a directory"),
        (tmp_path / "link", "File exists"),
    ):
        with pytest.raises(FirstlightError, match=f"cannot write a run to .*: {fact}"):
            Writer(path, HEADER)


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_run_that_fails_early_leaves_its_directory_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, was_there: bool, full: bool
) -> None:
    path = tmp_path / "run"
    if was_there:
        path.mkdir()
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            fail_in_a_run(path, patch, full=full)
        assert [*tmp_path.rglob("*")] == [path] * was_there


def fail_in_a_run(path: Path, patch: pytest.MonkeyPatch, *, full: bool) -> None:
    if full:  # not even the header is written
        patch.setattr(store, "write_whole", fail)
    with Writer(path, HEADER) as writer:
        writer.finish(FOOTER)
        fail()


def fail(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "samples"), [(ZeroDivisionError, [sample()]), (KeyboardInterrupt, [])]
)
def test_a_run_that_is_cut_off_is_kept(
    tmp_path: Path, error: type[BaseException], samples: list[Sample]
) -> None:
    def cut_off() -> None:
        with Writer(tmp_path / "run", HEADER) as writer:
            writer.append(samples)
            raise error

    with pytest.raises(error):
        cut_off()
    assert read(tmp_path / "run").samples == samples


def test_spans_of_another_shape_are_not_written(tmp_path: Path) -> None:
    with (
        Writer(tmp_path / "run", HEADER) as writer,
        pytest.raises(pl.exceptions.SchemaError),
    ):
        writer.append_spans(0, pl.DataFrame({"other": [1]}))


def test_a_field_of_a_later_minor_version_is_no_damage(tmp_path: Path) -> None:
    path = written(tmp_path / "run", sample())
    header = json.loads((path / "header.json").read_bytes()) | {"new": 1}
    (path / "header.json").write_text(json.dumps(header))
    assert read(path).header == HEADER
