"""What a VM boots: one file per guest, with its images, its command line and its log."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from firstlight.model import EndPoint, Step

PROTOCOLS = ("disk", "kernel", "pvh", "direct")
CONSOLES = ("serial", "vga")


@dataclass(frozen=True)
class BootConfig:
    """How a hypervisor boots a guest.

    ``protocol``: ``disk`` (firmware reads a boot sector), ``kernel`` (firmware jumps into a kernel
    that the hypervisor loaded), ``pvh`` (no firmware, the PVH entry) or ``direct`` (no firmware,
    the 64-bit Linux entry). ``console`` is where the guest's own text goes; there is always a
    serial port as well, for the ready line. ``address`` is the guest's, as ADDRESS/PREFIX;
    ``gateway`` is the lab's. ``chart`` is ``console`` if the guest prints its boot chart, or
    ``memory`` if it leaves it there. With ``icount`` time is a count of instructions, and wall
    time is meaningless. ``machine`` is QEMU's machine type, ``accel`` its accelerator.
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
    """What a hypervisor needs to boot one guest.

    ``arguments`` is the kernel's command line. ``disk`` is a raw image; writes to a ``writable``
    one are private to the instance and dropped. The end point is the console line that matches
    ``ready`` (a POSIX extended regular expression). Where it is None, the end point is the exit of
    QEMU after its guest wrote ``exit_code`` to the one-byte port ``exit_port`` (isa-debug-exit:
    QEMU's status is then ``exit_code * 2 + 1``). Output after the end point is read up to a line
    that matches ``last``, for at most ten seconds from the moment when the VM is to stop. At that
    moment the guest receives an empty line on its serial console; it should wait for it, because
    its neighbours may still be starting. A guest that prints ``firstlight error TEXT`` before it is
    ready has failed. ``share`` is a directory that the guest gets by virtio-fs.
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
    """A line of the serial console without its newline, and when the host read it, in ns."""

    stamp: int
    text: str


@dataclass(frozen=True)
class Reading:
    """A parsed guest log: ``spans`` in ns of the guest's ``clock``, from its own zero.

    ``anchors`` are pairs (host, guest) of stamps of one event that the guest stamped before the
    host: a line that carries the guest's time, and its arrival. ``fault`` is a step that the guest
    skipped on its way to the end point, such as mounting its root.
    """

    clock: str
    spans: tuple[Step, ...] = ()
    anchors: tuple[tuple[int, int], ...] = ()
    fault: str | None = None


class Guest(Protocol):
    """A kind of guest with a file system: a frozen value, compared by its fields."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def filesystem(self) -> str: ...  # noqa: D102
    @property
    def end_point(self) -> EndPoint: ...  # noqa: D102

    def probe(self, config: BootConfig) -> None:
        """Raise Unsupported if it cannot be booted in this way here."""

    def boot(self, config: BootConfig, directory: Path) -> BootSpec:
        """Make or find its images, below ``directory`` (which is deleted with the batch). Untimed.

        Called for each instance of a batch with the same directory: an image that does not depend
        on ``config`` is made once.

        Raises Failed for an image that is missing, truncated or not of its kind.
        """

    def read(self, config: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        """Parse its log; ``memory`` is a file with the guest's physical memory.

        Never raises because of what a guest printed: half a log gives the spans that it has.
        """


@runtime_checkable
class PacketGuest(Protocol):
    """A guest that can send a packet to the gateway and receive the reply."""

    def to_first_packet(self) -> Guest:
        """The same guest with FIRST_PACKET as its end point."""


@dataclass(frozen=True)
class BuiltInGuest:
    """A built-in guest. ``make`` takes its file system, and whether it is verbose.

    ``filesystem`` is the only one that it has; with none, each experiment chooses.
    """

    name: str
    make: Callable[[str, bool], Guest]
    filesystem: str = ""
