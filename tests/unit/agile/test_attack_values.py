"""Values that are out of range, not numbers, or not text: each is refused by its name."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from firstlight.agile import Config, Function, protocol
from firstlight.agile.config import load
from firstlight.agile.function import SECRETS, Volume
from firstlight.agile.journal import Journal
from firstlight.agile.python import interpreter
from firstlight.errors import Failed, FirstlightError

UNCHANGED = 2**32 - 1
ODD = [
    ({"uid": UNCHANGED}, "cannot be a uid"),
    ({"gid": UNCHANGED}, "cannot be a gid"),
    ({"uid": -1}, "cannot be a uid"),
    ({"gid": -1}, "cannot be a gid"),
    ({"uid": 2**31 - 1}, "cannot be a uid"),
    ({"gid": 2**64 - 1}, "cannot be a gid"),
    ({"uid": 2**32}, "cannot be a uid"),  # the host's root, of 32 bits
    ({"uid": 0}, "as root"),
    ({"gid": 0}, "as root"),
    ({"memory": 2**63}, "memory limit is too large"),
    ({"memory": 0}, "memory limit is too small"),
    ({"memory": -1}, "memory limit is too small"),
    ({"scratch": 0}, "size of /tmp"),  # tmpfs takes it for no limit
    ({"scratch": -1}, "size of /tmp"),
    ({"scratch": 2**63}, "size of /tmp"),
    ({"cpus": float("nan")}, "CPU limit"),
    ({"cpus": float("inf")}, "CPU limit"),
    ({"cpus": -1.0}, "CPU limit"),
    ({"pids": 0}, "pids=0"),
    ({"pids": -1}, "pids=-1"),
    ({"pids": 2**64}, "out of range"),
    ({"files": -1}, "files=-1"),
    ({"files": 2**32}, "out of range"),
    ({"timeout": float("nan")}, "timeout"),
    ({"timeout": float("inf")}, "timeout"),
    ({"timeout": -1.0}, "timeout"),
    ({"ports": {0: 80}}, "not a valid port"),
    ({"ports": {80: 65536}}, "not a valid port"),
    ({"ports": {-1: 80}}, "not a valid port"),
    ({"rootfs": ""}, "not an absolute path"),
    ({"rootfs": "srv"}, "not an absolute path"),
    ({"rootfs": "/\ud800"}, "cannot be encoded"),
    ({"rootfs": "/a\0b"}, "with a NUL"),
    ({"command": ()}, "has no command"),
    ({"command": ("",)}, "has no command"),
    ({"command": ("/a", "\ud800")}, "cannot be encoded"),
    ({"command": ("/a", "b\0c")}, "with a NUL"),
    ({"env": {"": "x"}}, "cannot name a variable"),
    ({"env": {"A=B": "x"}}, "cannot name a variable"),
    ({"env": {"A": "\ud800"}}, "cannot be encoded"),
    ({"env": {"A": "b\0C=d"}}, "with a NUL"),
    ({"directory": "/\0"}, "with a NUL"),
    ({"network": "host"}, "host"),
    ({"volumes": (Volume("/a", "in"),)}, "by two plain paths"),
    ({"volumes": (Volume("/a", "//in"),)}, "by two plain paths"),
    ({"volumes": (Volume("/a", "//"),)}, "by two plain paths"),
    ({"volumes": (Volume("/a", "/in"), Volume("/b", "/in"))}, "two things .* at /in"),
    ({"volumes": (Volume("/a", SECRETS),), "secrets": {"a": "/b"}}, "two things .* at /run/secr"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), ODD, ids=lambda each: repr(each)[:40])
def test_what_no_function_may_have_is_refused_by_name(
    fields: dict[str, object], expected: str
) -> None:
    usual: dict[str, object] = {"rootfs": "/", "command": ("/bin/true",)}
    with pytest.raises(FirstlightError, match=expected):
        Function(**(usual | fields)).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", [float("nan"), [float("inf")], {"a": float("-inf")}, "\ud800", {1, 2}, b"x"], ids=repr
)
def test_an_event_that_json_has_no_form_of_does_not_become_null(value: object) -> None:
    with pytest.raises(Failed, match="the event is not JSON"):
        protocol.event(value)


@pytest.mark.parametrize(
    ("text", "is_json"),
    [
        (b"1e400", True), (b'"\\ud83d"', True), (b'{"a":\n[1]}', True), (b"9" * 5000, True),
        (b"NaN", False), (b"{", False), (b"", False), (b"'a'", False), (b'"\xff"', False),
        (b"[" * 100_000, False),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_event_text_is_taken_as_it_is_if_it_is_json(text: bytes, is_json: bool) -> None:
    with nullcontext() if is_json else pytest.raises(Failed, match="the event is not JSON"):
        assert protocol.event(msgspec.Raw(text)) == text


def test_an_event_that_contains_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(Failed, match="the event is not JSON"):
        protocol.event(endless)


@pytest.mark.parametrize(
    "text",
    [
        '{"instances": -1}', '{"instances": 0}', '{"state": ""}', '{"state": "run"}',
        '{"name": ""}', '{"name": "a/b"}', '{"cgroup": "../x"}',
        '{"identities": {"first": -1}}', '{"identities": {"first": 0}}',
        '{"identities": {"first": 4294967295}}', '{"identities": {"first": 2147483000}}',
        '{"identities": {"each": "none"}}', '{"pools": {"network": {"low": -1}}}',
        '{"pools": {"network": {"rate": 0}}}', '{"functions": {"most": 0}}',
        '{"functions": {"idle_seconds": -1}}', '{"network": {"connections": 0}}',
        '{"pools": {"network": {"low": 0, "high": 1000000000}}}',
    ],
)  # fmt: skip
def test_a_configuration_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Config)


@pytest.mark.parametrize(
    "text", ["[pools.network]\nrate = nan", "[pools.cgroup]\nrate = inf",
             "[functions]\nidle_seconds = nan", "[functions]\nlook_seconds = inf"],
)  # fmt: skip
def test_a_configuration_with_what_is_no_number_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c").write_text(text)
    with pytest.raises(Failed, match="is invalid"):
        load(tmp_path / "c")


CLI = [
    (["start", "--port", "²:80", "--", "/bin/true"], "--port '²:80' is malformed"),
    (["start", "--port", "1" * 5000 + ":80", "--", "/bin/true"], "is malformed"),
    (["start", "--memory", "²M", "--", "/bin/true"], "is not a size"),
    (["start", "--memory", "9" * 5000, "--", "/bin/true"], "is not a size"),
    (["start", "--memory", "-1", "--", "/bin/true"], "is not a size"),
    (["start", "--cpus", "nan", "--", "/bin/true"], "CPU limit nan"),
    (["start", "--env", "=x", "--", "/bin/echo"], "cannot name a variable"),
    (["invoke", "--handler", "a:b", "[" * 20000], "the event is not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), CLI, ids=lambda each: repr(each)[:40])
def test_the_command_line_refuses_without_a_traceback(words: list[str], expected: str) -> None:
    program = str(Path(sys.executable).with_name("firstlight"))
    argv = [program, "agile", words[0], "--rootfs", "/", *words[1:]]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: who owns a journal decides")
@pytest.mark.parametrize("planted", ["owner", "mode", "link", "directory", "above", "fifo"])
def test_a_journal_that_another_could_have_planted_is_refused(tmp_path: Path, planted: str) -> None:
    directory = tmp_path / "state/t1"
    directory.mkdir(parents=True)
    journal, victim = directory / "journal", tmp_path / "victim"
    victim.write_text("kept")
    match planted:
        case "link":
            journal.symlink_to(victim)
        case "fifo":
            os.mkfifo(journal, 0o600)
        case "directory":
            directory.chmod(0o777)
        case "above":
            os.chown(tmp_path, 1000, 1000)
        case _:
            journal.write_text('["cgroup", "/sys/fs/cgroup"]\n')
            os.chown(journal, 1000 if planted == "owner" else 0, 0)
            journal.chmod(0o666 if planted == "mode" else 0o600)
    with pytest.raises(Failed, match=r"other users|cannot open the journal"):
        Journal(directory).open()
    assert victim.read_text() == "kept"


def test_a_child_of_an_import_may_have_any_bytes_as_its_name() -> None:
    own = Path("/proc/self/comm")
    name = own.read_bytes()
    try:
        own.write_bytes(b"\xff\xfe")
        assert interpreter._name(os.getpid()) == "\N{REPLACEMENT CHARACTER}" * 2
    finally:
        own.write_bytes(name)
