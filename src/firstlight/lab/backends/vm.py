"""Shared by the hypervisors: taps for guests, ``vmrun``, and its log."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface
from pathlib import Path

from pyroute2 import IPRoute

from firstlight.errors import Unsupported
from firstlight.host.workspace import Workspace
from firstlight.lab.backends.network import ipv6_off_on_new_links
from firstlight.lab.guests import BootConfig, BootSpec, Guest, Line, PacketGuest, clock
from firstlight.model import GuestLog
from firstlight.native import native

_BRIDGE = "flvm"
_GATEWAY = IPv4Interface("172.31.0.1/16")
_TUN = Path("/dev/net/tun")
_RECORD = re.compile(r"(\d{1,18})([ ~=])(.*)")
_CONSOLE_CHARACTERS = 4096


@dataclass(frozen=True)
class Port:
    """A guest's port: a tap on the lab's bridge, and the guest's addresses."""

    tap: str
    mac: str
    address: str


@dataclass(frozen=True)
class Log:
    """vmrun's log of one start. ``entered`` is when the guest's first instruction ran.

    ``ended`` is when the hypervisor's process was gone.
    """

    lines: tuple[Line, ...]
    entered: int | None
    ended: int | None = None


def to_first_packet(guest: Guest) -> Guest:
    """The guest with FIRST_PACKET as its end point. Raises Unsupported."""
    if not isinstance(guest, PacketGuest):
        raise Unsupported(f"the guest {guest.name} cannot report its first packet",
                          "use the guest probe, or leave out --end-point")  # fmt: skip
    return guest.to_first_packet()


def probe_taps() -> None:
    """Raise Unsupported if no tap can be made."""
    if not _TUN.exists():
        raise Unsupported(f"cannot make taps: {_TUN} is missing", "modprobe tun")


@contextmanager
def batch(
    workspace: Workspace, instances: int, devices: Sequence[str]
) -> Iterator[tuple[Path, list[Port]]]:
    """A directory for a batch's VMs, and a port for each, with a tap if one has a ``net``."""
    directory = workspace.directory / "vm"
    with ExitStack() as cleanup:
        directory.mkdir()
        cleanup.callback(shutil.rmtree, directory)
        taps = plugged(instances) if "net" in devices else nullcontext(ports(instances))
        yield directory, cleanup.enter_context(taps)


@contextmanager
def plugged(instances: int) -> Iterator[list[Port]]:
    """A bridge with the gateway's address, and a tap for each instance.

    For use inside the lab's network namespace.
    """
    with IPRoute() as netlink, ipv6_off_on_new_links(), ExitStack() as cleanup:
        netlink.link("add", ifname=_BRIDGE, kind="bridge")
        [bridge] = netlink.link_lookup(ifname=_BRIDGE)
        cleanup.callback(netlink.link, "del", index=bridge)
        netlink.addr(
            "add", index=bridge, address=str(_GATEWAY.ip), prefixlen=_GATEWAY.network.prefixlen
        )
        netlink.link("set", index=bridge, state="up")
        for port in (batch_ports := ports(instances)):
            netlink.link("add", ifname=port.tap, kind="tuntap", mode="tap")
            [tap] = netlink.link_lookup(ifname=port.tap)
            cleanup.callback(netlink.link, "del", index=tap)
            netlink.link("set", index=tap, master=bridge, state="up")
        yield batch_ports


def ports(instances: int) -> list[Port]:
    """The port of each instance, with or without a tap."""
    return [
        Port(
            f"{_BRIDGE}{index}",
            f"52:54:00:f1:{index >> 8:02x}:{index & 0xFF:02x}",
            f"{_GATEWAY.ip + 1 + index}/{_GATEWAY.network.prefixlen}",
        )
        for index in range(instances)
    ]


def config_at(config: BootConfig, port: Port) -> BootConfig:
    """The configuration for the guest at a port."""
    return replace(config, address=port.address, gateway=str(_GATEWAY.ip))


def under_vmrun(boot: BootSpec, log: Path, *options: str) -> tuple[str, ...]:
    """The arguments of vmrun for a guest's end point; the hypervisor's follow.

    Raises Failed if vmrun is not built.
    """
    end: tuple[str, ...] = ("--ready", boot.ready) if boot.ready is not None else ()
    if boot.exit_port is not None:
        end += ("--exit", str((boot.exit_code or 0) * 2 + 1 & 0xFF))
    if boot.last is not None:
        end += ("--last", boot.last)
    return (str(native("vmrun")), "--log", str(log), *end, *options, "--")


def read_log(file: Path) -> Log:
    """vmrun's log; empty if the start did not come that far."""
    if not file.exists():
        return Log((), None)
    lines: list[Line] = []
    unfinished: Line | None = None
    words: dict[str, int] = {}
    for record in file.read_bytes().decode(errors="replace").split("\n"):
        match = _RECORD.fullmatch(record)
        if match and match[2] == " ":
            lines.append(Line(int(match[1]), match[3]))
            unfinished = None
        elif match and match[2] == "~":
            unfinished = Line(int(match[1]), match[3])
        elif match:
            words[match[3]] = int(match[1])
    if unfinished:
        lines.append(unfinished)
    return Log(tuple(lines), words.get("entered"), words.get("ended"))


def guest_log(guest: Guest, config: BootConfig, file: Path, memory: Path | None) -> GuestLog:
    """The guest's log of its boot, its clock tied to the host's where possible."""
    log = read_log(file)
    reading = guest.read(config, log.lines, memory)
    if log.ended is not None and reading.spans:  # whatever it stamped precedes this
        last = (log.ended, max(span.end for span in reading.spans))
        reading = replace(reading, anchors=(*reading.anchors, last))
    offset = None if config.icount else clock.place(reading, log.entered)
    return GuestLog(
        clock=reading.clock,
        spans=reading.spans,
        offset=offset.value if offset else None,
        uncertainty=offset.uncertainty if offset else None,
        console="\n".join(line.text for line in log.lines)[-_CONSOLE_CHARACTERS:],
        fault=reading.fault,
    )
