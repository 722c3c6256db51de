"""The CNI plugin ``firstlight``: to every malformed call it answers with an error object."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.laboratory import sanitized

CONF: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "firstlight", "seconds": 1}
CALL = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "a", "CNI_IFNAME": "eth0", "CNI_NETNS": ""}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, built so that its first wrong access ends it."""
    sources = ("plugin", "plugin_conf", "plugin_ask", "plugin_namespace", "plugin_sysctls")
    return sanitized(
        tmp_path_factory.mktemp("plugin"), *(f"cni/{name}.c" for name in sources),
        "common/netlink.c", "common/process.c", "common/socket.c", "common/error.c",
    )  # fmt: skip


def call(plugin: Path, conf: object, **env: str | None) -> dict[str, Any]:
    """What it answers; ``conf`` may be the text itself."""
    variables = {name: value for name, value in {**CALL, **env}.items() if value is not None}
    text = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    done = subprocess.run(
        [plugin], input=text, capture_output=True, env={**variables, "PATH": os.defpath}, timeout=60
    )
    assert done.returncode in (0, 1), done.stderr.decode()
    assert not done.stderr, done.stderr.decode()
    answer = json.loads(done.stdout) if done.stdout else {}
    assert (done.returncode == 1) == ("code" in answer)
    if done.returncode:
        assert isinstance(answer["code"], int)
        assert answer["cniVersion"] in ("0.4.0", "1.0.0", "1.1.0")
        assert answer["msg"].strip()
    return dict(answer)


def test_the_version_needs_nothing_else(plugin: Path) -> None:
    answer = call(plugin, {"cniVersion": "1.0.0"}, CNI_COMMAND="VERSION", CNI_CONTAINERID=None)
    assert answer == {
        "cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]
    }  # fmt: skip
    assert call(plugin, {"cniVersion": "9.9"}, CNI_COMMAND="VERSION")["supportedVersions"]
    assert call(plugin, {}, CNI_COMMAND="VERSION")["cniVersion"] == "1.1.0"
    assert call(plugin, b"{", CNI_COMMAND="VERSION")["code"] == 6


@pytest.mark.parametrize(
    "conf",
    [b"", b"null", b"[]", b"{", b"{}}", b'{"cniVersion":"1.1.0"}\0{}', b"\xff", b"[" * 100_000,
     b'"text"', b"7"],
    ids=lambda text: str(text[:8]),
)  # fmt: skip
def test_what_is_no_object_is_refused(plugin: Path, conf: bytes) -> None:
    assert call(plugin, conf)["code"] == 6


def test_what_is_too_long_is_refused(plugin: Path) -> None:
    assert call(plugin, b'{"a":"' + b"x" * (2 << 20) + b'"}')["code"] == 5


@pytest.mark.parametrize("version", ["", "0.1.0", "0.3.1", "1.2.0", "2.0.0", "1.1", "1.1.0 ", None])
def test_another_version_is_refused(plugin: Path, version: str | None) -> None:
    conf = CONF | {"cniVersion": version}
    if version is None:
        del conf["cniVersion"]
    assert call(plugin, conf)["code"] == 1


ODD = {"number": 7, "text": "host-local", "list": ["a"], "empty list": [], "true": True}
WRONG = {
    "cniVersion": [1, [], {}],
    "name": [1, True, [], {}, "", "-a", "a/b", "x" * 128, "n\u00e9t", "a\nb"],
    "socket": [1, True, [], {}, "", "relative", "/" + "x" * 107],
    "namespace": [1, True, [], {}, "", "swap", "Auto"],
    "seconds": ["1", True, [1], {}, 0, -1, 1e9],
    "dns": [*ODD.values(), {"nameservers": "192.0.2.1"}, {"search": [1]}, {"options": {}},
            {"domain": ["a"]}],
    "prevResult": [*ODD.values()],
    "ipam": [*ODD.values(), {"type": "host-local"}, {"ranges": []}],
    "runtimeConfig": [*ODD.values()],
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_key_is_named(plugin: Path, key: str) -> None:
    for value in WRONG[key]:
        answer = call(plugin, CONF | {key: value})
        assert answer.get("code") == 7, value
        assert key in answer["msg"]


def test_what_asks_for_nothing_and_what_others_read_is_taken(plugin: Path) -> None:
    """A second key of one name is not read, as in cJSON; ADD ends at the namespace, the last."""
    empty: tuple[Any, ...] = (None, "", [], {})
    nothing: list[dict[str, Any]] = [
        {"ipam": {}}, {"runtimeConfig": {}},
        *({"runtimeConfig": {wish: each}} for wish in ("ips", "mac") for each in empty),
        {"dns": {}}, {"dns": {"nameservers": [], "domain": "", "other": 1, "search": None}},
        {"capabilities": {"portMappings": True}}, {"args": 1}, {"type": []}, {"\u540d": "\u540d"},
        {"disableCheck": "x"}, {"x" * 5000: {"y": [[{}]]}},
    ]  # fmt: skip
    for more in nothing:
        answer = call(plugin, CONF | more, CNI_COMMAND="ADD", CNI_NETNS="/nowhere")
        assert answer["code"] == 4, more
        assert call(plugin, CONF | more) == {}
    twice = json.dumps(CONF)[:-1] + ', "name": "/", "cniVersion": 3}'
    assert call(plugin, twice.encode()) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("CNI_COMMAND", None), ("CNI_COMMAND", "add"), ("CNI_COMMAND", ""),
     ("CNI_CONTAINERID", None), ("CNI_CONTAINERID", ""), ("CNI_CONTAINERID", "../a"),
     ("CNI_CONTAINERID", "x" * 256), ("CNI_IFNAME", None), ("CNI_IFNAME", ""),
     ("CNI_IFNAME", "."), ("CNI_IFNAME", ".."), ("CNI_IFNAME", "a/b"), ("CNI_IFNAME", "a:b"),
     ("CNI_IFNAME", "a b"), ("CNI_IFNAME", "x" * 16), ("CNI_IFNAME", "eth%d"),
     ("CNI_ARGS", "A"), ("CNI_ARGS", "=b"),
     ("CNI_ARGS", "K8S_POD_NAME=" + "x" * 256)],
)  # fmt: skip
def test_a_wrong_variable_is_named(plugin: Path, name: str, value: str | None) -> None:
    answer = call(plugin, CONF, **{name: value})
    assert answer["code"] == 4
    assert name in answer["msg"] or "K8S_POD_NAME" in answer["msg"]


