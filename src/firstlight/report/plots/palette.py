"""The colours of phases, steps, causes and series, the same in every picture and table.

Based on the colour-blind-safe sets of Okabe & Ito (2008) and Paul Tol (2021), moved to middle
luminance to be legible on white and on black, and ordered so that neighbours in a stack differ in
lightness. Imports no drawing library, because the terminal uses it too.
"""

from collections.abc import Sequence

PHASES = {
    "process.start": "#5f7189",
    "signals": "#c9a09c",
    "fork": "#a9784f",
    "config": "#8d6cab",
    "ns.net": "#d55e00",
    "ns.mount": "#f0a45d",
    "ns.other": "#d6b56b",
    "mount": "#2b7bb9",
    "cgroup": "#6bbce8",
    "security": "#0a9b76",
    "handshake": "#a3ad55",
    "sleep": "#b9bec7",
    "compute": "#7d8f3f",
    "exec": "#cc79a7",
    "veth": "#dcae1d",
    "veth.move": "#b23a6b",
    "netns.switch": "#c99275",
    "netns.name": "#ecb48a",
    "link.up": "#58a6bf",
    "host.up": "#3388a8",
    "container.up": "#93c7d6",
    "address": "#3f9b6c",
    "ipam": "#3f9b6c",
    "route": "#a0cf98",
    "link.sysctl": "#c5bf62",
    "link.query": "#86a7a0",
    "rename": "#b59a3c",
    "bridge": "#7a6fb0",
    "garp": "#e07b91",
    "firewall": "#b24c4c",
    "datastore": "#6b9139",
    "ebpf": "#e5a3c8",
    "process.exit": "#7d6480",
    "hypervisor.init": "#3b5f8f",
    "firmware": "#8fa3c4",
    "kernel.load": "#b0784a",
    "kernel.uncompress": "#e2b48f",
    "kernel.init": "#4f8f7c",
    "net.init": "#8fcf86",
    "pci": "#7757a8",
    "driver.console": "#d96a1f",
    "driver.block": "#efb15a",
    "driver.net": "#a98d2c",
    "driver.rng": "#ecd08a",
    "driver.other": "#c99292",
    "request": "#7f9fb0",
    "schedule": "#d8897a",
    "kubelet.watch": "#c3b1dd",
    "kubelet.sync": "#9a86c9",
    "kubelet.relist": "#b9c4cf",
    "image.fetch": "#5f7a2e",
    "image.unpack": "#b3a83c",
    "image": "#8d9b4a",
    "cni": "#e3bd4f",
    "shim": "#4d7d8c",
    "sandbox.netns": "#b06a2c",
    "sandbox.runtime": "#d07f3f",
    "sandbox.other": "#f2c79b",
    "container.create": "#86b0d6",
    "container.runtime": "#3f7fb0",
    "container.other": "#a9cbe0",
    "status": "#6f9f8f",
    "api": "#c06f9f",
    "packet": "#4aa3c4",
    "guest.other": "#93979e",
    "unattributed": "#a6a6a6",
}
STEPS = {
    "netns": PHASES["ns.net"],
    "move": PHASES["veth.move"],
    "between steps": PHASES["unattributed"],
}
SPARE = ("#7c8f3a", "#9d7fc1", "#c46f4a", "#4f9c9c", "#b88aa0", "#8a8f5f", "#6f87c9")

CAUSES = {
    "on CPU": "#4477aa",
    "waiting for a CPU": "#d4b83a",
    "lock": "#aa3377",
    "RCU": "#e8667a",
    "I/O": "#3a9452",
    "another process": "#66bbdd",
    "kernel worker": "#8f7fc4",
    "sleep": "#b5b5b5",
    "load generator": "#c99275",
    "other": "#8a8a8a",
}

SERIES = ("#4477aa", "#e07b39", "#3a9452", "#aa3377", "#66bbdd", "#d4b83a", "#e8667a", "#8a8a8a")
GROWTH = ("#d9a321", "#e0703c", "#cf4d6f", "#9a55b0", "#5a68c4", "#3d8fc4", "#3fa58c")
"""Colours from few instances to many."""


def part(name: str) -> str:
    """The colour of a phase or a step."""
    return parts([name])[name]


def parts(names: Sequence[str]) -> dict[str, str]:
    """A colour for each phase or step of a picture; unknown names get spare colours in turn."""
    known = PHASES | STEPS
    unknown = [name for name in names if name not in known]
    spare = {name: SPARE[place % len(SPARE)] for place, name in enumerate(unknown)}
    return {name: known.get(name) or spare[name] for name in names}


def opacity(shade: str) -> float:
    """The opacity of a shade: pale around a phase's system calls, else full."""
    return 0.55 if shade == "around" else 1.0


def cause_class(cause: str) -> str:
    """The kind of a cause: ``lock: rtnl_mutex (rtnl_newlink)`` is a ``lock``."""
    if cause.startswith("another "):
        return "another process"
    if cause.startswith("kernel"):
        return "kernel worker"
    kind = cause.partition(":")[0].partition(" (")[0]
    return kind if kind in CAUSES else "other"


def series(names: Sequence[str]) -> dict[str, str]:
    """A colour for each series, by position."""
    return {name: SERIES[place % len(SERIES)] for place, name in enumerate(names)}


def growth(counts: Sequence[int]) -> list[str]:
    """A colour for each number of instances, spread from few to many."""
    last = max(len(counts) - 1, 1)
    return [GROWTH[round(place * (len(GROWTH) - 1) / last)] for place in range(len(counts))]
