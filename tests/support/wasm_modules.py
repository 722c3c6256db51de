"""WebAssembly modules that the tests of the agile runtime run, as text, and what they answer."""

from typing import Any

W = "wasi_snapshot_preview1"
MODULE = """(module
  (memory (export "memory") 1)
  (global $count (mut i32) (i32.const 0))
  (func (export "next") (param i32) (result i32) local.get 0 i32.const 1 i32.add)
  (func (export "pair") (result i32 f64) i32.const 1 f64.const 2.5)
  (func (export "kinds") (param i32 i64 f32 f64) (result f64 f32 i64 i32)
    local.get 3 local.get 2 local.get 1 local.get 0)
  (func (export "nan") (result f64) f64.const nan)
  (func (export "count") (result i32)
    global.get $count i32.const 1 i32.add global.set $count global.get $count)
  (func (export "mark") (result i32)
    (i32.store (i32.const 100) (i32.add (i32.load (i32.const 100)) (i32.const 1)))
    (i32.load (i32.const 100)))
  (func (export "spin") (loop br 0))
  (func (export "slow") (result i32) (local i32)
    (loop local.get 0 i32.const 1 i32.add local.tee 0 i32.const 100000000 i32.lt_u br_if 0)
    local.get 0)
  (func (export "trap") unreachable)
  (func (export "outside") (result i32) (i32.load (i32.const 0x7fffffff)))
  (func $deep (export "deep") call $deep)
  (func (export "vector") (param v128))
  (func (export "grow") (result i32) i32.const 60000 memory.grow)
  (func (export "eat") (result i32)
    (loop (br_if 0 (i32.ne (i32.const -1) (memory.grow (i32.const 1)))))
    memory.size))"""
REACTOR = """(module
  (global $factor (mut i32) (i32.const 0))
  (func (export "_initialize") (global.set $factor (i32.const 7)))
  (func (export "scale") (param i32) (result i32)
    (i32.mul (local.get 0) (global.get $factor))))"""
TABLE = """(module
  (table $t 1 funcref)
  (func (export "grow") (param i32) (result i32)
    (table.grow $t (ref.null func) (local.get 0))))"""

_WRITE = f'(import "{W}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))'
_READ = f'(import "{W}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))'
_EXIT = f'(import "{W}" "proc_exit" (func $exit (param i32)))'
_OPEN = (
    f'(import "{W}" "path_open" (func $open '
    "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))"
)
_ONE = '(memory (export "memory") 1)'

COMMAND = f"""(module {_WRITE} {_READ} {_EXIT} {_ONE}
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 1000))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.store (i32.const 4) (i32.load (i32.const 8)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
    (if (i32.eq (i32.load8_u (i32.const 64)) (i32.const 0x22))
      (then (call $exit (i32.const 3))))))"""
"""Writes its standard input to both outputs; exits with 3 if that begins with a quotation mark."""

WORDS = f"""(module {_WRITE}
  (import "{W}" "args_get" (func $args (param i32 i32) (result i32)))
  (import "{W}" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "{W}" "environ_get" (func $environ (param i32 i32) (result i32)))
  (import "{W}" "environ_sizes_get" (func $environ_sizes (param i32 i32) (result i32)))
  {_ONE}
  (func $put (param i32 i32)
    (i32.store (i32.const 0) (local.get 0)) (i32.store (i32.const 4) (local.get 1))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start")
    (drop (call $sizes (i32.const 16) (i32.const 20)))
    (drop (call $args (i32.const 1000) (i32.const 2000)))
    (call $put (i32.const 2000) (i32.load (i32.const 20)))
    (drop (call $environ_sizes (i32.const 16) (i32.const 20)))
    (drop (call $environ (i32.const 3000) (i32.const 4000)))
    (call $put (i32.const 4000) (i32.load (i32.const 20)))))"""
"""Writes its arguments and its environment, each ending in NUL."""

FILES = f"""(module {_OPEN} {_WRITE}
  (import "{W}" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
  (import "{W}" "path_symlink" (func $link (param i32 i32 i32 i32 i32) (result i32)))
  {_ONE}
  (data (i32.const 16) "file") (data (i32.const 32) "../x") (data (i32.const 48) "/etc")
  (func $o (export "open") (param i32 i32) (result i32)
    (call $open (i32.const 3) (i32.const 0) (local.get 0) (i32.const 4) (local.get 1)
      (i64.const 0x1fffffff) (i64.const 0x1fffffff) (i32.const 0) (i32.const 8)))
  (func (export "escape") (result i32)
    (drop (call $link (i32.const 48) (i32.const 4) (i32.const 3) (i32.const 16) (i32.const 4)))
    (call $o (i32.const 16) (i32.const 2)))
  (func (export "deep") (param i32) (result i32) (local i32 i32)
    (local.set 2 (i32.const 3))
    (loop
      (drop (call $mkdir (local.get 2) (i32.const 16) (i32.const 4)))
      (if (call $open (local.get 2) (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 2)
            (i64.const 0x1fffffbd) (i64.const 0x1fffffbd) (i32.const 0) (i32.const 8))
        (then (return (local.get 1))))
      (local.set 2 (i32.load (i32.const 8)))
      (local.set 1 (i32.add (local.get 1) (i32.const 1)))
      (br_if 0 (i32.lt_u (local.get 1) (local.get 0))))
    (local.get 1))
  (func (export "fill") (result i32) (local i32)
    (drop (call $o (i32.const 16) (i32.const 1)))
    (i32.store (i32.const 0) (i32.const 0)) (i32.store (i32.const 4) (i32.const 65536))
    (loop (local.set 0 (i32.add (local.get 0) (i32.const 1)))
      (br_if 0 (i32.and
        (i32.eqz (call $write (i32.load (i32.const 8)) (i32.const 0) (i32.const 1) (i32.const 12)))
        (i32.lt_u (local.get 0) (i32.const 1000)))))
    local.get 0))"""
