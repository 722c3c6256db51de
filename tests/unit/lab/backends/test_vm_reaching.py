"""Machines to the first packet: whose guest can tell of one."""

import pytest

from firstlight.errors import Unsupported
from firstlight.lab.backends import ending_at
from firstlight.lab.backends.firecracker import Firecracker
from firstlight.lab.backends.qemu import Qemu
from firstlight.lab.guests.linux import Linux
from firstlight.lab.guests.osv import Osv
from firstlight.lab.guests.probe import Probe
from firstlight.model import EndPoint

PACKET = EndPoint.FIRST_PACKET


@pytest.mark.parametrize("guest", [Probe(packet=False), Linux()])
@pytest.mark.parametrize("machine", [Qemu, Firecracker])
def test_a_guest_that_sends_ends_at_its_first_packet(
    guest: Probe | Linux, machine: type[Qemu] | type[Firecracker]
) -> None:
    backend = machine(guest)
    assert backend.end_point is not PACKET
    assert ending_at(backend, PACKET).end_point is PACKET
    assert ending_at(backend, None) is backend


@pytest.mark.parametrize(
    "backend", [Qemu(Osv("osv", "rofs")), Firecracker(Probe(packet=False), way="snapshot")]
)
def test_others_say_that_they_cannot(backend: Qemu | Firecracker) -> None:
    with pytest.raises(Unsupported, match="first packet"):
        ending_at(backend, PACKET)
