"""What a network's configuration names of the host."""

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import Unsupported
from firstlight.lab.backends.cni import Cni
from firstlight.lab.cni import needs
from firstlight.lab.cni.conf import BadConf, NetworkList, parse


def network(*plugins: dict[str, Any]) -> NetworkList:
    document = {"cniVersion": "1.0.0", "name": "mine", "plugins": list(plugins)}
    return parse(json.dumps(document), "mine.conflist")


@pytest.mark.parametrize(
    ("plugin", "named"),
    [
        ({"type": "bridge"}, set()),
        ({"type": "bridge", "ipam": {"type": "host-local", "dataDir": "/srv/leases"}},
         {"/srv/leases"}),
        ({"type": "flannel", "dataDir": "/srv/flannel"}, {"/srv/flannel"}),
        ({"type": "flannel", "delegate": {"ipam": {"dataDir": "/srv/deep"}}}, {"/srv/deep"}),
        ({"type": "calico", "log_file_path": "/srv/log/cni.log"}, {"/srv/log"}),
        ({"type": "bridge", "ipam": {"type": "host-local", "dataDir": ""}}, set()),
    ],
)  # fmt: skip
def test_needs_find_written_directories(plugin: dict[str, Any], named: set[str]) -> None:
    assert needs.directories(network(plugin)) == {Path(name) for name in named}


@pytest.mark.parametrize("path", ["leases", "/", "/srv/../etc", "/etc/passwd"])
def test_needs_refuse_unhideable_directory(path: str) -> None:
    with pytest.raises(BadConf, match=r"mine\.conflist: dataDir is"):
        needs.directories(network({"type": "bridge", "ipam": {"type": "x", "dataDir": path}}))


def test_links_are_found_and_their_absence_too() -> None:
    assert needs.links(network({"type": "macvlan", "master": "eth0"})) == {"eth0"}
    assert not needs.takes_default_link(network({"type": "macvlan", "master": "eth0"}))
    assert needs.takes_default_link(network({"type": "ipvlan"}))
    assert not needs.takes_default_link(network({"type": "bridge"}))


@pytest.mark.parametrize("name", ["", "a/b", "..", "name with blanks", "x" * 16, "é" * 8])
def test_a_name_that_no_link_can_have_is_refused(name: str) -> None:
    conf = network({"type": "macvlan", "master": name})
    if not name:
        assert needs.links(conf) == set()
        return
    with pytest.raises(BadConf, match="is not a valid link name"):
        needs.check(conf)


def test_a_device_of_the_hosts_own_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"^host-device needs a device of the host, which"):
        needs.check(network({"type": "host-device", "device": "eth1"}))
    with pytest.raises(Unsupported, match="bridge asks the daemon of the address plugin dhcp"):
        needs.check(network({"type": "bridge", "ipam": {"type": "dhcp"}}))


def test_a_kind_of_link_that_the_kernel_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of kind vlan has another name: modprobe finds it by its alias."""
    refusal = subprocess.CompletedProcess([], 1, "", "RTNETLINK answers: Operation not supported\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refusal)
    with pytest.raises(Unsupported, match=r"^plugin vlan needs a link of kind vlan") as error:
        needs.check(network({"type": "vlan", "master": "eth0"}))
    assert error.value.hint is not None
    assert "modprobe rtnl-link-vlan" in error.value.hint


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(
            st.sampled_from(["dataDir", "master", "ipam", "logFile", "x"]), inner
        ),
    )
)  # fmt: skip
def test_no_configuration_ends_in_a_traceback(value: object) -> None:
    conf = network({"type": "thing", "ipam": value})
    with suppress(BadConf):
        needs.directories(conf)
    needs.links(conf)


@pytest.mark.parametrize(
    ("plugin", "told"),
    [({"type": "macvlan", "master": "eth0"}, "stands in for eth0 of the host"),
     ({"type": "macvlan"}, "stands in for the default route's link of the host"),
     ({"type": "bridge"}, None)],
)  # fmt: skip
def test_note_says_what_stands_in_for_the_hosts_links(
    tmp_path: Path, plugin: dict[str, Any], told: str | None
) -> None:
    file = tmp_path / "mine.conflist"
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": "mine", "plugins": [plugin]}))
    note = Cni(str(file)).note
    assert told in (note or "") if told else note is None
