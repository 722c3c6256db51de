import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console, RenderableType
from tests.support import synthetic

from firstlight import units as wording
from firstlight.analysis import Analysis
from firstlight.analysis.compare import compare
from firstlight.claims.engine import Verdict
from firstlight.model import Availability, Check, Missing, Sample
from firstlight.report import answer, records, terminal
from firstlight.store import read


def rendered(renderable: RenderableType, width: int) -> str:
    console = Console(file=StringIO(), width=width, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def words(text: str) -> str:
    return " ".join(text.replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_summary_fits_and_keeps_every_latency(
    container: Analysis, network: Analysis, width: int
) -> None:
    text = rendered(terminal.summary([container, network]), width)
    assert max(map(len, text.splitlines())) <= width
    shown = words(text)
    for run in (container, network):
        assert words(answer.answer(run)) in shown
        for point in run.points:
            assert point.latency
            median = point.latency.median
            assert wording.duration(median.value) in shown
            bounds = wording.duration_interval(median).partition(" (")[2]
            assert bounds in shown


def test_the_summary_names_the_kernel_functions_and_both_times(container: Analysis) -> None:
    text = words(rendered(terminal.summary([container]), 100))
    assert "52 % █ lock: pernet_ops_rwsem (copy_net_ns) █ ns.net" in text
    part = next(part for part in container.lead[1].parts if part.phase == "mount")
    assert (
        f"█ mount {wording.percent_interval(part.share)} {wording.duration(part.wall.value)} "
        f"{wording.duration(part.summed.value)}" in text
    )


def test_the_summary_shows_a_failed_starts_output(container: Analysis) -> None:
    text = words(rendered(terminal.summary([container]), 120))
    assert "runc run failed: unable to start container process" in text
    assert "not ready after 30 s, in mount" in text
    assert text.count(", and 1 alike ") == 2  # each kind of failure is told once
    assert "runtime=runsc: runsc is not installed" in text


def test_alike_failures_are_told_once_the_commonest_first(container: Analysis) -> None:
    def failed(error: str, instances: int) -> Sample:
        point = {"runtime": "runc", "instances": instances}
        stamps = msgspec.structs.replace(container.run.samples[0].stamps, ready=None)
        return msgspec.structs.replace(
            container.run.samples[0], point=point, stamps=stamps, error=error
        )

    samples = [failed("hung: pid 7", 1), failed("hung: pid 12", 1), failed("hung: pid 12", 10)]
    samples += [failed("not found", 10)] * 3 + [container.run.samples[0]]
    kinds = [(each.error, count) for each, count in records.failures(samples)]
    assert kinds == [("not found", 3), ("hung: pid 7", 2), ("hung: pid 12", 1)]


def test_a_run_of_which_nothing_was_ready_has_a_summary(known_phases: None, tmp_path: Path) -> None:
    text = words(rendered(terminal.summary([Analysis(synthetic.nothing_ready(tmp_path))]), 80))
    assert "No start became ready" in text
    assert "</script><script>alert(1)</script>" in text


def test_words_of_a_run_are_never_markup() -> None:
    assert "[red]6.18[/red]" in rendered(terminal.claims([verdict("[red]6.18[/red]")]), 100)
    checks = [Check("[b]x", None, "[b]y", "[b]z")]
    lack = Missing(("[b]",), "[b]", "[b]")
    assert (
        rendered(terminal.doctor(checks, {"[b]": Availability((), (lack,))}), 100).count("[b]") == 7
    )


def verdict(figure: str = "52 % (50–55)") -> Verdict:
    return Verdict("C9", "Moving the veth is over 90 %", "Fig. 7", "does not hold", figure)


@pytest.mark.parametrize("width", [80, 120])
def test_claims_fit_and_what_was_measured_comes_first(width: int) -> None:
    missing = Verdict("C1", "Init depends", "Fig. 3", "not measured", "needs unikernel-boot")
    text = rendered(terminal.claims([missing, verdict()]), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.index("C9") < text.index("C1")
    assert "does not hold" in text
    assert "52 %" in text


def test_a_comparison_names_the_slower_points(
    known_phases: None, tmp_path: Path, slowed: Callable[[Path, float], Path]
) -> None:
    before = synthetic.container_creation(tmp_path / "a")
    after = read(slowed(before.path, 1.5))
    text = words(rendered(terminal.comparison(compare(before, after)), 110))
    assert text.count("slower") == 6
    assert "runtime runc, instances 1" in text


@pytest.fixture
def slowed(tmp_path: Path) -> Callable[[Path, float], Path]:
    def copy(path: Path, factor: float) -> Path:
        to = tmp_path / "slowed"
        shutil.copytree(path, to)
        lines = []
        for line in (path / "samples.jsonl").read_bytes().splitlines():
            sample = msgspec.json.decode(line, type=Sample)
            if sample.latency is not None:
                ready = sample.stamps.intended + int(factor * sample.latency)
                stamps = msgspec.structs.replace(sample.stamps, ready=ready)
                sample = msgspec.structs.replace(sample, stamps=stamps)
            lines.append(msgspec.json.encode(sample) + b"\n")
        (to / "samples.jsonl").write_bytes(b"".join(lines))
        return to

    return copy


def test_doctor_says_what_to_do_only_where_something_is_wrong() -> None:
    checks = [
        Check("root", True, "uid 0", "become root"),
        Check("BTF", False, "no /sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"),
    ]
    lack = Missing(("erofs",), "mkfs.erofs is not installed", "apt-get install erofs-utils")
    many = Missing(tuple("abcde"), lack.fact, lack.hint)
    lacks = {
        "floor": Availability(("floor",), ()),
        "rootfs": Availability((), (lack,)),
        "pod": Availability((), (many,)),
    }
    text = words(rendered(terminal.doctor(checks, lacks), 90))
    assert "✓ root uid 0" in text
    assert "become root" not in text
    assert "✗ BTF no /sys/kernel/btf/vmlinux CONFIG_DEBUG_INFO_BTF" in text
    assert "✓ floor can run in full" in text
    assert "! rootfs erofs: mkfs.erofs is not installed apt-get install erofs-utils" in text
    assert text.endswith("! pod 5 starts (a, …): mkfs.erofs is not installed")
