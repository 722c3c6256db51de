"""A function as registered with the node: its record, its identity, its root."""

import os
from pathlib import Path

from firstlight.agile import coding
from firstlight.agile.config import Config
from firstlight.agile.environment import HOST_NAME
from firstlight.agile.function import Function
from firstlight.agile.node import wire
from firstlight.agile.node.registry import Registered
from firstlight.agile.node.wire import Flag
from firstlight.agile.parts import roots, volumes
from firstlight.agile.parts.shelves import quota
from firstlight.errors import Failed

WITHOUT_NETLINK = 2
"""From the number of a seccomp profile to that of the one which allows no netlink."""


def encode(entry: Registered, function: Function, profile: int, flags: Flag, uid: int) -> bytes:
    """The node's record of a function. If the function names neither user nor group, both are
    ``uid``. ``profile`` is the number of a seccomp profile that allows netlink.
    """
    if not function.netlink:
        profile += WITHOUT_NETLINK
    # networks with a listening socket are not reused
    given = function.ports or function.serves == "events"
    reuse = "none" if given else function.reuse
    return wire.DEFINITION.pack(
        entry.number, entry.version, flags, profile, wire.REACHES.index(function.network),
        wire.REUSES.index(reuse), function.uid or uid, function.gid or uid,
        function.files, function.scratch, function.memory, quota(function.cpus), function.pids,
        HOST_NAME.encode(),
    )  # fmt: skip


def note(entry: Registered) -> bytes:
    """A function's record for the next manager, read by ``Registry.adopt``."""
    return coding.encode((entry.function, entry.digest))


def flags_of(function: Function, config: Config) -> Flag:
    """How its instances are made. Raises Failed if two of its options exclude each other."""
    flags = Flag.USER_NAMESPACE if function.user_namespace else Flag(0)
    flags |= Flag.TERMINALS if function.terminals else Flag(0)
    flags |= Flag.VOLUMES if function.volumes or function.secrets else Flag(0)
    if "refuse" in (config.pools.network.dry, config.pools.cgroup.dry):
        flags |= Flag.REFUSES
    if config.identities.each == "instance" and function.uid is None:
        flags |= Flag.OWN_IDENTITY
    if flags & Flag.VOLUMES and flags & (Flag.OWN_IDENTITY | Flag.USER_NAMESPACE):
        raise Failed("instances with users of their own, or a user namespace, have no "
                     "volumes and no secrets", "use identities.each function")  # fmt: skip
    return flags


def identity(number: int, flags: Flag, config: Config) -> int:
    """The user of the function with that number; if each instance has one, that of the first."""
    identities = config.identities
    own = Flag.OWN_IDENTITY in flags
    return identities.first_of_instances if own else identities.first + number


def root(function: Function, directory: Path, uid: int = -1) -> int:
    """The function's root as a detached tree. May wait for the disk. Raises Failed.

    ``directory`` is the runtime's own; a command that ``uid`` cannot execute fails.
    """
    rootfs = Path(function.rootfs)
    with roots.readable(function.rootfs):
        tree = roots.open_root(rootfs, directory / "skeleton")
        try:
            roots.check_command(rootfs, function.command[0], uid, function.directory)
        except BaseException:
            os.close(tree)
            raise
    return tree


def tree(function: Function, directory: Path, uid: int) -> int:
    """The function's root with its volumes and secrets, for that user. Raises Failed."""
    user, group = function.uid or uid, function.gid or uid
    bare = root(function, directory, user)
    if not function.volumes and not function.secrets:
        return bare
    return volumes.mount(bare, function, user, group, directory / "volumes")
