import json
from dataclasses import replace

import pytest
from tests.support.cni_bench import Bench

from firstlight.errors import Unsupported
from firstlight.lab.cni.plugin import PluginError
from firstlight.lab.cni.runtime import Attachment, BadAttachment

POD = Attachment("pod1", "/run/netns/pod1", "eth0", "K8S_POD_NAME=a;IgnoreUnknown=1")


def test_add_chains_the_results_in_order(bench: Bench) -> None:
    network = bench.network("one", "two", "three")
    result = bench.runtime.add(network, POD)
    assert result == {"cniVersion": "1.0.0", "dns": {"search": ["one", "two", "three"]}}
    first, second, third = bench.calls
    assert "prevResult" not in first["stdin"]
    assert second["stdin"]["prevResult"] == {"cniVersion": "1.0.0", "dns": {"search": ["one"]}}
    assert third["stdin"]["prevResult"]["dns"]["search"] == ["one", "two"]


def test_every_plugin_gets_the_same_environment(bench: Bench) -> None:
    bench.runtime.add(bench.network("one", "two"), POD)
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


def test_delete_goes_backwards_with_the_cached_result_and_forgets_it(bench: Bench) -> None:
    network = bench.network("one", "two")
    result = bench.runtime.add(network, POD)
    bench.runtime.delete(network, POD)
    assert bench.order[2:] == [("two", "DEL"), ("one", "DEL")]
    assert [call["stdin"]["prevResult"] for call in bench.calls[2:]] == [result, result]
    assert bench.runtime.result(network, POD) is None
    bench.runtime.delete(network, POD)
    assert "prevResult" not in bench.calls[-1]["stdin"]


def test_a_failed_delete_stops_and_keeps_the_result(bench: Bench) -> None:
    network = bench.network("one", {"type": "two", "does": {"DEL": "fail"}})
    result = bench.runtime.add(network, POD)
    with pytest.raises(PluginError):
        bench.runtime.delete(network, POD)
    assert bench.order[2:] == [("two", "DEL")]
    assert bench.runtime.result(network, POD) == result


def test_a_failed_add_is_undone_by_every_plugin_and_says_the_plugins_words(bench: Bench) -> None:
    network = bench.network("one", {"type": "two", "does": {"ADD": "fail", "DEL": "fail"}}, "three")
    with pytest.raises(PluginError) as raised:
        bench.runtime.add(network, POD)
    assert raised.value.message == "plugin two ADD: try again (code 11): lease is busy"
    assert (raised.value.code, raised.value.details) == (11, "lease is busy")
    assert bench.order[2:] == [("three", "DEL"), ("two", "DEL"), ("one", "DEL")]
    assert bench.runtime.result(network, POD) is None


@pytest.mark.parametrize(
    ("how", "fact"),
    [
        ("crash", "killed by signal 6: panic: no such thing"),
        ("garble", "printed what is not JSON: Success! { not json"),
        ("old", 'its result is of CNI version "0.2.0"'),
        ("silent", "printed no result"),
    ],
)
def test_a_plugin_that_misbehaves_is_named_and_undone(bench: Bench, how: str, fact: str) -> None:
    network = bench.network({"type": "one", "does": {"ADD": how}})
    with pytest.raises(PluginError) as raised:
        bench.runtime.add(network, POD)
    assert raised.value.message == f"plugin one ADD: {fact}"
    assert bench.order == [("one", "ADD"), ("one", "DEL")]


def test_a_plugin_that_hangs_is_killed(bench: Bench) -> None:
    runtime = replace(bench.runtime, timeout=0.5)
    network = bench.network({"type": "one", "does": {"ADD": "hang"}})
    with pytest.raises(PluginError, match=r"no answer in 0\.5 s"):
        runtime.add(network, POD)


@pytest.mark.parametrize(
    ("kind", "how"),
    [("none", "set CNI_PATH"), ("vlan", "apt-get"), ("flannel", "make cni-plugins")],
)
def test_a_plugin_that_is_missing_says_how_to_have_it(bench: Bench, kind: str, how: str) -> None:
    with pytest.raises(Unsupported, match=rf"CNI plugin '{kind}' is not installed") as raised:
        bench.runtime.add(bench.network(kind), POD)
    assert raised.value.hint
    assert raised.value.hint.startswith(how)
    assert "CNI_PATH" in raised.value.hint


def test_the_same_attachment_is_not_added_twice(bench: Bench) -> None:
    network = bench.network("one")
    bench.runtime.add(network, POD)
    with pytest.raises(BadAttachment, match="already has eth0 in network net"):
        bench.runtime.add(network, POD)
    bench.runtime.add(network, replace(POD, interface="eth1"))


