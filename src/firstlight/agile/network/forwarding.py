"""Handles other software that drops forwarded packets: Docker, ufw, firewalld, manual rules.

A packet passes every base chain of a hook, and one drop is final, so the runtime's own table cannot
allow what another one drops. It inserts two rules into chains made for this (DOCKER-USER) and into
those of iptables. For other chains it reports which one drops packets and how to change that.
"""

import json
import logging
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

from firstlight.agile.network import nethelper
from firstlight.agile.network.firewall import Listing, Run
from firstlight.errors import Failed, longer

_LEGACY_TABLES = Path("/proc/thread-self/net/ip_tables_names")
_SECONDS = longer(10.0)
_log = logging.getLogger(__name__)


async def open_others(run: Run, links: str, mark: str, addresses: str) -> list[str]:
    """Accept packets forwarded for links with this prefix; ``mark`` is the comment of inserted
    rules.

    Returns a warning for each chain that cannot be changed, with the command that changes it.
    """
    warnings = []
    chains = _chains(await run("list chains", "list chains"))
    docker = any(_path(chain) == "ip filter DOCKER-USER" for chain in chains)
    for chain in chains:
        path = _path(chain)
        is_iptables = path == "ip filter FORWARD"
        if chain.get("hook") != "forward" or chain["family"] not in ("ip", "inet"):
            continue
        if chain["table"].startswith("firstlight_") or not (
            (docker and is_iptables) or await _closes(run, chain)
        ):
            continue
        if is_iptables:
            into = "ip filter DOCKER-USER" if docker else path
            if not await _is_open(run, into, mark):
                await run(
                    f'insert rule {into} iifname "{links}*" counter accept comment "{mark}"; '
                    f'insert rule {into} oifname "{links}*" counter accept comment "{mark}"',
                    f"let instances through {into}",
                )
        elif chain["table"] == "firewalld":
            warnings.append(
                "firewalld drops instances' packets: firewall-cmd --permanent --zone=trusted "
                f"--add-source={addresses} && firewall-cmd --reload"
            )
        elif not await _accepts(run, path, links):
            warnings.append(
                f"the chain {path} drops instances' packets: "
                f'nft \'insert rule {path} iifname "{links}*" accept; '
                f'insert rule {path} oifname "{links}*" accept\''
            )
    return warnings


async def _is_open(run: Run, path: str, mark: str) -> bool:
    listing = await run(f"list chain {path}", "list a chain")
    return any(entry.get("rule", {}).get("comment") == mark for entry in listing)


async def _accepts(run: Run, path: str, links: str) -> bool:
    """Whether the chain has the rules that we advise."""
    text = json.dumps(await run(f"list chain {path}", "list a chain"))
    return f'"right": "{links}*"' in text


async def _closes(run: Run, chain: dict[str, Any]) -> bool:
    """Whether a base chain drops packets by default."""
    if chain.get("policy") == "drop":
        return True
    listing = await run(f"list chain {_path(chain)}", "list a chain")
    rules = [entry["rule"]["expr"] for entry in listing if "rule" in entry]
    if not rules:
        return False
    *conditions, verdict = rules[-1]
    is_drop = (
        not verdict.keys().isdisjoint({"drop", "reject"})
        or (verdict.get("xt") or {}).get("name") == "REJECT"
    )
    return is_drop and all(part.keys() <= {"counter", "log"} for part in conditions)


def close_others(mark: str) -> None:
    """Remove every rule with this mark. Blocks. Raises Failed."""
    for chain in _chains(_run_now("list chains")):
        path = _path(chain)
        if path not in ("ip filter FORWARD", "ip filter DOCKER-USER"):
            continue
        for entry in _run_now(f"list chain {path}"):
            if entry.get("rule", {}).get("comment") == mark:
                _run_now(f"delete rule {path} handle {entry['rule']['handle']}")
    _close_legacy(mark)


def _chains(listing: Listing) -> list[dict[str, Any]]:
    return [entry["chain"] for entry in listing if "chain" in entry]


def _path(chain: dict[str, Any]) -> str:
    return f"{chain['family']} {chain['table']} {chain['name']}"


def _run_now(commands: str) -> Listing:
    [answer] = nethelper.ask_once(nethelper.rules(commands))
    return nethelper.read_rules(answer, "read the rules of others")


def _has_legacy() -> bool:
    """Whether iptables-legacy has a filter table here, which netlink does not show."""
    try:
        return "filter" in _LEGACY_TABLES.read_text().split()
    except OSError:
        return False


def open_legacy(links: str, mark: str) -> None:
    """The same for iptables-legacy. Waits. Raises Failed."""
    if not _has_legacy():
        return
    if not shutil.which("iptables-legacy"):
        _log.warning("there are rules of iptables-legacy, which is not installed: if they drop "
                     "forwarded packets, instances have no network; install iptables")  # fmt: skip
        return
    rules = _legacy("-S").splitlines()
    docker = "-N DOCKER-USER" in rules
    forward = [line for line in rules if line.startswith(("-P FORWARD", "-A FORWARD"))]
    closes = "-P FORWARD DROP" in forward or forward[-1] in (
        "-A FORWARD -j DROP", "-A FORWARD -j REJECT --reject-with icmp-port-unreachable",
        "-A FORWARD -j REJECT --reject-with icmp-host-prohibited",
    )  # fmt: skip
    if not (docker or closes):
        return
    chain = "DOCKER-USER" if docker else "FORWARD"
    for direction in ("-i", "-o"):
        _legacy(
            "-I", chain, direction, f"{links}+", "-m", "comment", "--comment", mark, "-j", "ACCEPT"
        )


def _close_legacy(mark: str) -> None:
    if not _has_legacy() or not shutil.which("iptables-legacy"):
        return
    for line in _legacy("-S").splitlines():
        words = line.split()
        if words[0] == "-A" and ("--comment", mark) in pairwise(words):
            _legacy("-D", *words[1:])


def _legacy(*words: str) -> str:
    """Its output. Called only when the runtime starts and stops; netlink cannot answer this."""
    try:
        done = subprocess.run(
            ["iptables-legacy", "-w", "5", *words],
            capture_output=True, text=True, timeout=_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"cannot execute iptables-legacy: {error}") from error
    if done.returncode:
        raise Failed(f"iptables-legacy {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