@pytest.mark.parametrize(
    "odd",
    [{"CNI_IFNAME": "x" * 15}, {"CNI_IFNAME": "\u00e9th0"}, {"CNI_CONTAINERID": "x" * 255},
     {"CNI_ARGS": ""}, {"CNI_ARGS": ";;A=;B==;IgnoreUnknown=1;"}, {"CNI_PATH": None},
     {"CNI_ARGS": "K8S_POD_NAME=\u540d;K8S_POD_NAMESPACE=;K8S_POD_NAME=b"}],
)  # fmt: skip
def test_an_odd_variable_is_taken(plugin: Path, odd: dict[str, str | None]) -> None:
    assert call(plugin, CONF, **odd) == {}


@pytest.mark.parametrize("namespace", [None, "", "/nowhere", "/dev/null", "/", "/proc/self/ns/net",
                                       "/proc/self/ns/mnt"])  # fmt: skip
def test_a_wrong_namespace_is_named(plugin: Path, namespace: str | None) -> None:
    for command in ("ADD", "CHECK"):
        conf = CONF | ({"prevResult": {}} if command == "CHECK" else {})
        answer = call(plugin, conf, CNI_COMMAND=command, CNI_NETNS=namespace)
        assert answer["code"] == 4
        assert "CNI_NETNS" in answer["msg"]


def test_what_is_null_is_as_good_as_absent(plugin: Path) -> None:
    keys = ("socket", "namespace", "seconds", "dns", "prevResult", "ipam", "runtimeConfig")
    conf = CONF | dict.fromkeys(keys) | {"cni.dev/valid-attachments": None}
    assert call(plugin, conf | {"ipam": {}}) == {}
    for command in ("ADD", "CHECK"):
        answer = call(plugin, conf, CNI_COMMAND=command, CNI_NETNS="/nowhere")
        assert "CNI_NETNS" in answer["msg"] or "CHECK needs prevResult" in answer["msg"]
    assert "name" in call(plugin, conf | {"name": None})["msg"]
    assert call(plugin, conf | {"cniVersion": None})["code"] == 1


@pytest.mark.parametrize("wish", [{"ips": ["10.0.0.5/24"]}, {"mac": "02:00:00:00:00:01"}])
def test_a_wish_for_an_address_is_refused(plugin: Path, wish: dict[str, Any]) -> None:
    conf = CONF | {"runtimeConfig": {"portMappings": [], **wish}}
    answer = call(plugin, conf, CNI_COMMAND="ADD", CNI_NETNS="/nowhere")
    assert answer["code"] == 7
    assert f"runtimeConfig.{next(iter(wish))}" in answer["msg"]
    assert call(plugin, conf) == {}


def test_it_is_the_first_of_its_list(plugin: Path) -> None:
    answer = call(plugin, CONF | {"prevResult": {}}, CNI_COMMAND="ADD", CNI_NETNS="/x")
    assert answer["code"] == 7
    assert "first" in answer["msg"]


@pytest.mark.parametrize(
    "wrong",
    [7, [{}], ["a"], [{"containerID": "a"}], [{"containerID": 1, "ifname": "eth0"}],
     [{"containerID": "x" * 256, "ifname": "eth0"}]],
)  # fmt: skip
def test_attachments_are_checked(plugin: Path, wrong: object) -> None:
    conf = CONF | {"cni.dev/valid-attachments": wrong}
    assert call(plugin, conf, CNI_COMMAND="GC")["code"] == 7


def test_without_an_agent_delete_succeeds_and_status_fails(plugin: Path) -> None:
    conf = CONF | {"socket": "/nowhere/socket"}
    assert call(plugin, conf) == {}
    assert call(plugin, conf, CNI_COMMAND="STATUS")["code"] == 50
    assert call(plugin, conf | {"seconds": 0.05}, CNI_COMMAND="GC")["code"] == 11


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from([*CONF, "dns", "socket", "prevResult", "namespace", "runtimeConfig",
                         "cni.dev/valid-attachments"]),
        JSON,
    ),
    st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]),
)  # fmt: skip
def test_any_configuration_is_answered(
    plugin: Path, changes: dict[str, object], command: str
) -> None:
    conf = CONF | {"socket": "/nowhere/socket", "seconds": 0.01} | changes
    text = json.dumps(conf)  # NaN, too, which is no JSON
    call(plugin, text.encode(errors="surrogatepass"), CNI_COMMAND=command, CNI_NETNS="/nowhere")


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_any_bytes_are_answered(plugin: Path, data: bytes) -> None:
    call(plugin, data)
