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
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from firstlight.errors import WITH_ADMIN, WITH_SUDO, Failed, Unsupported
from firstlight.host.commands import run
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Execute, Prepared
from firstlight.lab.backends.network_steps import GATEWAY, NAMED, Container, Trick, actions
from firstlight.model import EndPoint
from firstlight.native import native

METHODS = ("ip", "netlink")
CROWD = 256
_IPV6_OFF = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
_LOOPBACK = 1


TRICKS = {
    "none": Trick("The plain request, by netlink, with the namespace named in /run/netns."),
    "veth in place": Trick(
        "The container's end of the veth is created in its namespace, so nothing is moved.",
        is_in_place=True,
    ),
    "IPv6 off": Trick(
        "IPv6 is disabled in the namespace and on the host's end before the links exist.",
        has_ipv6=False,
    ),
    "DAD on": Trick(
        "The container also gets an IPv6 address, and is ready after duplicate address detection.",
        has_address6=True,
    ),
    "DAD off": Trick(
        "The container also gets an IPv6 address, usable at once.",
        is_probed=False,
        has_address6=True,
    ),
    "namespace by descriptor": Trick(
        "An open descriptor keeps the namespace, without a mount in /run/netns.",
        is_named=False,
    ),
    "crowded mounts": Trick(
        f"A mount namespace follows, copied from one with {CROWD} named network namespaces.",
        has_mount_namespace=True,
        is_crowded=True,
    ),
    "pruned mounts": Trick(
        f"A mount namespace follows, copied from one without the host's {CROWD} named network "
        "namespaces.",
        has_mount_namespace=True,
        is_crowded=True,
        is_pruned=True,
    ),
    "all": Trick(
        "Veth in place, IPv6 off and namespace by descriptor, combined.",
        is_in_place=True,
        has_ipv6=False,
        is_named=False,
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
            if not trick.has_ipv6:
                cleanup.enter_context(ipv6_off_on_new_links())
            if trick.is_crowded:
                _crowd()
            first: tuple[str, ...] = ()
            if trick.is_pruned:
                first = ("enter", str(cleanup.enter_context(_pruned_mounts())))
            containers = [Container(number) for number in range(instances)]
            cleanup.callback(_delete_links, {end for each in containers for end in each.links})
            program = str(native("netsetup"))
            yield Prepared(
                [
                    Execute((program, *first, *actions(self.method, trick, container)),
                            workspace.environment)
                    for container in containers
                ]
            )  # fmt: skip


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
    NAMED.mkdir(mode=0o755, parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "firstlight", str(NAMED))
    try:
        run("mount", "--make-shared", str(NAMED))
        yield
    finally:
        run("umount", "--lazy", str(NAMED))


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
        f"umount --lazy {NAMED} && mount -t tmpfs -o mode=0755 firstlight {NAMED} && "
        f"mount --make-shared {NAMED} && echo made && read -r _"
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
