"""The configuration and a function, as users write them."""

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from firstlight.agile import Config, Function, config, journal
from firstlight.agile.config import load
from firstlight.errors import Failed


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("")
    assert load(tmp_path / "c") == Config()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "c").write_text(
        'name = "edge"\n[network]\nrange = "10.1.0.0/16"\nhost_services = ["udp/53"]\n'
        '[pools.sandbox]\nlow = 1\nhigh = 9\ndry = "wait"\n'
    )
    loaded = load(tmp_path / "c")
    assert (loaded.name, loaded.network.range, loaded.network.host_services) == (
        "edge", "10.1.0.0/16", ("udp/53",)
    )  # fmt: skip
    assert (loaded.pools.sandbox.low, loaded.pools.sandbox.dry) == (1, "wait")
    assert loaded.socket == Path("/run/firstlight-agile/edge/socket")
    assert loaded.logs_directory == Path("/run/firstlight-agile/edge/logs")
    (tmp_path / "c").write_text('[logs]\ndirectory = "/var/log/f"\n')
    assert load(tmp_path / "c").logs_directory == Path("/var/log/f")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = 'Edge!'", "1 to 8 letters"),
        ("nam = 'edge'", "there is no key nam$"),
        ("[pools.network]\nhihg = 2", r"there is no key pools\.network\.hihg$"),
        ("[http]\nlisten = '127.0.0.1:1'\nport = 1", r"there is no key http\.port$"),
        ("[pools.network]\nlow = 'two'", r"pools\.network\.low: Expected int, got str$"),
        ("[pools.network]\nlow = 9\nhigh = 2", "0 <= low <= high"),
        ("[pools.network]\ndry = 'maybe'", "Invalid enum value 'maybe'"),
        ("[pools.network]\nrate = 0", "rate above 0"),
        ("[network]\nrange = '10.0.0.0/30'", "from /16 to /29"),
        ("[network]\nrange = '10.0.0.0/8'", "from /16 to /29"),
        ("[network]\nrange = 'all'", "Expected 4 octets"),
        ("[network]\nhost_services = ['dns']", "not of the form tcp/53"),
        ("[pods]\nrange = '10.0.0.0/8'", r"pods\.range 10\.0\.0\.0/8 is not from /"),
        ("[events]\nretry_seconds = -1", r"retry_seconds=-1\.0 is below 0"),
        ("[events]\noldest_seconds = 0", "oldest_seconds=0: every event"),
        ("[events]\nqueue_bytes = 1", r"queue_bytes=1 is not from 4194304 \(4 MiB\)"),
        ("name = ", "Invalid value"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "c").write_text(text)
    with pytest.raises(Failed, match=expected):
        load(tmp_path / "c")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("[pools.network]\nhihg = 2", "did you mean pools.network.high?"),
        ("[pool.network]\nhigh = 2", "did you mean pools?"),
        (
            "[events]\nxyz = 2",
            "known: retries, retry_seconds, oldest_seconds, queue_bytes, dead_bytes",
        ),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(
    tmp_path: Path, text: str, remedy: str
) -> None:
    (tmp_path / "c").write_text(text)
    with pytest.raises(Failed) as error:
        load(tmp_path / "c")
    assert error.value.hint == remedy


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="No such file"):
        load(tmp_path / "none")


def test_a_function_is_checked_before_anything_is_made() -> None:
    Function(rootfs="/", command=("/bin/true",)).check()
    with pytest.raises(Failed, match="70000 is not a valid port"):
        Function(rootfs="/", command=("/bin/true",), ports={70000: 1}).check()
    with pytest.raises(Failed, match="cannot publish"):
        Function(rootfs="/", command=("/bin/true",), ports={80: 1}, network="none").check()
    with pytest.raises(Failed, match="handler is 'x'"):
        Function(rootfs="/", kind="python", handler="x").check()


def test_example_configuration_matches_defaults() -> None:
    path = Path(__file__).parents[3] / "conf/agile/firstlight.toml"
    example, default = load(path), Config()
    pools = msgspec.structs.replace(example.pools, sandbox=default.pools.sandbox)
    assert msgspec.structs.replace(example, pools=pools) == default


def test_the_example_documents_every_key() -> None:
    text = (Path(__file__).parents[3] / "conf/agile/firstlight.toml").read_text()
    written = tomllib.loads(re.sub(r"(?m)^# (?=\[|\w+ = )", "", text))

    def compare(table: dict[str, Any], record: type[msgspec.Struct]) -> None:
        fields = {each.name: each.type for each in msgspec.structs.fields(record)}
        assert table.keys() == fields.keys()
        for name, kind in fields.items():
            for below in (*get_args(kind), kind):
                if isinstance(below, type) and issubclass(below, msgspec.Struct):
                    compare(table[name], below)

    compare(written, Config)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"\xff\xfe name")
    with pytest.raises(Failed, match=r"the configuration .* is invalid") as caught:
        load(tmp_path / "c")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("left", "others", "gone"),
    [("run/one", (), "run"), ("run/one", ("run/two",), "run/one"), ("own/one", (), "own/one")],
)
def test_empty_directories_are_removed_up_to_the_default_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, others: tuple[str, ...], gone: str
) -> None:
    monkeypatch.setattr(config, "_STATE", str(tmp_path / "run"))
    for name in (left, *others):
        (tmp_path / name).mkdir(parents=True)
    config.remove_directory(tmp_path / left)
    assert not (tmp_path / gone).exists()
    assert (tmp_path / gone).parent.is_dir()
    assert all((tmp_path / name).is_dir() for name in others)


def test_a_directory_that_another_runtime_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(directory: Path) -> None:
        directory.rmdir()
        directory.lstat()

    monkeypatch.setattr(journal, "_check_own", removed)
    opened = journal.Journal(tmp_path / "run/one")
    assert not opened._lock(last=False)
    with pytest.raises(Failed, match=r"cannot open the journal .*: No such file"):
        opened._lock(last=True)


def test_a_configuration_without_end_is_refused() -> None:
    with pytest.raises(Failed, match="/dev/zero: it is not a regular file"):
        load(Path("/dev/zero"))
