"""WebAssembly functions: what they answer, and what stops them."""

from pathlib import Path

import pytest
from tests.support.agile_host import on_host

from firstlight.agile import Config, Function, Runtime
from firstlight.errors import Failed

wasmtime = pytest.importorskip("wasmtime", reason="the extra 'wasm' is not installed")

MODULE = """(module
  (memory (export "memory") 1)
  (global $count (mut i32) (i32.const 0))
  (func (export "next") (param i32) (result i32) local.get 0 i32.const 1 i32.add)
  (func (export "pair") (result i32 f64) i32.const 1 f64.const 2.5)
  (func (export "count") (result i32)
    global.get $count i32.const 1 i32.add global.set $count global.get $count)
  (func (export "spin") (loop br 0))
  (func (export "slow") (result i32) (local i32)
    (loop local.get 0 i32.const 1 i32.add local.tee 0 i32.const 100000000 i32.lt_u br_if 0)
    local.get 0)
  (func (export "trap") unreachable)
  (func $deep (export "deep") call $deep)
  (func (export "grow") (result i32) i32.const 60000 memory.grow))"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "f.wasm"
    path.write_bytes(wasmtime.wat2wasm(MODULE))
    return path


@pytest.mark.parametrize(
    ("handler", "event", "answer"),
    [
        ("next", [41], b"42"),
        ("pair", [], b"[1,2.5]"),
        ("grow", [], b"-1"),
        ("slow", [], b"100000000"),
    ],
)
def test_it_answers(module: Path, handler: str, event: list[int], answer: bytes) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t6")) as runtime:
            function = Function(rootfs=str(module), kind="wasm", handler=handler)
            assert bytes((await runtime.invoke(function, event)).value) == answer

    on_host(main)


def test_an_instance_starts_anew_each_time(module: Path) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t6")) as runtime:
            function = Function(rootfs=str(module), kind="wasm", handler="count")
            events: tuple[list[object] | None, ...] = ([], [], None)
            said = [bytes((await runtime.invoke(function, event)).value) for event in events]
            assert said == [b"1"] * 3

    on_host(main)


@pytest.mark.parametrize(
    ("handler", "event", "said"),
    [
        ("spin", [], "did not answer in 0.2 s"),
        ("trap", [], "trapped: .*unreachable"),
        ("deep", [], "trapped: .*stack exhausted"),
        ("memory", [], "is not a function"),
        ("missing", [], "exports no 'missing'"),
        ("next", [], "too few parameters"),
        ("next", ["x"], "takes numbers"),
    ],
)
def test_what_fails_says_so_and_the_next_is_served(
    module: Path, handler: str, event: list[object], said: str
) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t6")) as runtime:
            timeout = 0.2 if handler == "spin" else 60.0
            bad = Function(rootfs=str(module), kind="wasm", handler=handler, timeout=timeout)
            with pytest.raises(Failed, match=said):
                await runtime.invoke(bad, event)
            good = Function(rootfs=str(module), kind="wasm", handler="next")
            assert bytes((await runtime.invoke(good, [1])).value) == b"2"

    on_host(main)


def test_a_module_that_wants_imports_or_is_none_is_refused(tmp_path: Path) -> None:
    wanting = '(module (import "host" "f" (func)) (func (export "run")))'
    (tmp_path / "wanting").write_bytes(wasmtime.wat2wasm(wanting))
    (tmp_path / "none").write_bytes(b"no module")

    async def main() -> None:
        async with Runtime(Config(name="t6")) as runtime:
            for name, said in (("wanting", "imports host.f"), ("none", "not a WebAssembly")):
                function = Function(rootfs=str(tmp_path / name), kind="wasm", handler="run")
                with pytest.raises(Failed, match=said):
                    await runtime.invoke(function, [])

    on_host(main)
