"""What vmrun wrote, read back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from firstlight.lab.backends.vm import Log, guest_log, read_log, under_vmrun
from firstlight.lab.guests import BootConfig, BootSpec, Line, Reading
from firstlight.model import EndPoint, Step

TEXT = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=40)


@dataclass(frozen=True)
class FakeGuest:
    """A guest whose every line is a span of 10 ns at the guest's time 5."""

    name: str = "fake"
    filesystem: str = "none"
    end_point: EndPoint = EndPoint.BOOTED

    def probe(self, config: BootConfig) -> None: ...

    def boot(self, config: BootConfig, directory: Path) -> BootSpec:
        return BootSpec()

    def read(self, config: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        spans = tuple(Step(line.text, 5, 15) for line in lines)
        return Reading("ticks", spans, tuple((line.stamp, 15) for line in lines))


@given(lines=st.lists(st.tuples(st.integers(0, 10**18 - 1), TEXT)))
def test_every_line_comes_back_as_the_guest_wrote_it(
    tmp_path: Path, lines: list[tuple[int, str]]
) -> None:
    file = tmp_path / "log"
    file.write_text("7=entered\n" + "".join(f"{stamp} {text}\n" for stamp, text in lines))
    assert read_log(file) == Log(tuple(Line(stamp, text) for stamp, text in lines), 7)


@given(st.binary(max_size=300))
def test_no_bytes_are_an_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "log").write_bytes(raw)
    guest_log(FakeGuest(), BootConfig(), tmp_path / "log", None)


def test_a_line_that_was_never_finished_is_the_last(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("1 one\n2~tw\n3 two\n4~th\n5~thr\n")
    assert read_log(tmp_path / "log").lines == (Line(1, "one"), Line(3, "two"), Line(5, "thr"))


def test_a_start_that_never_came_to_it_has_no_lines(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log") == Log((), None)


def test_a_guests_clock_is_laid_on_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("1000=entered\n1030 booted\n")
    log = guest_log(FakeGuest(), BootConfig(), tmp_path / "log", None)
    assert (log.clock, log.offset, log.uncertainty) == ("ticks", 1005, 10)
    assert log.console == "booted"


def test_guest_stamps_precede_hypervisor_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("1000=entered\n1030 booted\n1025=ended\n")
    log = guest_log(FakeGuest(), BootConfig(), tmp_path / "log", None)
    assert (log.offset, log.uncertainty) == (1002, 8), "from 1000 - 5 to 1025 - 15"


def test_counted_instructions_are_no_time(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("1000=entered\n1030 booted\n")
    log = guest_log(FakeGuest(), BootConfig(icount=True), tmp_path / "log", None)
    assert log.offset is None
    assert log.spans


def test_the_end_of_a_long_console_is_kept(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"1 line {number}\n" for number in range(9999)))
    log = guest_log(FakeGuest(), BootConfig(), tmp_path / "log", None)
    assert log.console.endswith("line 9998")
    assert len(log.console) == 4096


def test_vmrun_gets_the_end_point(tmp_path: Path) -> None:
    line = under_vmrun(BootSpec(exit_port=0x3F0, exit_code=123, last="^bye$"), tmp_path, "--qmp")
    assert line[1:] == ("--log", str(tmp_path), "--exit", "247", "--last", "^bye$", "--qmp", "--")
