"""Leases: what one agent writes the next one reads, wherever the writing ended."""

import asyncio
import errno
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.agile.config import Config, PodsConfig
from firstlight.agile.pods import wire
from firstlight.agile.pods.agent import Agent
from firstlight.agile.pods.leases import Lease, Leases
from firstlight.agile.pods.wire import Answer, Key
from firstlight.errors import Failed

KEYS = st.builds(Key, st.just("net"), st.text("ab", min_size=1, max_size=3), st.just("eth0"))


def opened(directory: Path) -> Leases:
    leases = Leases(directory)
    leases.open()
    return leases


@given(st.lists(st.tuples(st.booleans(), KEYS, st.integers(2, 9)), max_size=30), st.data())
def test_an_agent_that_ends_anywhere_leaves_what_it_wrote(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[tuple[bool, Key, int]],
    data: st.DataObject,
) -> None:
    directory = tmp_path_factory.mktemp("leases")
    leases = opened(directory)
    expected: list[dict[Key, int]] = [{}]
    for adds, key, number in events:
        lease = leases.get(key)
        if adds and lease is None and number not in {each.number for each in leases.all()}:
            leases.add(Lease(number, key, "ns/pod"))
        elif not adds and lease:
            leases.remove(lease)
        else:
            continue
        expected.append({each.key: each.number for each in leases.all()})
    leases.close()
    lines = (directory / "leases").read_bytes().splitlines(keepends=True)
    whole = data.draw(st.integers(0, len(lines)))
    cut = b"".join(lines[:whole])
    if whole < len(lines):
        cut += lines[whole][: data.draw(st.integers(0, len(lines[whole]) - 2))]
    (directory / "leases").write_bytes(cut)
    again = opened(directory)
    assert {each.key: each.number for each in again.all()} == expected[whole]
    again.close()


def test_a_cut_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    (tmp_path / "leases").write_text('["+", 2, "net", "a", "eth0", ""]\n["+", 3, "ne')
    leases = opened(tmp_path)
    leases.add(Lease(4, Key("net", "b", "eth0"), ""))
    leases.close()
    again = opened(tmp_path)
    assert sorted(each.number for each in again.all()) == [2, 4]
    again.close()


def test_the_file_stays_small(tmp_path: Path) -> None:
    leases = opened(tmp_path)
    for number in range(20_000):
        lease = Lease(number, Key("net", str(number), "eth0"), "")
        leases.add(lease)
        leases.remove(lease)
    leases.close()
    assert len((tmp_path / "leases").read_text().splitlines()) < 5_000


def test_two_agents_do_not_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstlight.agile.pods.leases._LOCK_SECONDS", 0.0)
    leases = opened(tmp_path)
    with pytest.raises(Failed, match="another agent"):
        opened(tmp_path)
    leases.close()
    opened(tmp_path).close()


@pytest.mark.parametrize("removed", ["leases", "leases.lock"])
def test_no_other_agent_gets_in_while_files_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    monkeypatch.setattr("firstlight.agile.pods.leases._LOCK_SECONDS", 0.0)
    leases = opened(tmp_path)
    held, closed, close = leases._lock, list[int](), os.close

    def watched(descriptor: int) -> None:
        closed.append(descriptor)
        close(descriptor)

    (tmp_path / removed).unlink()
    with monkeypatch.context() as patched:
        patched.setattr("os.close", watched)
        leases.restore()
    assert held not in closed or (removed == "leases.lock" and closed[-1] == held)
    assert (tmp_path / removed).exists()
    with pytest.raises(Failed, match="another agent"):
        opened(tmp_path)
    leases.close()


def raising(error: OSError) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_files_that_another_program_removed_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(2, Key("net", "a", "eth0"), "")

    async def lose(config: Config) -> None:
        agent = Agent(config)
        agent.leases.open()
        agent._listen()
        agent.leases.add(lease)
        shutil.rmtree(config.directory)
        with monkeypatch.context() as full:
            full.setattr(socket.socket, "bind", raising(OSError(errno.ENOSPC, "full")))
            with pytest.raises(OSError, match="full"):
                agent._restore()
        agent._restore()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as plugin:
            plugin.connect(str(config.socket))
        await agent.__aexit__()

    config = Config(name="a", state=str(tmp_path), pods=PodsConfig(range="10.244.1.0/24"))
    asyncio.run(lose(config))
    again = opened(config.directory)
    assert again.all() == [lease]
    again.close()


def test_plugin_that_cannot_be_waited_for_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would wait for its own deadline, and not ask again."""

    async def ask(config: Config) -> None:
        agent = Agent(config)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "add_reader", raising(OSError(errno.ENOSPC, "no watch left")))
        with theirs:
            agent._read(ours)
            assert theirs.recv(1, socket.MSG_DONTWAIT) == b""

    asyncio.run(ask(Config(name="a", state=str(tmp_path), pods=PodsConfig(range="10.244.1.0/24"))))


def test_agent_without_its_mount_reports_that_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container: the path stays, but no file can be made there any more."""
    monkeypatch.setattr("firstlight.agile.pods.agent._LOOK_SECONDS", 0.0)
    state = tmp_path / "state"
    state.mkdir()
    mount = os.open(state, os.O_PATH)

    async def lose(config: Config) -> Failed:
        agent = Agent(config)
        agent.leases.open()
        restore, lost = agent.leases.restore, asyncio.get_running_loop().create_future()
        agent.on_loss = lost.set_result
        missing = Failed("another file is missing")
        missing.__cause__ = FileNotFoundError()
        first = iter([missing])

        def look() -> None:
            for error in first:
                raise error
            shutil.rmtree(state)
            restore()

        monkeypatch.setattr(agent.leases, "restore", look)
        await agent._look()
        await agent.__aexit__()
        return await lost  # type: ignore[no-any-return]

    pods = PodsConfig(range="10.244.1.0/24")
    error = asyncio.run(lose(Config(name="a", state=f"/proc/self/fd/{mount}", pods=pods)))
    os.close(mount)
    assert "cannot keep leases" in error.message


def test_a_full_disk_is_an_error_and_no_lease() -> None:
    leases = Leases(Path("/nowhere"))
    leases._file = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(Failed, match="No space"):
        leases.add(Lease(2, Key("net", "a", "eth0"), ""))
    assert not leases.all()
    leases.close()


@given(st.text())
def test_any_text_fits_an_answer(text: str) -> None:
    encoded = Answer(11, text.encode(errors="ignore").decode()).encode()
    assert len(encoded) == wire.ANSWER.size
    encoded[-444:].rstrip(b"\0").decode()


@given(st.binary(max_size=900))
def test_any_message_is_a_request_or_refused(message: bytes) -> None:
    try:
        request = wire.decode(message)
    except Failed:
        return
    assert request.verb in wire.Verb


def test_a_request_is_read() -> None:
    texts = (b"net", b"abc", b"eth0", b"ns", b"pod", b"uid")
    message = wire.REQUEST.pack(wire.MAGIC, wire.Verb.ADD, wire.Flag.FILL, 0, *texts)
    request = wire.decode(message)
    assert request.key == ("net", "abc", "eth0")
    assert (request.pod, request.uid) == ("ns/pod", "uid")
    assert request.fills