"""``open`` of a name at 16, 32 or 48 with flags (1: make it); 0, or WASI's errno."""

TALK = f"""(module {_WRITE} {_ONE}
  (func (export "talk") (param i32) (result i32)
    (i32.store (i32.const 4) (i32.const 60000))
    (loop (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if 0 (local.get 0)))
    i32.const 7)
  (func (export "wrong") (param i32 i32 i32) (result i32)
    (call $write (local.get 0) (local.get 1) (local.get 2) (i32.const 8))))"""

CALLS = f"""(module {_EXIT}
  (import "{W}" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "{W}" "random_get" (func $random (param i32 i32) (result i32)))
  (import "{W}" "sock_shutdown" (func $shutdown (param i32 i32) (result i32)))
  (import "{W}" "proc_raise" (func $raise (param i32) (result i32)))
  {_ONE}
  (func (export "exit") (param i32) (call $exit (local.get 0)))
  (func (export "random") (result i64)
    (drop (call $random (i32.const 0) (i32.const 8))) (i64.load (i32.const 0)))
  (func (export "nowhere") (result i32) (call $random (i32.const 0x7fffffff) (i32.const 8)))
  (func (export "shutdown") (result i32) (call $shutdown (i32.const 3) (i32.const 0)))
  (func (export "raise") (result i32) (call $raise (i32.const 9)))
  (func (export "sleep") (param i64) (result i32)
    (i32.store (i32.const 16) (i32.const 1)) (i64.store (i32.const 24) (local.get 0))
    (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))
  (func (export "poll") (param i32 i32 i32 i32) (result i32)
    (call $poll (local.get 0) (local.get 1) (local.get 2) (local.get 3))))"""


def functions(number: int) -> str:
    """A module of so many functions."""
    many = "(func (result i32) i32.const 1)" * number
    return f'(module {many} (func (export "run") (result i32) call 7))'


def large(number: int) -> str:
    """A module whose functions take the compiler some ms each."""
    body = "local.get 0 " + "i32.const 7 i32.mul local.get 0 i32.xor " * 150
    many = " ".join(f"(func (param i32) (result i32) {body})" for _ in range(number))
    return f'(module {many} (func (export "run")))'


def data(size: int) -> bytes:
    """A module with one segment of data of so many bytes, whose ``run`` returns the last."""

    def number(value: int) -> bytes:  # LEB128, unsigned
        parts = []
        while value > 0x7F:
            parts.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes((*parts, value))

    def section(kind: int, body: bytes) -> bytes:
        return bytes([kind]) + number(len(body)) + body

    code = b"\x00\x41\x00\x2d\x00" + number(size - 1) + b"\x0b"
    return b"".join((
        b"\0asm\1\0\0\0",
        section(1, b"\x01\x60\x00\x01\x7f"),
        section(3, b"\x01\x00"),
        section(5, b"\x01\x00" + number(size // 65536 + 1)),
        section(7, b"\x01\x03run\x00\x00"),
        section(10, b"\x01" + number(len(code)) + code),
        section(11, b"\x01\x00\x41\x00\x0b" + number(size) + b"\x07" * size),
    ))  # fmt: skip


ANSWERS: list[tuple[str | bytes, str, list[Any], object]] = [
    (MODULE, "next", [41], 42),
    (MODULE, "next", [2**31], -(2**31) + 1),
    (MODULE, "pair", [], [1, 2.5]),
    (MODULE, "kinds", [-1, 2**62 + 1, 0.5, 3], [3, 0.5, 2**62 + 1, -1]),
    (MODULE, "grow", [], -1),
    (MODULE, "eat", [], 128 * 16),
    (MODULE, "slow", [], 100_000_000),
    (REACTOR, "scale", [6], 42),
    (TABLE, "grow", [10], 1),
    (TABLE, "grow", [20_000_000], -1),
    (FILES, "open", [16, 0], 44),  # ENOENT
    (FILES, "open", [16, 1], 0),
    (FILES, "open", [32, 0], 63),  # EPERM: it leads out of /tmp
    (FILES, "open", [48, 0], 63),
    (FILES, "escape", [], 44),  # ENOENT: no link out was made
    (TALK, "talk", [1], 7),
    (TALK, "talk", [500], 7),
    (TALK, "wrong", [9, 0, 1], 8),  # EBADF
    (CALLS, "sleep", [1_000_000], 0),
    (CALLS, "poll", [0x7FFFFFFF, 0, 1, 0], 21),  # EFAULT
    (CALLS, "poll", [0, 65536, 1, 0], 21),
    (CALLS, "poll", [0, 0, 0x7FFFFFFF, 0], 21),
    (CALLS, "poll", [-1, -1, -1, -1], 21),
    (CALLS, "poll", [0, 0, 0, 0], 28),  # EINVAL: nothing to wait for
    (CALLS, "shutdown", [], 8),  # EBADF
    (CALLS, "raise", [], 58),  # ENOTSUP
    (data(40 << 20), "run", [], 7),
]
"""Module, handler, arguments and values, with 128 MiB of memory."""
