"""The address server that keeps weaver's contract, over HTTP."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.lab.cni import weaver
from firstlight.lab.cni.weaver import BRIDGE, NETWORK, Addresses, Handler, Server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(Handler, "addresses", Addresses(tmp_path / "map"), raising=False)
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield ("127.0.0.1", running.server_address[1])
        running.shutdown()
        thread.join()


def ask(server: tuple[str, int], verb: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*server, timeout=60)
    connection.request(verb, path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_an_owner_keeps_its_address_until_it_is_released(server: tuple[str, int]) -> None:
    first = ask(server, "POST", "/ip/pod1?check-alive=true")
    assert first == (200, f"{BRIDGE + 1}/{NETWORK.prefixlen}")
    assert ask(server, "POST", "/ip/pod1") == first
    assert ask(server, "GET", "/ip/pod1") == first
    assert ask(server, "POST", "/ip/pod2")[1] != first[1]
    assert ask(server, "DELETE", "/ip/pod1") == (204, "")
    assert ask(server, "GET", "/ip/pod1")[0] == 404
    assert ask(server, "POST", "/ip/pod3") == first


def test_what_has_no_address_says_what_the_plugin_looks_for(server: tuple[str, int]) -> None:
    assert ask(server, "DELETE", "/ip/pod9") == (500, "Delete: no addresses for pod9\n")


def test_every_change_is_in_the_file(tmp_path: Path) -> None:
    addresses = Addresses(tmp_path / "map")
    addresses.allocate("a")
    addresses.allocate("b")
    addresses.release("a")
    assert json.loads((tmp_path / "map").read_text()) == {"b": str(BRIDGE + 2)}


def test_weaver_allocates_unique_addresses_and_frees_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weaver, "NETWORK", type(NETWORK)("10.32.0.0/29"))
    addresses = Addresses(tmp_path / "map")
    given = [addresses.allocate(str(index)) for index in range(6)]
    assert given == [BRIDGE + 1 + index for index in range(5)] + [None]