def test_check_gives_each_plugin_the_cached_result(bench: Bench) -> None:
    network = bench.network("one", "two")
    result = bench.runtime.add(network, POD)
    bench.runtime.check(network, POD)
    assert bench.order[2:] == [("one", "CHECK"), ("two", "CHECK")]
    assert [call["stdin"]["prevResult"] for call in bench.calls[2:]] == [result, result]


def test_check_is_not_called_when_disabled_or_before_its_version_or_without_add(
    bench: Bench,
) -> None:
    disabled = bench.network("one", disableCheck=True)
    bench.runtime.add(disabled, POD)
    bench.runtime.check(disabled, POD)
    with pytest.raises(BadAttachment, match=r"0\.3\.1, without CHECK"):
        bench.runtime.check(bench.network("one", cniVersion="0.3.1"), POD)
    with pytest.raises(BadAttachment, match="pod1 has no eth0 in network other"):
        bench.runtime.check(bench.network("one", name="other"), POD)
    assert bench.order == [("one", "ADD")]


def test_delete_before_0_4_0_has_no_previous_result(bench: Bench) -> None:
    network = bench.network("one", cniVersion="0.3.1")
    bench.runtime.add(network, POD)
    bench.runtime.delete(network, POD)
    assert "prevResult" not in bench.calls[1]["stdin"]


def test_gc_deletes_the_stale_then_tells_each_plugin_the_valid(bench: Bench) -> None:
    network = bench.network("one", "two", cniVersion="1.1.0")
    other = replace(POD, container="pod2")
    bench.runtime.add(network, POD)
    bench.runtime.add(network, other)
    bench.runtime.collect(network, [POD])
    assert bench.order[4:] == [("two", "DEL"), ("one", "DEL"), ("one", "GC"), ("two", "GC")]
    assert bench.calls[4]["env"]["CNI_CONTAINERID"] == "pod2"
    for call in bench.calls[6:]:
        valid = [{"containerID": "pod1", "ifname": "eth0"}]
        assert call["stdin"]["cni.dev/valid-attachments"] == valid
        assert set(call["env"]) == {"CNI_COMMAND", "CNI_PATH"}
    assert list(bench.runtime.attachments(network)) == [POD]


def test_gc_calls_every_plugin_before_it_raises(bench: Bench) -> None:
    network = bench.network({"type": "one", "does": {"GC": "fail"}}, "two", cniVersion="1.1.0")
    with pytest.raises(PluginError, match="plugin one GC: try again"):
        bench.runtime.collect(network, [])
    assert bench.order == [("one", "GC"), ("two", "GC")]


def test_gc_and_status_wait_for_version_1_1_and_gc_can_be_disabled(bench: Bench) -> None:
    bench.runtime.collect(bench.network("one"), [])
    bench.runtime.status(bench.network("one"))
    bench.runtime.collect(bench.network("one", cniVersion="1.1.0", disableGC=True), [])
    assert bench.calls == []


def test_status_stops_at_the_plugin_that_is_not_ready(bench: Bench) -> None:
    network = bench.network({"type": "one", "does": {"STATUS": "fail"}}, "two", cniVersion="1.1.0")
    with pytest.raises(PluginError) as raised:
        bench.runtime.status(network)
    assert raised.value.code == 11
    assert bench.order == [("one", "STATUS")]


def test_version_names_what_a_plugin_supports(bench: Bench) -> None:
    assert bench.runtime.versions("one") == ("0.4.0", "1.1.0")
    assert bench.calls[0]["stdin"] == {"cniVersion": "1.1.0"}


def test_runtime_config_reaches_add_and_delete(bench: Bench) -> None:
    network = bench.network({"type": "one", "capabilities": {"mac": True}})
    pod = replace(POD, capabilities={"mac": "00:11:22:33:44:55"})
    bench.runtime.add(network, pod)
    bench.runtime.delete(network, pod)
    assert [call["stdin"]["runtimeConfig"] for call in bench.calls] == 2 * [pod.capabilities]


@pytest.mark.parametrize("interface", ["", ".", "..", "a/b", "a:b", "a b", "x" * 16])
def test_an_interface_name_that_linux_refuses_is_refused(interface: str) -> None:
    with pytest.raises(BadAttachment, match="interface name"):
        Attachment("pod", "/x", interface)


@pytest.mark.parametrize("container", ["", "-a", "a/b", "a b"])
def test_a_container_id_outside_the_specification_is_refused(container: str) -> None:
    with pytest.raises(BadAttachment, match="container id"):
        Attachment(container, "/x")


def test_a_spoiled_cache_is_named(bench: Bench) -> None:
    network = bench.network("one")
    bench.runtime.add(network, POD)
    file = bench.runtime.cache / "results" / "net-pod1-eth0"
    assert json.loads(file.read_text())["kind"] == "cniCacheV1"
    file.write_text("{")
    with pytest.raises(BadAttachment, match="net-pod1-eth0 cannot be read"):
        bench.runtime.delete(network, POD)
