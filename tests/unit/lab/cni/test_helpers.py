"""Helper programs: iptables, an address plugin, a compiler."""

import numpy as np
import pytest

from firstlight.analysis import attribution, phases
from firstlight.analysis.attribution import NEUTRAL, PHASE

START, IPAM, FIREWALL, STORE, ROUTE = (
    PHASE[name] for name in ("process.start", "ipam", "firewall", "datastore", "route")
)


@pytest.mark.parametrize(
    ("program", "phase"),
    [
        ("/opt/cni/bin/host-local", "ipam"),
        ("/opt/cni/bin/calico-ipam", "ipam"),
        ("/usr/sbin/iptables", "firewall"),
        ("/usr/sbin/iptables-nft-restore", "firewall"),
        ("/usr/bin/clang-14", "ebpf"),
        ("/usr/sbin/tc", "ebpf"),
        ("/opt/cni/bin/bridge", None),
        ("/usr/bin/dhcpcd", None),
        ("/usr/bin/ip", None),
    ],
)
def test_a_helper_is_known_by_its_name(program: str, phase: str | None) -> None:
    assert phases.of_helper(program) == phase


def test_helper_time_excludes_daemon_requests() -> None:
    starts = np.array([0, 10, 20, 30, 40])
    codes = np.array([ROUTE, START, STORE, ROUTE, ROUTE])
    gaps = np.array([ROUTE, START, STORE, STORE, START])
    programs = [(5, IPAM), (35, NEUTRAL)]
    charged, before = attribution.helped(starts, codes, gaps, programs)
    assert charged.tolist() == [ROUTE, IPAM, STORE, IPAM, ROUTE]
    assert before.tolist() == [ROUTE, IPAM, STORE, STORE, START]


def test_the_latest_program_decides() -> None:
    starts = np.array([10, 20])
    codes = gaps = np.array([START, START])
    charged, _ = attribution.helped(starts, codes, gaps, [(5, IPAM), (15, FIREWALL)])
    assert charged.tolist() == [IPAM, FIREWALL]
