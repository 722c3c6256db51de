"""What plugins are given, and how what they answer is taken: by the runner of production."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.cni_bench import Bench
from tests.support.laboratory import sanitized

from firstlight.errors import Unsupported
from firstlight.lab.cluster.running import handlers
from firstlight.lab.cni.attachment import Attachment, BadAttachment
from firstlight.lab.cni.known import BUILT
from firstlight.lab.cni.plugin import find
from firstlight.native import native

POD = Attachment("pod1", "/run/netns/pod1", "eth0", "K8S_POD_NAME=a;IgnoreUnknown=1")


def test_add_chains_the_results_in_order(bench: Bench) -> None:
    assert not bench.run("up", bench.network("one", "two", "three"), POD)
    assert bench.result == {"cniVersion": "1.0.0", "dns": {"search": ["one", "two", "three"]}}
    first, second, third = bench.calls
    assert "prevResult" not in first["stdin"]
    assert second["stdin"]["prevResult"] == {"cniVersion": "1.0.0", "dns": {"search": ["one"]}}
    assert third["stdin"]["prevResult"]["dns"]["search"] == ["one", "two"]


def test_every_plugin_gets_the_same_environment(bench: Bench) -> None:
    bench.run("up", bench.network("one", "two"), POD)
    assert [call["env"] for call in bench.calls] == 2 * [
        {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "pod1",
            "CNI_NETNS": "/run/netns/pod1",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "K8S_POD_NAME=a;IgnoreUnknown=1",
            "CNI_PATH": str(bench.directory / "bin"),
        }
    ]


def test_delete_runs_backwards_with_kept_result(bench: Bench) -> None:
    network = bench.network("one", "two")
    bench.run("up", network, POD)
    result = bench.result
    assert not bench.run("del", network, POD)
    assert bench.order[2:] == [("two", "DEL"), ("one", "DEL")]
    assert [call["stdin"]["prevResult"] for call in bench.calls[2:]] == [result, result]
    assert bench.result is None
    assert not bench.run("del", network, POD)
    assert "prevResult" not in bench.calls[-1]["stdin"]


def test_a_burst_adds_all_before_it_deletes_any(bench: Bench) -> None:
    assert not bench.run("burst", bench.network("one"), POD)
    file = bench.directory / "request"
    done = subprocess.run(
        [native("cnirun"), "burst", file, file], capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    commands = [command for _, command in bench.order]
    assert commands == ["ADD", "DEL", "ADD", "ADD", "DEL", "DEL"]
    words = [line.split() for line in done.stdout.splitlines()]
    assert [line[:3] for line in words] == [["firstlight", "step", "add"]] * 2
    assert all(int(begin) < int(end) for *_, begin, end in words)


def test_a_burst_deletes_what_it_could_not_add(bench: Bench) -> None:
    script(bench.directory / "bin" / "two", "cat > /dev/null; exit 7")
    assert "exit status 7" in bench.run("burst", bench.network("one", "two"), POD)
    assert bench.order == [("one", "ADD"), ("one", "DEL")]


def test_a_failed_delete_stops_and_keeps_the_result(bench: Bench) -> None:
    network = bench.network("one", {"type": "two", "does": {"DEL": "fail"}})
    bench.run("up", network, POD)
    result = bench.result
    done = bench.run("del", network, POD)
    assert done == "plugin two DEL: try again (code 11): lease is busy"
    assert bench.order[2:] == [("two", "DEL")]
    assert bench.result == result


def test_failed_add_is_undone_and_reported(bench: Bench) -> None:
    network = bench.network("one", {"type": "two", "does": {"ADD": "fail", "DEL": "fail"}}, "three")
    done = bench.run("up", network, POD)
    assert done == "plugin two ADD: try again (code 11): lease is busy"
    assert bench.order[2:] == [("three", "DEL"), ("two", "DEL"), ("one", "DEL")]
    assert bench.result is None


@pytest.mark.parametrize(
    ("how", "fact"),
    [
        ("crash", "killed by signal 6"),
        ("garble", "printed what is not a JSON object: Success! { not json"),
        ("old", "its result is of CNI version 0.2.0 and not 1.0.0"),
        ("silent", "printed no result"),
    ],
)
def test_a_plugin_that_misbehaves_is_named_and_undone(bench: Bench, how: str, fact: str) -> None:
    network = bench.network({"type": "one", "does": {"ADD": how}})
    assert bench.run("up", network, POD) == f"plugin one ADD: {fact}"
    assert bench.order == [("one", "ADD"), ("one", "DEL")]


def test_delete_before_0_4_0_has_no_previous_result(bench: Bench) -> None:
    network = bench.network("one", cniVersion="0.3.1")
    bench.run("up", network, POD)
    bench.run("del", network, POD)
    assert "prevResult" not in bench.calls[1]["stdin"]


@pytest.mark.parametrize(
    ("printed", "fact"),
    [
        ('{"cniVersion": "1.0.0", "mtu": 1-+e}', "printed what is not a JSON object"),
        ('{"cniVersion": "1.0.0"} {}', "printed what is not a JSON object"),
        ("[]", "printed what is not a JSON object"),
        ('{"cniVersion": 1}', "its result is of CNI version that is no string and not 1.0.0"),
    ],
)
def test_a_result_is_read_as_json_strictly(bench: Bench, printed: str, fact: str) -> None:
    script(bench.directory / "bin" / "one", f"cat > /dev/null; printf '%s' '{printed}'")
    done = bench.run("up", bench.network("one"), POD)
    assert done.startswith(f"plugin one ADD: {fact}")


def test_version_missing_from_old_plugins_is_added(bench: Bench) -> None:
    script(bench.directory / "bin" / "one", "cat > /dev/null; echo '{\"ips\": []}'")
    assert not bench.run("up", bench.network("one"), POD)
    assert bench.result == {"ips": [], "cniVersion": "1.0.0"}


@pytest.mark.parametrize("text", ['a "quoted" word', "back\\slash", "caf\u00e9", "\U0001f40e"])
def test_an_errors_text_is_reported_unchanged(bench: Bench, text: str) -> None:
    error = json.dumps({"cniVersion": "1.0.0", "code": 7, "msg": text})  # escapes what is not ASCII
    (bench.directory / "error").write_text(error)
    script(bench.directory / "bin" / "one", f"cat {bench.directory}/error; exit 1")
    assert bench.run("up", bench.network("one"), POD) == f"plugin one ADD: {text} (code 7)"


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cnirun, stopped by its first wrong access or undefined operation."""
    return sanitized(
        tmp_path_factory.mktemp("cnirun"), "cni/cnirun.c", "cni/chain.c", "cni/packet.c",
        "lab/echo.c", "common/process.c", "common/error.c",
    )  # fmt: skip


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
ANSWERS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("cniVersion", "code", "msg", "details", "ips", "routes"), VALUES)
).map(lambda answer: json.dumps(answer).encode())


