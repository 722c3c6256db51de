"""Forwarding, and the other software of a host that has to do with it."""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.agile_host import on_host
from tests.support.network_host import (
    HOST,
    inside,
    neighbour,
    networks,
    on_network_host,
    sh,
    state,
)

from firstlight.agile import Config
from firstlight.agile.journal import Journal
from firstlight.agile.network.networks import Networks

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
WORLD = "198.51.100.2"


@contextmanager
def neighbours() -> Iterator[list]:  # type: ignore[type-arg]
    with (
        neighbour("left", "203.0.113.1/24", "203.0.113.2/24") as left,
        neighbour("world", "198.51.100.1/24", f"{WORLD}/24") as world,
    ):
        yield [left, world]


def test_forwarding_is_limited_to_instances_and_restored() -> None:
    async def main() -> None:
        sh("ip link set lo up")
        with neighbours() as (left, world), world.serving("0.0.0.0", 80):
            async with networks() as made:
                made_now = await made.make("outbound")
                assert FORWARD.read_text() == "1\n"
                assert inside(made_now).reaches(WORLD, 80)
                assert left.cannot_reach(WORLD, 80), "the host is a router for others"
                made.discard(made_now)
            assert FORWARD.read_text() == "0\n"
            assert left.cannot_reach(WORLD, 80)

    on_host(main)


def test_forwarding_that_was_on_stays_everybodys() -> None:
    async def main() -> None:
        sh("ip link set lo up; sysctl -qw net.ipv4.ip_forward=1")
        with neighbours() as (left, world), world.serving("0.0.0.0", 80):
            async with networks() as made:
                made_now = await made.make("outbound")
                assert inside(made_now).reaches(WORLD, 80)
                assert left.reaches(WORLD, 80)
                made.discard(made_now)
            assert FORWARD.read_text() == "1\n"
            assert left.reaches(WORLD, 80)

    on_host(main)


def test_forwarding_that_was_turned_off_meanwhile_stays_off() -> None:
    async def main() -> None:
        async with networks():
            sh("sysctl -qw net.ipv4.ip_forward=0")
        assert FORWARD.read_text() == "0\n"

    on_host(main)


def test_runtimes_share_the_guard_and_the_last_one_ends_it() -> None:
    async def main() -> None:
        sh("ip link set lo up")
        with neighbours() as (left, world), world.serving("0.0.0.0", 80):
            # nft 1.0.6 takes the links of the third for overlapping
            first, second, third = (
                networks(), networks(name="node", range="10.214.0.0/16"),
                networks(name="default", range="10.215.0.0/16"),
            )  # fmt: skip
            all_made = [await each.__aenter__() for each in (first, second, third)]
            for made in all_made:
                used = await made.make("outbound")
                assert inside(used).reaches(WORLD, 80)
                made.discard(used)
            await first.__aexit__(None, None, None)
            for made in all_made[1:]:
                used = await made.make("outbound")
                assert inside(used).reaches(WORLD, 80)
                made.discard(used)
            assert left.cannot_reach(WORLD, 80)
            await second.__aexit__(None, None, None)
            await third.__aexit__(None, None, None)
            assert FORWARD.read_text() == "0\n"
            assert "firstlight" not in sh("nft list ruleset")

    on_host(main)


def test_what_a_killed_runtime_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """The journal names it; the process that made it is gone without a word."""

    async def main() -> None:
        sh("ip link set lo up; nft 'table ip filter { chain FORWARD { type filter hook forward "
           "priority filter; policy drop; }; }'")  # fmt: skip
        before = state()
        pid = os.fork()
        if pid == 0:
            code = (
                "import asyncio; from firstlight.agile import Config; "
                "from firstlight.agile.journal import Journal; "
                "from firstlight.agile.network.networks import Networks; "
                f"c = Config(name='tn', state='{tmp_path}'); j = Journal(c.directory); j.open(); "
                "n = Networks(c); n.check(); j.record('network', n.table, n.anchor)\n"
                "async def main():\n"
                "  await n.open(); await n.make('outbound'); import os; os.kill(os.getpid(), 9)\n"
                "asyncio.run(main())"
            )
            os.execv(sys.executable, [sys.executable, "-c", code])
        os.waitpid(pid, 0)
        assert state() != before
        journal = Journal(Config(name="tn", state=str(tmp_path)).directory)
        journal.open()
        assert state() == before
        journal.close()

    on_host(main)


