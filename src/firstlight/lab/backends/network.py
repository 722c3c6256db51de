"""A container's network without a container, as in the paper's section II-B.

``netsetup`` makes one request: a network namespace, a veth pair, one end moved into the namespace,
both ends up, an address, the routes; each step is stamped. It uses the ``ip`` command, as a user
would, or netlink within one process. ``TRICKS`` are ways to make it faster.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from firstlight.errors import WITH_ADMIN, WITH_SUDO, Failed, Unsupported
from firstlight.host.commands import run
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Execute, Prepared
from firstlight.model import EndPoint
from firstlight.native import native

METHODS = ("ip", "netlink")
CROWD = 256
GATEWAY = IPv4Address("10.88.0.1")
_GATEWAY6 = IPv6Address("fd88::1")
_NAMED = Path("/run/netns")
_IPV6_OFF = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
_LOOPBACK = 1


@dataclass(frozen=True)
class Trick:
    """A way to set up a network: arguments of ``netsetup``, and the state of the host."""

    sentence: str
    flags: tuple[str, ...] = ()
    has_address6: bool = False
    is_crowded: bool = False
    is_pruned: bool = False


TRICKS = {
    "none": Trick("The plain request, by netlink, with the namespace named in /run/netns."),
    "veth in place": Trick(
        "The container's end of the veth is created in its namespace, so nothing is moved.",
        ("--in-place",),
    ),
    "IPv6 off": Trick(
        "IPv6 is disabled in the namespace and on the host's end before the links exist.",
        ("--no-ipv6",),
    ),
    "DAD on": Trick(
        "The container also gets an IPv6 address, and is ready after duplicate address detection.",
        has_address6=True,
    ),
    "DAD off": Trick(
        "The container also gets an IPv6 address, usable at once.",
        ("--no-dad",),
        has_address6=True,
    ),
    "namespace by descriptor": Trick(
        "An open descriptor keeps the namespace, without a mount in /run/netns.",
        ("--by-descriptor",),
    ),
    "crowded mounts": Trick(
        f"A mount namespace follows, copied from one with {CROWD} named network namespaces.",
        ("--mount-ns",),
        is_crowded=True,
    ),
    "pruned mounts": Trick(
        f"A mount namespace follows, copied from one without the host's {CROWD} named network "
        "namespaces.",
        ("--mount-ns",),
        is_crowded=True,
        is_pruned=True,
    ),
    "all": Trick(
        "Veth in place, IPv6 off and namespace by descriptor, combined.",
        ("--in-place", "--no-ipv6", "--by-descriptor"),
    ),
}


@dataclass(frozen=True)
class NetworkSetup:
    """One request per instance, by a ``method`` of METHODS, with a ``trick`` of TRICKS."""

    method: str = "netlink"
    trick: str = "none"
    name: str = "network"
    end_point: EndPoint = EndPoint.REQUEST_DONE
    note: str | None = None

    def probe(self) -> None:
        """Needs root, ``ip``, and a kernel with network namespaces and veth."""
        if os.geteuid() != 0:
            raise Unsupported("setting up networks needs root", WITH_SUDO)
        for program, package in (("ip", "iproute2"), ("unshare", "util-linux")):
            if not shutil.which(program):
                raise Unsupported(f"{program} is not installed", f"apt-get install {package}")
        try:
            run("unshare", "--net", "ip", "link", "add", "fl-p", "type", "veth", "peer", "fl-q")
        except Failed as error:
            raise Unsupported(
                f"cannot make a veth pair in a network namespace: {error.message}",
                WITH_ADMIN if os.strerror(errno.EPERM) in error.message else
                "use a kernel with CONFIG_NET_NS and CONFIG_VETH; modprobe veth",
            ) from error  # fmt: skip

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A host with a gateway address and an empty /run/netns."""
        trick = TRICKS[self.trick]
        with ExitStack() as cleanup:
            cleanup.enter_context(_gateway())
            cleanup.enter_context(private_names())
            flags = trick.flags
            if "--no-ipv6" in flags:
                cleanup.enter_context(ipv6_off_on_new_links())
            if trick.is_crowded:
                _crowd()
            if trick.is_pruned:
                flags += ("--mounts", str(cleanup.enter_context(_pruned_mounts())))
            names = [f"fl{index}" for index in range(instances)]
            cleanup.callback(_delete_links, {f"{name}-{end}" for name in names for end in "hc"})
            program = str(native("netsetup"))
            yield Prepared(
                [
                    Execute(
                        (program, "--method", self.method, "--name", name, *flags,
                         *_addresses(index, trick.has_address6)),
                        workspace.environment,
                    )
                    for index, name in enumerate(names)
                ]
            )  # fmt: skip


def _addresses(index: int, has_address6: bool) -> tuple[str, ...]:
    own = ("--address", str(GATEWAY + 1 + index), "--gateway", str(GATEWAY))
    return (*own, "--address6", str(_GATEWAY6 + 1 + index)) if has_address6 else own


@contextmanager
def _gateway() -> Iterator[None]:
    """An address of the host, on no particular link, that every container can reach."""
    with IPRoute() as netlink:
        netlink.addr("replace", index=_LOOPBACK, address=str(GATEWAY), prefixlen=32)
        try:
            yield
        finally:
            netlink.addr("del", index=_LOOPBACK, address=str(GATEWAY), prefixlen=32)


@contextmanager
def private_names() -> Iterator[None]:
    """An empty /run/netns, shared among mount namespaces, as ``ip netns`` makes it.

    Unmounting it removes the names left by killed starts. The directory itself stays, as after
    any ``ip netns``: another run may have mounted on it.
    """
    _NAMED.mkdir(mode=0o755, parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "firstlight", str(_NAMED))
    try:
        run("mount", "--make-shared", str(_NAMED))
        yield
    finally:
        run("umount", "--lazy", str(_NAMED))


@contextmanager
def ipv6_off_on_new_links() -> Iterator[None]:
    """Disable IPv6 on new links of this network namespace, within the context."""
    if not _IPV6_OFF.exists():
        yield
        return
    before = _IPV6_OFF.read_text()
    _IPV6_OFF.write_text("1")
    try:
        yield
    finally:
        _IPV6_OFF.write_text(before)


def _crowd() -> None:
    """Name this network namespace many times: the mounts are what costs."""
    lines = (f"netns attach crowd{index} {os.getpid()}\n" for index in range(CROWD))
    run("ip", "-batch", "-", text="".join(lines))


@contextmanager
def _pruned_mounts() -> Iterator[Path]:
    """A mount namespace without the names in /run/netns, for ``netsetup`` to enter."""
    script = (
        f"umount --lazy {_NAMED} && mount -t tmpfs -o mode=0755 firstlight {_NAMED} && "
        f"mount --make-shared {_NAMED} && echo made && read -r _"
    )
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        if holder.stdout.readline() != b"made\n":
            raise Failed("cannot make a mount namespace without named network namespaces")
        yield Path(f"/proc/{holder.pid}/ns/mnt")


def _delete_links(names: set[str]) -> None:
    with IPRoute() as netlink:
        for link in netlink.get_links():
            if link.get("ifname") in names:
                try:
                    netlink.link("del", index=link["index"])
                except NetlinkError as error:  # it went with its peer, or with the peer's namespace
                    if error.code != errno.ENODEV:
                        raise
