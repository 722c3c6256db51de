"""What a VM boots: one file each, which knows its images, its command line and its own log."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from firstlight.model import EndPoint, Step

PROTOCOLS = ("disk", "kernel", "pvh", "direct")
CONSOLES = ("serial", "vga")


@dataclass(frozen=True)
class BootConfig:
    """How a hypervisor will boot a guest.

    ``protocol``: ``disk`` (firmware reads a boot sector), ``kernel`` (firmware jumps into a kernel
    that the hypervisor loaded), ``pvh`` (no firmware, the PVH entry) or ``direct`` (no firmware,
    the 64-bit Linux entry). ``console`` is where the guest's own text goes; a serial port is there
    in any case, for the line that says ready. ``address`` is the guest's, as ADDRESS/PREFIX; the
    lab is ``gateway``. ``chart`` says whether the guest prints its boot chart or leaves it in
    ``memory``. ``icount``: time is instruction-counted, and a wall clock means nothing.
    ``machine`` is QEMU's type of machine and ``accel`` what runs it.
    """

    protocol: str = "pvh"
    console: str = "serial"
    address: str = "172.31.0.2/16"
    gateway: str = "172.31.0.1"
    chart: str = "console"
    icount: bool = False
    machine: str = ""
    accel: str = ""


@dataclass(frozen=True)
class BootSpec:
    """What a hypervisor is given to boot one guest.

    ``arguments`` is the kernel's command line. ``disk`` is a raw image; what an instance writes to
    a ``writable`` one is its own and is dropped. The end point is the console line that ``ready``
    (a POSIX extended regular expression) finds, or, where it is None, the exit of a QEMU whose
    guest wrote ``exit_code`` to the one-byte port ``exit_port`` (isa-debug-exit: QEMU's status is
    then ``exit_code * 2 + 1``). What a guest has to say after that is heard up to the console line
    that ``last`` finds, for at most ten seconds once the machine is to stop; the guest then reads
    an empty line on its serial console, and had better wait for it: its neighbours may still start.
    One that prints ``firstlight error TEXT`` before it is ready has failed. ``share`` is a
    directory that the guest gets by virtio-fs.
    """

    kernel: Path | None = None
    initrd: Path | None = None
    arguments: str = ""
    disk: Path | None = None
    writable: bool = False
    ready: str | None = None
    exit_port: int | None = None
    exit_code: int | None = None
    last: str | None = None
    share: Path | None = None


@dataclass(frozen=True)
class Line:
    """A line of the serial console without its end, and when the host read that, in ns."""

    stamp: int
    text: str


@dataclass(frozen=True)
class Reading:
    """What a guest's log says: ``spans`` in ns of the guest's ``clock``, from its own zero.

    ``anchors`` are pairs (host, guest) of stamps of one event, each of which the guest stamped
    before the host did: a line that bears the guest's time, and its arrival. ``fault`` is what a
    guest that came to its end point left out on the way, such as its root.
    """

    clock: str
    spans: tuple[Step, ...] = ()
    anchors: tuple[tuple[int, int], ...] = ()
    fault: str | None = None


class Guest(Protocol):
    """One kind of guest with one file system: a frozen value, compared by its fields."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def filesystem(self) -> str: ...  # noqa: D102
    @property
    def end_point(self) -> EndPoint: ...  # noqa: D102

    def probe(self, config: BootConfig) -> None:
        """Raise Unsupported, with a hint, if it cannot be booted so from here."""

    def boot(self, config: BootConfig, directory: Path) -> BootSpec:
        """Make or find its images, below ``directory`` (which dies with the batch). Untimed.

        Called for each instance of a batch with the one directory: an image that does not differ
        by ``config`` is made once.

        Raises Failed for an image that is missing, truncated or not of its kind.
        """

    def read(self, config: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        """Its own log as spans; ``memory`` is a file that holds the guest's physical memory.

        Never raises for what a guest printed: half a log gives the spans that it has.
        """


@runtime_checkable
class PacketGuest(Protocol):
    """A guest that can send a packet to the gateway and hear its answer."""

    def to_first_packet(self) -> Guest:
        """The same with FIRST_PACKET as its end point."""
