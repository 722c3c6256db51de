"""The built-in guests, by name."""

from firstlight.lab.guests import BuiltInGuest, linux, probe

ALL: dict[str, BuiltInGuest] = {guest.name: guest for guest in (probe.BUILT_IN, linux.BUILT_IN)}
VERBOSE = "-verbose"
"""Suffix of such a name: the guest prints as much as a kernel does by default."""
NAMES = (*ALL, *(f"{name}{VERBOSE}" for name in ALL))
"""Every name that no other guest can have."""
