import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.lab.cni import known
from firstlight.lab.cni.conf import VERSIONS, BadConf, NetworkList, execution, load, parse

HEAD = {"cniVersion": "1.0.0", "name": "net"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


def listed(**keys: object) -> NetworkList:
    return parse(json.dumps({**HEAD, "plugins": [{"type": "bridge"}], **keys}), "x.conflist")


def test_a_single_configuration_is_a_list_of_one() -> None:
    network = parse(json.dumps({**HEAD, "type": "bridge", "mtu": 1400}), "x.conf")
    assert (network.name, network.version) == ("net", "1.0.0")
    assert execution(network, network.plugins[0]) == {**HEAD, "type": "bridge", "mtu": 1400}


def test_a_syntax_error_says_the_file_and_the_line(tmp_path: Path) -> None:
    file = tmp_path / "10-mine.conflist"
    file.write_text('{\n  "name": "net",\n  "plugins": [}\n')
    with pytest.raises(BadConf, match=r"10-mine\.conflist line 3 column 15: Expecting value"):
        load(file)


def test_a_file_of_the_working_directory_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.conflist").write_text(
        '{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "ptp"}]}'
    )
    network, _ = known.find("mine.conflist")
    assert network.name == "n"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConf, match=r"none\.conf: No such file or directory"):
        load(tmp_path / "none.conf")


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [(["0.3.1", "1.0.0", "1.1.0"], "1.1.0"), (["0.4.0", "2.0.0"], "1.0.0"), ([], "1.0.0")],
)
def test_the_highest_version_that_we_speak_is_chosen(versions: list[str], chosen: str) -> None:
    assert listed(cniVersions=versions).version == chosen


@pytest.mark.parametrize("version", ["0.2.0", "9.0.0", "", "1"])
def test_a_version_that_we_do_not_speak_lists_ours(version: str) -> None:
    with pytest.raises(BadConf) as raised:
        listed(cniVersion=version)
    assert raised.value.hint == f"supported: {', '.join(VERSIONS)}"


@pytest.mark.parametrize(
    ("document", "fact"),
    [
        ([], "an empty array, not a JSON object"),
        ({**HEAD, "plugins": []}, "plugins is an empty array"),
        ({**HEAD, "plugins": {}}, "plugins is an object"),
        ({**HEAD, "plugins": ["bridge"]}, "plugin 0 is a string, not an object"),
        ({**HEAD, "plugins": [{"type": "../evil"}]}, 'type is "../evil"'),
        ({**HEAD, "plugins": [{"mtu": 1}]}, "type is null"),
        ({**HEAD, "name": "a b", "plugins": [{"type": "x"}]}, 'name is "a b"'),
        ({"name": "net", "plugins": [{"type": "x"}]}, "cniVersion is missing"),
        ({**HEAD, "cniVersion": 1, "plugins": [{"type": "x"}]}, "cniVersion must be a string"),
        ({**HEAD, "plugins": [{"type": "x", "capabilities": []}]}, "capabilities is an empty"),
        ({**HEAD, "plugins": [{"type": "x"}], "disableCheck": "maybe"}, 'disableCheck is "maybe"'),
        (
            {**HEAD, "type": "bridge", "mtu": "1500"},
            'mtu is "1500", and bridge reads a whole number',
        ),
        (
            {**HEAD, "type": "ptp", "ipMasq": 1},
            "plugin 0: ipMasq is 1, and ptp reads true or false",
        ),
        ({**HEAD, "type": "bridge", "vlan": True}, "vlan is true, and bridge reads a whole number"),
        ({**HEAD, "type": "macvlan", "ipam": []}, "ipam is [], and macvlan reads an object"),
        (
            {**HEAD, "type": "x", "ipam": {"type": "host-local", "ranges": {}}},
            "plugin 0: ipam: ranges is {}, and host-local reads an array",
        ),
    ],
)
def test_a_wrong_document_says_what_is_wrong(document: object, fact: str) -> None:
    with pytest.raises(BadConf) as raised:
        parse(json.dumps(document), "x.conflist")
    assert fact in raised.value.message


def test_a_plugins_keys_of_any_type_are_its_own_affair() -> None:
    """One that it does not read, null, and those of plugins that are not known here."""
    plugins = [{"type": "ptp", "vlan": "x", "mtu": None}, {"type": "mine", "mtu": "1500"}]
    assert listed(plugins=plugins).plugins == tuple(plugins)


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(BadConf, match="/dev/zero: it is not a regular file"):
        load(Path("/dev/zero"))


def test_flag_accepts_boolean_or_word() -> None:
    assert listed(disableCheck="true").disable_check
    assert listed(disableCheck=True).disable_check
    assert not listed(disableCheck="false").disable_check


def test_the_lists_name_and_version_replace_the_plugins_own() -> None:
    plugin = {"type": "bridge", "name": "other", "cniVersion": "0.3.1", "args": {"x": 1}}
    network = parse(json.dumps({**HEAD, "plugins": [plugin]}), "x")
    assert execution(network, plugin) == {**HEAD, "type": "bridge", "args": {"x": 1}}


def test_a_plugin_does_not_get_its_capabilities() -> None:
    plugin = {"type": "x", "capabilities": {"portMappings": True, "mac": False}}
    assert execution(listed(), plugin) == {**HEAD, "type": "x"}


@given(JSON | st.fixed_dictionaries({"name": JSON, "cniVersion": JSON, "plugins": JSON}))
def test_any_json_is_a_network_or_a_bad_one(document: object) -> None:
    try:
        network = parse(json.dumps(document), "x")
    except BadConf as error:
        assert error.message.startswith("x: ")  # noqa: PT017
    else:
        assert network.plugins


@given(st.text())
def test_any_text_is_a_network_or_a_bad_one(text: str) -> None:
    with pytest.raises(BadConf, match=r"^x(:| line \d+ column \d+)"):
        parse(text, "x")