@settings(max_examples=60)
@example(printed=b'{"msg":""}', status=1)
@example(printed=b'{"msg":" \\u0085"}', status=1)
@example(printed=b"\n\x1c", status=1)
@given(printed=st.binary() | ANSWERS, status=st.sampled_from([0, 1]))
def test_whatever_a_plugin_prints_is_a_result_or_an_error(
    bench: Bench, careful: Path, printed: bytes, status: int
) -> None:
    (bench.directory / "printed").write_bytes(printed)
    script(bench.directory / "bin" / "one", f"cat {bench.directory}/printed; exit {status}")
    bench.program = careful
    done = bench.run("up", bench.network("one"), POD)
    assert not done or done.startswith("plugin one ADD: ")


def script(file: Path, body: str) -> None:
    file.write_text(f"#!/bin/sh\n{body}\n")


@pytest.mark.parametrize(
    ("kind", "how"),
    [("none", "set CNI_PATH"), ("vlan", "apt-get")],
)
def test_a_plugin_that_is_missing_says_how_to_have_it(bench: Bench, kind: str, how: str) -> None:
    with pytest.raises(Unsupported, match=rf"CNI plugin '{kind}' is not installed") as raised:
        bench.run("up", bench.network(kind), POD)
    assert raised.value.hint
    assert raised.value.hint.startswith(how)
    assert "CNI_PATH" in raised.value.hint


def test_missing_plugin_hints_at_build() -> None:
    with pytest.raises(Unsupported) as raised:
        find("flannel", [BUILT / "no-such-set"])
    assert raised.value.hint
    assert raised.value.hint.startswith("make cni-plugins, or set CNI_PATH")


def test_a_cluster_refuses_a_network_whose_plugin_is_missing(tmp_path: Path) -> None:
    network = tmp_path / "net.conflist"
    network.write_text('{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "none"}]}')
    with pytest.raises(Unsupported, match="CNI plugin 'none' is not installed"):
        handlers(("true",), (str(network),))


@pytest.mark.parametrize("interface", ["", ".", "..", "a/b", "a:b", "a b", "x" * 16])
def test_an_interface_name_that_linux_refuses_is_refused(interface: str) -> None:
    with pytest.raises(BadAttachment, match="interface name"):
        Attachment("pod", "/x", interface)


@pytest.mark.parametrize("container", ["", "-a", "a/b", "a b"])
def test_a_container_id_outside_the_specification_is_refused(container: str) -> None:
    with pytest.raises(BadAttachment, match="container id"):
        Attachment(container, "/x")
