"""The probe's log as spans: whole, cut short, mixed with what is not its own."""

from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import Failed, Unsupported
from firstlight.lab.guests import BootConfig, Line, Reading, probe_images
from firstlight.lab.guests.probe import STEPS, Probe
from firstlight.lab.guests.probe_images import fnv1a
from firstlight.model import Step

# Printed by QEMU 7.2, microvm, TCG.
LOG = """\
firstlight probe: a guest that does what a guest must
virtio: 3 devices on MMIO
block: 32 sectors
firstlight probe ready 13000000
probe entry 5200000 5460000
probe console 5460000 5720000
probe pci absent
probe virtio 5720000 5980000
probe console 5980000 6240000
probe block 6240000 7800000
probe clock 2600000000 pit TCGTCGTCGTCG
probe end 7 26000000"""


def lines(text: str) -> list[Line]:
    return [Line(10**9 + stamp, line) for stamp, line in enumerate(text.split("\n"))]


def read(text: str, *, icount: bool = False) -> Reading:
    return Probe().read(BootConfig(icount=icount), lines(text), None)


def test_a_log_is_its_spans_from_the_machines_start() -> None:
    text = read(LOG)
    assert text.clock == "the guest's time-stamp counter, its rate by pit"
    assert text.spans == (
        Step("firmware", 0, 2_000_000),
        Step("entry", 2_000_000, 2_100_000),
        Step("console", 2_100_000, 2_200_000),
        Step("virtio", 2_200_000, 2_300_000),
        Step("console", 2_300_000, 2_400_000),
        Step("block", 2_400_000, 3_000_000),
    )
    assert text.anchors == ((10**9 + 3, 5_000_000), (10**9 + 11, 10_000_000))


def test_late_counter_begins_with_guest() -> None:
    text = read(LOG.replace("TCGTCGTCGTCG", "KVMKVMKVM"))
    assert text.spans[:2] == (Step("entry", 0, 100_000), Step("console", 100_000, 200_000))
    assert [guest for _, guest in text.anchors] == [3_000_000, 8_000_000]


def test_where_instructions_are_counted_a_tick_is_a_nanosecond() -> None:
    text = read(LOG, icount=True)
    assert text.spans[:2] == (Step("firmware", 0, 5_200_000), Step("entry", 5_200_000, 5_460_000))
    assert text.clock == "the guest's time-stamp counter, its rate one nanosecond per instruction"


@pytest.mark.parametrize("clock", ["", "probe clock 0 unknown KVMKVMKVM", "probe clock 7 pit none"])
def test_without_a_frequency_nothing_is_known(clock: str) -> None:
    text = read(LOG.replace("probe clock 2600000000 pit TCGTCGTCGTCG", clock))
    assert (text.spans, text.anchors) == ((), ())


@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, 10**9)), min_size=1),
    first=st.integers(0, 10**15),
    gigahertz=st.integers(1, 5),
    kept=st.integers(0, 100),
    hypervisor=st.sampled_from(["TCGTCGTCGTCG", "KVMKVMKVM", "none"]),
)
def test_what_is_left_of_a_log_gives_the_spans_that_it_has(
    steps: list[tuple[str, int]], first: int, gigahertz: int, kept: int, hypervisor: str
) -> None:
    edges = [tick * gigahertz for tick in accumulate((n for _, n in steps), initial=first)]
    message = [
        f"probe {name} {a} {b}" for (name, _), (a, b) in zip(steps, pairwise(edges), strict=True)
    ]
    cut = message[:kept]
    text = read("\n".join([f"probe clock {gigahertz}000000000 pit {hypervisor}", *cut]))
    spans = [span for span in text.spans if span.name != "firmware"]
    assert [(span.name, span.end - span.start) for span in spans] == steps[:kept]
    assert all(span.end == following.start for span, following in pairwise(text.spans))
    if cut:
        assert text.spans[0].start == 0


@given(
    st.lists(st.text() | st.sampled_from(LOG.split("\n")) | st.from_regex(r"probe \w+ \d+ \d+")),
    st.booleans(),
)
def test_no_text_is_an_error_nor_out_of_range(console_text: list[str], icount: bool) -> None:
    result = Probe().read(
        BootConfig(icount=icount),
        [Line(stamp, text) for stamp, text in enumerate(console_text)],
        None,
    )
    for span in result.spans:
        assert -(2**63) < span.start <= span.end < 2**63
    assert all(abs(guest) < 2**63 for _, guest in result.anchors)


@pytest.mark.parametrize(
    ("text", "sum_of_it"), [(b"", 0x811C9DC5), (b"a", 0xE40C292C), (b"foobar", 0xBF9CF968)]
)
def test_sums_are_those_that_are_published(text: bytes, sum_of_it: int) -> None:
    assert fnv1a(text) == sum_of_it


def test_what_it_cannot_do_is_reported() -> None:
    with pytest.raises(Unsupported, match="cannot mount zfs"):
        Probe("zfs").probe(BootConfig())


def test_a_long_command_line_does_not_run_into_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="command line is too long: 512 bytes"):
        probe_images.bootable(None, "x" * 512, tmp_path / "disk")
    assert not any(tmp_path.iterdir())


def test_a_failing_mkfs_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    mkfs = tmp_path / "bin" / "mkfs.erofs"
    mkfs.write_text("#!/bin/sh\necho no room >&2\nexit 3\n")
    mkfs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(Failed, match=r"mkfs\.erofs cannot make .*: no room"):
        probe_images.root(tmp_path)
    assert not (tmp_path / "probe.erofs").exists()


def test_a_missing_mkfs_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match=r"mkfs\.erofs is not installed"):
        Probe().probe(BootConfig())
    Probe("none").probe(BootConfig())
