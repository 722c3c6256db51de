"""Errors of functions, their code and requests, each kind a class."""

from firstlight.errors import Failed


class NotFound(Failed):
    """No such function, version or alias."""


class Conflict(Failed):
    """A function or alias of that name exists, or has changed meanwhile."""


class Changed(Conflict):
    """The revision is not the expected one."""


class Invalid(Failed):
    """A parameter is out of range or malformed."""


class TooLarge(Failed):
    """Code, an event or an answer exceeds its limit."""


class BadCode(Failed):
    """Code is refused. ``kind`` is the unpacker's name for the reason."""

    kind = "bad"


class NotAnArchive(BadCode):
    """The file is not of the expected kind: zip file, tar file, WebAssembly or image."""

    kind = "format"


class Truncated(BadCode):
    """A layer or archive ends too early."""

    kind = "truncated"


class WrongDigest(BadCode):
    """Content does not match its digest."""

    kind = "digest"


class ClimbsOut(BadCode):
    """A path or hard link leads out of the root file system."""

    kind = "climbs"


class DeviceNode(BadCode):
    """A device node outside /dev."""

    kind = "device"


class WrongArchitecture(BadCode):
    """The image is for another processor or operating system."""

    kind = "architecture"


class Bomb(BadCode):
    """Unpacked, it has more bytes or files than allowed."""

    kind = "bomb"


class DiskFull(BadCode):
    """The disk of the store is full."""

    kind = "full"


class NoImage(BadCode):
    """The registry, layout or archive has no such image, or cannot be reached."""

    kind = "image"


BY_KIND = {
    error.kind: error
    for error in (BadCode, NotAnArchive, Truncated, WrongDigest, ClimbsOut, DeviceNode,
                WrongArchitecture, Bomb, DiskFull, NoImage)
}  # fmt: skip
