"""What a build is made of."""

from pathlib import Path

import pytest

from firstlight.errors import Unsupported
from firstlight.lab.backends import accel, qemu_build
from firstlight.lab.guests import clock

SAID = """      1234:\truntime linker statistics:
      1234:\t  total startup time in dynamic loader: 3000 cycles
      1234:\t            time needed for relocation: 2000 cycles (66.6%)
      1234:\t                 number of relocations: 20
      1234:\t        number of relative relocations: 300
      1234:\t           time needed to load objects: 500 cycles (16.6%)
      1234:\t           final number of relocations: 25
"""
FILES = """      1234:\tcalling init: /lib/libm.so.6
      1234:\tcalling init: /lib/libc.so.6
      1234:\tinitialize program: qemu
"""


def says(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> None:
    def output(*command: str, **environment: str) -> str:
        return answers[" ".join([*command, *environment.values()])]

    monkeypatch.setattr(qemu_build, "_output_of", output)


def test_the_linkers_count_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_build, "_unit_ns", lambda: 4.0)
    says(monkeypatch, {"qemu --version statistics": SAID, "qemu --version files": FILES})
    result = qemu_build.linking.__wrapped__("qemu")
    assert result == qemu_build.Linking(2, 25, 300, 12_000, 8_000, 2_000)


def test_the_times_are_of_one_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nine starts, each with its longest part elsewhere, whose medians would exceed a whole."""
    parts = [(900, 100), (100, 900), (800, 800)] * 3
    message = iter([SAID.replace("3000", str(sum(each))).replace("2000", str(each[0]))
                 .replace(" 500", f" {each[1]}") for each in parts] + [FILES])  # fmt: skip
    monkeypatch.setattr(qemu_build, "_unit_ns", lambda: 1.0)
    monkeypatch.setattr(qemu_build, "_output_of", lambda *_command, **_environment: next(message))
    result = qemu_build.linking.__wrapped__("qemu")
    assert result.relocation_ns + result.load_ns == result.total_ns


@pytest.mark.parametrize("divisor", [1, 10])
@pytest.mark.parametrize("delayed", [1, 4])
def test_the_linkers_cycle_is_a_tick_or_ten(
    divisor: int, delayed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "tsc_hertz", lambda: 2e9)
    count = 20_000_000 * 2 * delayed // divisor
    monkeypatch.setattr(qemu_build, "native", Path)
    monkeypatch.setattr(
        qemu_build, "_output_of", lambda *_command, **_environment: SAID.replace("2000", str(count))
    )
    assert qemu_build._unit_ns.__wrapped__() == 0.5 * divisor


def test_a_static_program_links_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, {"qemu --version statistics": "QEMU 9", "qemu --version files": "QEMU 9"})
    assert qemu_build.linking.__wrapped__("qemu") == qemu_build.Linking(0, 0, 0, 0, 0, 0)


def test_features_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_build, "listed", qemu_build.listed.__wrapped__)
    says(monkeypatch, {
        "qemu -machine help": "Supported machines are:\nmicrovm x\nnone y\n",
        "qemu -device help": 'Storage devices:\nname "a", bus PCI\n\nname "b"\n',
    })  # fmt: skip
    assert qemu_build.features("qemu") == qemu_build.Features(2, 2)


@pytest.mark.parametrize("content", [None, "neither a program nor a script"])
def test_what_cannot_run_is_reported(tmp_path: Path, content: str | None) -> None:
    program = tmp_path / "qemu"
    if content is not None:
        program.write_text(content)
        program.chmod(0o755)
    for ask in (qemu_build.features, qemu_build.linking, accel.choose):
        with pytest.raises(Unsupported, match=r"cannot run .*qemu"):
            ask(str(program))


def test_a_program_that_is_no_qemu_has_nothing() -> None:
    assert qemu_build.features("/bin/true") == qemu_build.Features(0, 0)
    with pytest.raises(Unsupported, match="built without TCG"):
        accel.choose("/bin/true")
