"""The configuration and a function, as users write them."""

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from firstlight.agile import Config, Function
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
    config = load(tmp_path / "c")
    assert (config.name, config.network.range, config.network.host_services) == (
        "edge", "10.1.0.0/16", ("udp/53",)
    )  # fmt: skip
    assert (config.pools.sandbox.low, config.pools.sandbox.dry) == (1, "wait")
    assert config.socket == Path("/run/firstlight-agile/edge/socket")
    assert config.logs_directory == Path("/run/firstlight-agile/edge/logs")
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
