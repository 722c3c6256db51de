"""The registry's records of functions, as stored."""

from msgspec import UNSET, Struct, UnsetType

from firstlight.agile.function import Reach, Volume
from firstlight.agile.functions.version import FunctionVersion, Kind

LATEST = "$LATEST"
TRANSPORTS = ("docker://", "oci:", "docker-archive:")


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function's settings; UNSET ones are unchanged, or get their defaults.

    ``command`` is the argument vector of kinds ``command`` and ``http``. For an image,
    ``entrypoint``, ``arguments`` and ``directory`` replace the image's own, unless they are empty.
    Sizes are in bytes, times in seconds. From ``runtime`` on they are kept to be shown, and mean
    nothing here.
    """

    kind: Kind | UnsetType = UNSET
    handler: str | UnsetType = UNSET
    command: tuple[str, ...] | UnsetType = UNSET
    entrypoint: tuple[str, ...] | UnsetType = UNSET
    arguments: tuple[str, ...] | UnsetType = UNSET
    environment: dict[str, str] | UnsetType = UNSET
    directory: str | UnsetType = UNSET
    memory: int | UnsetType = UNSET
    scratch: int | UnsetType = UNSET
    cpus: float | UnsetType = UNSET
    pids: int | UnsetType = UNSET
    timeout: float | UnsetType = UNSET
    keep_warm: float | UnsetType = UNSET
    warm: int | UnsetType = UNSET
    per_instance: int | UnsetType = UNSET
    network: Reach | UnsetType = UNSET
    netlink: bool | UnsetType = UNSET
    port: int | UnsetType = UNSET
    volumes: tuple[Volume, ...] | UnsetType = UNSET
    secrets: dict[str, str] | UnsetType = UNSET
    runtime: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    role: str | UnsetType = UNSET
    tracing: str | UnsetType = UNSET
    logging: dict[str, str] | UnsetType = UNSET
    snap_start: str | UnsetType = UNSET
    kms_key: str | UnsetType = UNSET


class ImageSettings(Struct, rename="pascal", frozen=True):
    """How to run an image's command."""

    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    env: list[str] | None = None
    working_dir: str | None = None


class ImageSource(Struct, frozen=True, tag="image"):
    """An image: ``docker://…``, ``oci:…`` or ``docker-archive:…``."""

    image: str


class ZipSource(Struct, frozen=True, tag="zip"):
    """A zip file: its path on the node, or its bytes."""

    path: str = ""
    data: bytes = b""


class DirectorySource(Struct, frozen=True, tag="directory"):
    """A directory on the node, or some names in it. ``root``: whether it is a whole root file
    system; None: if it has the function's program.
    """

    path: str
    names: tuple[str, ...] = ()
    root: bool | None = None


class ModuleSource(Struct, frozen=True, tag="wasm"):
    """A WebAssembly module's file on the node."""

    path: str


Source = ImageSource | ZipSource | DirectorySource | ModuleSource


class Code(Struct, frozen=True, kw_only=True):
    """A function's code: its source, and the trees that hold it, the lowest first.

    ``base``: the trees lie over the host's own /usr. ``module`` is a WebAssembly module's path in
    its tree. ``blobs`` are digests of the image.
    """

    source: str
    digest: str
    size: int
    trees: tuple[int, ...]
    base: bool = False
    module: str = ""
    blobs: tuple[str, ...] = ()


class Revision(Struct, frozen=True, kw_only=True):
    """One state of a function, which never changes. ``version.root`` is not stored.

    ``number`` is unique among all revisions. ``image`` is how the image says to run it. ``points``
    are the paths that its root needs for its volumes and secrets, and to work in; those of
    directories end with a slash.
    """

    number: int
    version: FunctionVersion
    code: Code
    settings: Settings
    image: ImageSettings | None = None
    modified: float = 0.0
    points: tuple[str, ...] = ()


class Alias(Struct, frozen=True, kw_only=True):
    """A name for a version."""

    name: str
    version: str
    description: str = ""
    revision: int = 0


class Provisioned(Struct, frozen=True):
    """How many instances of a version or an alias are always kept, and since when."""

    instances: int
    modified: float


class Registration(Struct, frozen=True, kw_only=True):
    """A function: its versions by name, including ``$LATEST``, and its aliases.

    ``provisioned`` is keyed by the names of versions and aliases. ``born`` is the number of its
    first revision, by which it differs from one that had its name before.
    """

    name: str
    revisions: dict[str, Revision]
    aliases: dict[str, Alias] = {}
    concurrency: int | None = None
    queue: int = 0
    owner: str = ""
    published: int = 0
    tags: dict[str, str] = {}
    provisioned: dict[str, Provisioned] = {}
    born: int = 0

    @property
    def latest(self) -> Revision:
        """The revision of ``$LATEST``."""
        return self.revisions[LATEST]

    def warm(self, version: FunctionVersion) -> int:
        """How many instances of a version are always kept."""
        named = {version.version, *(
            each.name for each in self.aliases.values() if each.version == version.version
        )}  # fmt: skip
        kept = [each.instances for name, each in self.provisioned.items() if name in named]
        return max((version.warm, *kept))


class Event(Struct, frozen=True, kw_only=True):
    """An accepted asynchronous event. ``qualifier`` is the caller's, ``born`` its function's."""

    id: str
    name: str
    qualifier: str
    payload: bytes
    context: bytes | None = None
    trace: str | None = None
    accepted: float
    attempts: int = 0
    due: float = 0.0
    born: int = 0
