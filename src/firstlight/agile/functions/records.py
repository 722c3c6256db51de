"""What the registry keeps of functions, as it is stored."""

from msgspec import UNSET, Struct, UnsetType

from firstlight.agile.function import Reach, Volume
from firstlight.agile.functions.version import FunctionVersion, Kind

LATEST = "$LATEST"
TRANSPORTS = ("docker://", "oci:", "docker-archive:")


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function's settings; those that are UNSET stay as they are, or get their defaults.

    ``command`` are the words of kinds ``command`` and ``http``. For an image, ``entrypoint`` and
    ``arguments`` replace the image's own. Sizes are in bytes, times in seconds.
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
    timeout: float | UnsetType = UNSET
    keep_warm: float | UnsetType = UNSET
    warm: int | UnsetType = UNSET
    per_instance: int | UnsetType = UNSET
    network: Reach | UnsetType = UNSET
    port: int | UnsetType = UNSET
    volumes: tuple[Volume, ...] | UnsetType = UNSET
    secrets: dict[str, str] | UnsetType = UNSET
    runtime: str | UnsetType = UNSET
    role: str | UnsetType = UNSET
    description: str | UnsetType = UNSET


class ImageSettings(Struct, rename="pascal", frozen=True):
    """How an image's command is to be run."""

    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    env: list[str] | None = None
    working_dir: str = ""


class ImageSource(Struct, frozen=True, tag="image"):
    """An image: ``docker://…``, ``oci:…`` or ``docker-archive:…``."""

    image: str


class ZipSource(Struct, frozen=True, tag="zip"):
    """A zip file: its path on the node, or its bytes."""

    path: str = ""
    data: bytes = b""


class DirectorySource(Struct, frozen=True, tag="directory"):
    """A directory on the node, or some names in it. ``root``: it is a whole root file system.

    None: it is one if it has the function's program.
    """

    path: str
    names: tuple[str, ...] = ()
    root: bool | None = None


class ModuleSource(Struct, frozen=True, tag="wasm"):
    """A WebAssembly module's file on the node."""

    path: str


Source = ImageSource | ZipSource | DirectorySource | ModuleSource


class Code(Struct, frozen=True, kw_only=True):
    """Where a function's code comes from, and what holds it: trees, the lowest first.

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

    ``number`` is this one's of all revisions. ``image`` is how the image says it is to be run.
    ``points`` are paths that its root is to have for its volumes and secrets: of directories they
    end with a slash.
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
    """How many instances of a version or an alias are always kept, and since when that is so."""

    instances: int
    modified: float


class Registration(Struct, frozen=True, kw_only=True):
    """A function: its versions by their names, ``$LATEST`` among them, and its aliases.

    ``provisioned`` is by the names of versions and aliases.
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

    @property
    def latest(self) -> Revision:
        """What ``$LATEST`` is."""
        return self.revisions[LATEST]

    def warm(self, version: FunctionVersion) -> int:
        """How many instances of a version are always kept."""
        named = {version.version, *(
            each.name for each in self.aliases.values() if each.version == version.version
        )}  # fmt: skip
        kept = [each.instances for name, each in self.provisioned.items() if name in named]
        return max((version.warm, *kept))


class Event(Struct, frozen=True, kw_only=True):
    """An accepted asynchronous event. ``qualifier`` is as it was called."""

    id: str
    name: str
    qualifier: str
    payload: bytes
    context: bytes | None = None
    trace: str | None = None
    accepted: float
    attempts: int = 0
    due: float = 0.0
