"""The Linux guest's log: what a whole one says, and that a part of one says less."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.analysis import phases
from firstlight.lab.guests import Line, Reading, clock, linux_log
from firstlight.model import Step

HERTZ = 2e9
BOOT = """\
600000000 early console in setup code
2000000000 firstlight step packet 820000000 870000000
2000000000 firstlight ready 800000000
2000000000
2010000500 [    1.305000] firstlight now 3020000000
2010000900 firstlight now 3020001000
2011000000 firstlight clocks 3022000000 911000000
2011000000 firstlight init 2000000000
2011000000 firstlight step 2010000000 2030000000 module virtio_ring.ko
2011000000 firstlight step 2030000000 2200000000 module virtio-rng.ko
2011000000 firstlight step 2300000000 2400000000 network
2011000000 firstlight step 2400000000 2500000000 mount erofs
2011000000 firstlight step 2500000000 2900000000 exec
2012000000 firstlight log 5000 Console: colour VGA+ 80x25
2012000000 firstlight trace 1010000000 Console
2012000000 firstlight step 1008000000 1012000000 initcall con_init
2012000000 firstlight step 2040000000 2190000000 initcall 0xffffffffc0235000
2013000000 firstlight log ends""".splitlines()


def lines(*texts: str) -> list[Line]:
    cut = [text.partition(" ") for text in texts]
    return [Line(int(stamp), text) for stamp, _, text in cut]


def read(*texts: str, packed: bool = True) -> Reading:
    return linux_log.read(lines(*texts), HERTZ, packed=packed)


MS = 1_000_000


def test_a_boot_is_read_from_the_machines_start() -> None:
    """The counter's 1510.0005 ms were heard at 2010.0009 ms: no other line was heard sooner."""
    setup = 600 * MS - 500_000_400
    assert read(*BOOT).spans == (
        Step("firmware", 0, setup),
        Step("uncompress", setup, 500 * MS),
        Step("kernel", 500 * MS, 1000 * MS),
        Step("initcall con_init", 504 * MS, 506 * MS),
        Step("module virtio_ring", 1005 * MS, 1015 * MS),
        Step("module virtio_rng", 1015 * MS, 1100 * MS),
        Step("initcall virtio_rng", 1020 * MS, 1095 * MS),
        Step("network", 1150 * MS, 1200 * MS),
        Step("mount erofs", 1200 * MS, 1250 * MS),
        Step("exec", 1250 * MS, 1450 * MS),
        Step("packet", 1420 * MS, 1470 * MS),
    )


def test_a_boot_without_a_packed_kernel_uncompresses_nothing() -> None:
    spans = read(*BOOT, packed=False).spans
    assert spans[:2] == (Step("firmware", 0, 500 * MS), Step("kernel", 500 * MS, 1000 * MS))


def test_icount_ignores_host_clock() -> None:
    spans = linux_log.read(lines(*BOOT), HERTZ, packed=True, counted=True).spans
    assert spans[0] == Step("firmware and uncompress", 0, 500 * MS)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("early console", [Step("firmware and uncompress", 0, 500 * MS)]),
        ("firstlight now", [Step("firmware and uncompress", 0, 500 * MS)]),
        ("trace", [Step("firmware and kernel", 0, 1000 * MS)]),
        ("firstlight log 5000", [Step("firmware and kernel", 0, 1000 * MS)]),
        ("firstlight init", []),
    ],
)
def test_inseparable_parts_have_one_name(missing: str, expected: list[Step]) -> None:
    spans = read(*(text for text in BOOT if missing not in text)).spans
    assert [span for span in spans if span.start == 0] == expected


def test_the_lines_that_bear_the_counter_tie_the_clocks() -> None:
    reading = read(*BOOT)
    assert reading.anchors == ((2_010_000_500, 1510 * MS), (2_010_000_900, 1510 * MS + 500))
    offset = clock.place(reading, entered=500_000_000)
    assert offset is not None
    assert (offset.value, offset.uncertainty) == (500_000_200, 200)


def test_each_span_has_its_phase() -> None:
    named = {span.name: phases.of_guest(span.name) for span in read(*BOOT).spans}
    assert named["uncompress"] == "kernel.uncompress"
    assert named["kernel"] == "kernel.init"
    assert named["initcall con_init"] == "driver.console"
    assert named["module virtio_rng"] == named["initcall virtio_rng"] == "driver.rng"
    assert named["network"] == "net.init"
    assert named["mount erofs"] == "mount"
    assert named["exec"] == "exec"
    assert named["packet"] == "packet"
    assert phases.of_guest("firmware and kernel") == "guest.other"


def test_an_empty_log_has_no_spans() -> None:
    assert read() == Reading(linux_log.CLOCK)
    assert read("1 Kernel panic - not syncing: VFS: Unable to mount root fs").spans == ()


_WORDS = st.sampled_from([word for text in BOOT for word in text.split()])
_NUMBERS = st.integers(0, 10**20).map(str)
_STEPS = st.builds("firstlight step {} {} module x".format, _NUMBERS, _NUMBERS)
_TEXTS = st.text() | st.lists(_WORDS | _NUMBERS, max_size=6).map(" ".join) | st.sampled_from(BOOT)
_ANY = st.builds(Line, st.integers(0, 2**62), _TEXTS | _STEPS)


@given(st.lists(_ANY), st.booleans())
def test_no_log_is_too_odd(log: list[Line], packed: bool) -> None:
    reading = linux_log.read(log, HERTZ, packed=packed)
    assert all(span.start <= span.end for span in reading.spans)
    assert list(reading.spans) == sorted(reading.spans, key=lambda span: span.start)


@given(st.integers(0, len(BOOT)))
def test_half_a_log_tells_what_it_has(length: int) -> None:
    whole = {span.name for span in read(*BOOT).spans} | {
        "firmware and uncompress", "firmware and kernel"
    }  # fmt: skip
    assert {span.name for span in read(*BOOT[:length]).spans} <= whole
