"""Lists and watches, against a server that says what an API server may."""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from firstlight.agile import apiserver
from firstlight.agile.apiserver import Refused, Server
from firstlight.errors import Failed

PATH = "/apis/example.dev/v1/things"


def thing(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


def listed(version: int, *names: str) -> dict[str, Any]:
    items = [thing(name, version) for name in names]
    return {"metadata": {"resourceVersion": str(version)}, "items": items}


class Handler(BaseHTTPRequestHandler):
    """Gives the next answer that was prepared, and notes what was asked."""

    answers: ClassVar[list[tuple[int, list[dict[str, Any]]]]] = []
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self.asked.append(query["resourceVersion"][0] if "watch" in query else "list")
        status, objects = self.answers.pop(0) if self.answers else (500, [{"message": "over"}])
        self.send_response(status)
        self.end_headers()
        for each in objects:
            self.wfile.write(json.dumps(each).encode() + b"\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("kubernetes")
    Handler.answers, Handler.asked = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield at_port(http.server_port, tmp_path)
        http.shutdown()


def kubeconfig(
    directory: Path, user: dict[str, object], port: int = 1, name: str = "kubeconfig"
) -> str:
    """A kubeconfig of a server at this port, whose user has these credentials."""
    file = directory / name
    file.write_text(
        json.dumps({
            "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        })
    )  # fmt: skip
    return str(file)


def test_new_line_at_the_end_of_a_tokens_file_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("good\n")
    made = apiserver.settings(kubeconfig(tmp_path, {"tokenFile": str(tmp_path / "token")}))
    assert made.get_api_key_with_prefix("BearerToken") == "Bearer good"


def test_a_tokens_file_is_not_read_without_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    with pytest.raises(Failed, match=f"cannot read {tmp_path}/token: "):
        apiserver.settings(kubeconfig(tmp_path, {"tokenFile": "token"}))


def plugin(*words: str) -> dict[str, object]:
    api = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": api, "command": words[0], "args": list(words[1:])}}


NEWER = '{"apiVersion": "client.authentication.k8s.io/v2", "kind": "ExecCredential", "status": {}}'


@pytest.mark.parametrize(
    ("user", "fact"),
    [
        (plugin("sh", "-c", "echo run cloud login >&2; exit 1"), "run cloud login"),
        (plugin("sh", "-c", "sleep 1000 & wait"), "sh has not ended after 0.1 s"),
        (plugin("echo", "rubbish"), "failed to decode process output"),
        (plugin("echo", NEWER), "api version client.authentication.k8s.io/v2 does not match"),
        (plugin("/nowhere/login"), "No such file or directory: '/nowhere/login'"),
        ({"token": "t", "as": "boss"}, "its user kubeconfig acts as boss"),
    ],
    ids=["refuses", "hangs", "rubbish", "newer", "missing", "acts-as"],
)
def test_a_kubeconfig_without_usable_credentials_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: dict[str, object], fact: str
) -> None:
    """The client would go on without any, or as another user."""
    monkeypatch.setattr(apiserver, "_PLUGIN_SECONDS", 0.1 if "after" in fact else 60.0)
    with pytest.raises(Failed, match=re.escape(fact)):
        apiserver.settings(kubeconfig(tmp_path, user))


def test_what_a_user_lacks_is_said_without_its_secrets(tmp_path: Path) -> None:
    """The client's error has the whole user."""
    provider = {"name": "oidc", "config": {"client-secret": "S{E}CRET", "client-id": "me"}}
    with pytest.raises(Failed, match=r"Expected key id-token in .*/user/auth-provider") as raised:
        apiserver.settings(kubeconfig(tmp_path, {"auth-provider": provider}))
    assert "CRET" not in str(raised.value)


def test_a_user_who_acts_as_nobody_else_is_taken(tmp_path: Path) -> None:
    made = apiserver.settings(kubeconfig(tmp_path, {"token": "t", "as": None}))
    assert made.get_api_key_with_prefix("BearerToken") == "Bearer t"


def test_a_proxy_that_needs_another_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(apiserver, "find_spec", lambda _: None)
    file = Path(kubeconfig(tmp_path, {"token": "t"}))
    document = json.loads(file.read_text())
    document["clusters"][0]["cluster"]["proxy-url"] = "socks5://127.0.0.1:1080"
    file.write_text(json.dumps(document))
    with pytest.raises(Failed, match=r"socks5://127.0.0.1:1080 needs PySocks"):
        apiserver.settings(str(file))


def test_the_first_of_several_kubeconfigs_has_the_context(tmp_path: Path) -> None:
    """As kubectl has it: the client would take the last one's, and so another cluster."""
    a, b = (kubeconfig(tmp_path, {"token": name}, port, name) for port, name in enumerate("ab", 1))
    files = f"{tmp_path}/none:{a}:{b}"
    assert apiserver.settings(files).host == "http://127.0.0.1:1"
    assert apiserver.settings(files, "b").host == "http://127.0.0.1:2"


def at_port(port: int, directory: Path) -> Server:
    return Server(kubeconfig(directory, {"token": "t"}, port))


def test_a_server_that_is_cut_off_is_given_up_within_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("kubernetes")
    monkeypatch.setattr(apiserver, "_CONNECT_SECONDS", 0.02)
    with socket.socket() as full, socket.socket() as one, socket.socket() as other:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # and so it drops what comes after the first
        for each in (one, other):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        with pytest.raises(Exception, match="connect timeout"):
            at_port(full.getsockname()[1], tmp_path).ask("GET", PATH)


def test_watch_resumes_or_lists_again(server: Server) -> None:
    gone = {"type": "ERROR", "object": {"code": 410, "message": "too old"}}
    Handler.answers = [
        (200, [listed(5, "a")]),
        (200, [{"type": "ADDED", "object": thing("b", 6)},
               {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}]),
        (503, [{"message": "away"}]),
        (200, [{"type": "DELETED", "object": thing("a", 10)}]),
        (200, [gone]),
        (200, [listed(20, "c")]),
        (410, [{"message": "gone", "code": 410}]),
        (200, [listed(30, "d")]),
    ]  # fmt: skip
    waits: list[float] = []
    followed = server.follow(PATH, sleep=waits.append)
    seen: list[list[str]] = []
    for objects in followed:
        if not seen or seen[-1] != sorted(objects):
            seen.append(sorted(objects))
        if "d" in objects:
            break
    assert seen == [["a"], ["a", "b"], ["b"], ["c"], ["d"]]
    assert Handler.asked == ["list", "5", "9", "9", "10", "list", "20", "list"]
    assert all(waits)


def test_failures_wait_longer_and_longer(server: Server) -> None:
    Handler.answers = [(500, [{"message": "no"}])] * 9 + [(200, [listed(1, "a")])]
    waits: list[float] = []
    assert next(server.follow(PATH, sleep=waits.append)).keys() == {"a"}
    assert len(waits) == 9
    for number, wait in enumerate(waits):
        most = min(2.0**number, 60.0)
        assert most / 2 <= wait <= most


def test_a_watch_that_ends_well_ends_the_long_waits(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(step=30)
    monkeypatch.setattr(apiserver, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    Handler.answers = [(500, [{"message": "no"}])] * 5 + [
        (200, [listed(1, "a")]), (200, []),  # nothing changes
        (500, [{"message": "no"}]),
    ]  # fmt: skip
    waits: list[float] = []
    for _ in islice(server.follow(PATH, sleep=waits.append), 3):
        pass
    assert len(waits) == 6
    assert waits[-1] <= 1.0


def test_an_answer_that_is_no_json_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    Handler.answers = [(403, [{"message": "functions is forbidden"}])]
    with pytest.raises(Refused, match="functions is forbidden") as refused:
        server.ask("GET", PATH)
    assert refused.value.status == 403
    Handler.answers = [(200, [listed(1)]), (200, [])]
    monkeypatch.setattr(apiserver, "_WAIT_LEAST", 3600.0)  # however slow this machine is
    waits: list[float] = []
    for _ in islice(server.follow(PATH, sleep=waits.append), 2):
        pass
    assert waits  # a watch that ends at once is not asked for again at once