RULES = {
    "iptables-nft, policy drop": (
        "nft 'table ip filter { chain FORWARD { type filter hook forward priority filter; "
        "policy drop; }; }'"
    ),
    "iptables-nft": "iptables-nft -P FORWARD DROP",
    "iptables-nft, last rule rejects": "iptables-nft -A FORWARD -j REJECT",
    "Docker by iptables-nft": (
        "iptables-nft -N DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN; "
        "iptables-nft -A FORWARD -j DOCKER-USER; iptables-nft -P FORWARD DROP"
    ),
    "iptables-legacy": "iptables-legacy -P FORWARD DROP",
    "iptables-legacy, last rule rejects": "iptables-legacy -A FORWARD -j REJECT",
    "Docker by iptables-legacy": (
        "iptables-legacy -N DOCKER-USER; iptables-legacy -A DOCKER-USER -j RETURN; "
        "iptables-legacy -A FORWARD -j DOCKER-USER; iptables-legacy -P FORWARD DROP"
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_outbound_passes_closed_iptables_forward(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    rules = "iptables-legacy -S; iptables-legacy-save -t filter | grep -v '^[#:]'; true"

    async def main() -> None:
        sh("ip link set lo up; " + RULES[name])
        before = [state(), sh(rules)]
        with neighbours() as (left, world), world.serving("0.0.0.0", 80):
            async with networks() as made:
                used = await made.make("outbound")
                assert used.address
                assert inside(used).reaches(WORLD, 80)
                assert left.cannot_reach(WORLD, 80)
                with inside(used).serving("0.0.0.0", 80):
                    await made.publish({8080: 80}, used.address)
                    assert world.reaches("198.51.100.1", 8080)
                    await made.withdraw({8080: 80}, used.address)
                made.discard(used)
        assert [state(), sh(rules)] == before, "its rules stayed"

    on_host(main)
    assert "forward" not in caplog.text


FOREIGN = {
    "an administrator's table": (
        "table inet mine { chain through { type filter hook forward priority 10; policy drop; }; }",
        "the chain inet mine through drops instances' packets: nft 'insert rule",
    ),
    "firewalld": (
        "table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; "
        "ct state established accept; reject with icmpx admin-prohibited; }; }",
        "firewall-cmd --permanent --zone=trusted --add-source=10.213.0.0/16",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_table_is_kept_and_its_remedy_works(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    table, words = FOREIGN[name]

    async def main(made: Networks) -> None:
        with neighbours() as (_, world), world.serving("0.0.0.0", 80):
            used = await made.make("outbound")
            assert inside(used).cannot_reach(WORLD, 80)
            [message] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
            assert words in message
            if "nft '" in message:
                sh(message[message.index("nft '") :])
                assert inside(used).reaches(WORLD, 80)
                sh("nft flush chain inet mine through")
            made.discard(used)

    on_network_host(main, before=f"nft '{table}'")


def test_beside_the_chains_that_ufw_makes() -> None:
    """Played, not made by ufw: what it hooks into FORWARD, with its policies."""

    async def main() -> None:
        sh("""
            ip link set lo up
            iptables-nft -P FORWARD DROP; iptables-nft -P INPUT DROP
            iptables-nft -N ufw-before-forward; iptables-nft -A FORWARD -j ufw-before-forward
            iptables-nft -N ufw-reject-forward; iptables-nft -A FORWARD -j ufw-reject-forward
        """)
        with neighbours() as (_, world), world.serving("0.0.0.0", 80):
            async with networks() as made:
                used = await made.make("outbound")
                assert inside(used).reaches(WORLD, 80)
                made.discard(used)

    on_host(main)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # else the test ends by its deadline
        await asyncio.sleep(0.02)


def test_docker_that_comes_later_is_opened_too() -> None:
    async def main(made: Networks) -> None:
        with neighbours() as (_, world), world.serving("0.0.0.0", 80):
            used = await made.make("outbound")
            for _ in range(2):  # it is restarted
                sh(RULES["Docker by iptables-nft"])
                await until(lambda: sh("nft list chain ip filter DOCKER-USER").count("accept") == 2)
                assert inside(used).reaches(WORLD, 80)
                sh("nft delete table ip filter")
            made.discard(used)

    on_network_host(main)


def test_rules_that_another_program_flushes_are_made_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(made: Networks) -> None:
        with neighbours() as (left, world), world.serving("0.0.0.0", 80):
            used = await made.make("outbound")
            assert used.address
            with inside(used).serving("0.0.0.0", 80), HOST.serving("0.0.0.0", 81):
                await made.publish({8080: 80}, used.address)
                sh("nft flush ruleset")
                await until(lambda: "is restored" in caplog.text)
                assert inside(used).reaches(WORLD, 80)
                assert inside(used).cannot_reach("198.51.100.1", 81)
                assert left.cannot_reach(WORLD, 80)
                assert world.reaches("198.51.100.1", 8080)
                assert HOST.reaches("127.0.0.1", 8080)
            await made.withdraw({8080: 80}, used.address)
            made.discard(used)

    on_network_host(main)


@pytest.mark.parametrize("reach", ["outbound", "none"])
def test_a_host_without_ipv6(reach: str) -> None:
    """A tmpfs stands for the settings of such a kernel, in the test's own mount namespace."""

    async def main(made: Networks) -> None:
        sh("""
            mount -t tmpfs settings /proc/sys/net
            mkdir -p /proc/sys/net/ipv4 /proc/sys/net/core; echo 1 > /proc/sys/net/ipv4/ip_forward
        """)
        used = await made.make(reach)  # type: ignore[arg-type]
        if used.address:
            with inside(used).serving("0.0.0.0", 80):
                assert HOST.reaches(str(used.address), 80)
        made.discard(used)
        sh("umount /proc/sys/net")

    on_network_host(main)


def test_no_process_is_started_for_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(made: Networks) -> None:
        used = await made.make("outbound")
        assert used.address
        monkeypatch.setattr(subprocess, "Popen", None)
        monkeypatch.setattr(os, "posix_spawn", None)
        await made.publish({8080: 80}, used.address)
        await made.withdraw({8080: 80}, used.address)
        monkeypatch.undo()
        made.discard(used)

    on_network_host(main)
