"""The runtime's configuration: a TOML file, checked as it is read."""

import re
import tomllib
from contextlib import suppress
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from firstlight import files
from firstlight.errors import Failed

Dry = Literal["wait", "build", "refuse"]

_STATE = "/run/firstlight-agile"
_NAME = re.compile(r"[a-z0-9]{1,8}")
_PREFIX_LEAST, _PREFIX_MOST = 16, 29
_CONNECTIONS_MOST = 1 << 20
_LOG_LEAST = 4096
_BYTES_LEAST, _BYTES_MOST = 4 << 20, 1 << 40  # the largest event has 1 MiB
_FUNCTIONS_MOST, _INSTANCES_MOST, _PORT_MOST = 4000, 100_000, 65535
_POOL_MOST, _RATE_MOST = 8192, 1e6
_SECONDS_MOST = 365 * 86400.0
_FILE_MOST = 1 << 20  # bytes of a configuration
_REMEDY = "conf/agile/firstlight.toml in the source tree documents every key"


class PoolSize(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many parts of one kind to keep ready.

    A pool that follows the demand keeps between ``low`` and ``high``; any other is filled to
    ``high`` when it falls below ``low``. It is filled with at most ``rate`` parts per second.
    ``dry`` is what a request does when the pool is empty. A pool that refuses does not follow the
    demand. A pool is empty before its first use.
    """

    low: int = 8
    high: int = 32
    rate: float = 200.0
    dry: Dry = "build"

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= _POOL_MOST or not 0 < self.rate <= _RATE_MOST:
            raise ValueError(f"low={self.low}, high={self.high}, rate={self.rate}: 0 <= low <= "
                             f"high <= {_POOL_MOST} and a rate above 0 are needed")  # fmt: skip


class Pools(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pools: networks, cgroups and sandboxes of all functions, and forks of each in Python.

    A pool in use keeps as many parts as were needed at once within the last ``window`` seconds,
    between its marks; with a window of 0, as many as its high mark. See docs/functions.md.

    A Python function keeps places for forks while its interpreter is up: as many as were needed at
    once, at least one and at most ``network.high``. Each takes about 0.5 MiB of kernel memory and
    10 descriptors. A waiting fork of a small handler (``fork``) takes 1.4 MiB more.
    """

    network: PoolSize = PoolSize()
    cgroup: PoolSize = PoolSize()
    sandbox: PoolSize = PoolSize(low=0, high=0)
    fork: PoolSize = PoolSize(low=0, high=8, rate=1000.0)
    window: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.window <= _SECONDS_MOST:
            raise ValueError(f"window={self.window}: from 0, up to a year of seconds")


class Ahead(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Preparations other than the pools. Each can be turned off, to measure its gain (experiment
    ``ablation``).
    """

    neighbours: bool = True
    """An instance and its gateway know each other's link-layer address in advance."""


class NetworkConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Instances' addresses, and what instances may reach.

    ``range`` must not overlap a route of the host. ``host_services`` are ports of the host
    itself that instances may use: "tcp/53", "udp/53". ``allow`` are addresses that they may reach
    although they are private, link-local or reserved: "10.0.0.0/8", "192.168.7.5". ``resolvers``
    are asked for names, by default those of the host (see resolvers.py). An instance
    has at most ``connections`` open through the host, and opens at most ``connection_rate`` a
    second.
    """

    range: str = "10.213.0.0/16"
    host_services: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    resolvers: tuple[str, ...] = ()
    connections: int = 1024
    connection_rate: int = 256

    def __post_init__(self) -> None:
        for prefix in self.allow:
            IPv4Network(prefix)
        for resolver in self.resolvers:
            IPv4Address(resolver)
        if not (
            1 <= self.connections <= _CONNECTIONS_MOST
            and 1 <= self.connection_rate <= _CONNECTIONS_MOST
        ):
            raise ValueError(
                f"connections={self.connections}, connection_rate="
                f"{self.connection_rate}: from 1 to {_CONNECTIONS_MOST}"
            )
        if not _PREFIX_LEAST <= IPv4Network(self.range).prefixlen <= _PREFIX_MOST:
            raise ValueError(f"range {self.range}: from /{_PREFIX_LEAST} to /{_PREFIX_MOST}")
        for service in self.host_services:
            _check_service(service)


class Functions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many functions can be registered, and how long an unused one stays registered.

    ``look_seconds`` is the interval at which the files of functions in use are checked for changes.
    At most ``at_once`` requests are answered at once, and ``queue`` more of each owner wait for
    their turn. Owners take fair turns, weighted by ``shares``. No request waits for its turn longer
    than ``wait_seconds``.
    """

    most: int = 1000
    idle_seconds: float = 600.0
    look_seconds: float = 1.0
    at_once: int = 512
    queue: int = 1000
    wait_seconds: float = 60.0
    shares: dict[str, float] = {}

    def __post_init__(self) -> None:
        if not 1 <= self.most <= _FUNCTIONS_MOST:
            raise ValueError(f"most={self.most}: from 1 to {_FUNCTIONS_MOST}")
        if not 1 <= self.at_once <= _INSTANCES_MOST or not 0 <= self.queue <= _INSTANCES_MOST:
            raise ValueError(f"at_once={self.at_once}, queue={self.queue}: up to {_INSTANCES_MOST}")
        for owner, share in self.shares.items():
            if not 0 < share < float("inf"):
                raise ValueError(f"the share of {owner} is {share}: above 0")
        for seconds in (self.idle_seconds, self.look_seconds, self.wait_seconds):
            if not 0 < seconds <= _SECONDS_MOST:  # nor is it NaN
                raise ValueError(f"{seconds} s: above 0, up to a year")


class Identities(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The users and groups that instances run as: one per function, or one per instance. They are
    numbers from ``first`` on, which nothing else on the host should use.
    """

    first: int = 0x70000000
    each: Literal["function", "instance"] = "function"

    def __post_init__(self) -> None:
        if not 1000 <= self.first <= 0x7FF00000:
            raise ValueError(f"identities from {self.first}: from 1000 to {0x7FF00000}")

    @property
    def first_of_instances(self) -> int:
        """The first identity of instances, after those of functions and zygotes."""
        return self.first + (1 << 17)


class Http(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where functions and the runtime's metrics are served over HTTP.

    ``listen`` is an address with a port, "127.0.0.1:9400", or a socket: "unix:/run/x".
    ``credentials`` is a file like ~/.aws/credentials; with it, each request must be signed with one
    of its keys. It is mandatory for an address that is not loopback.
    """

    listen: str
    credentials: str = ""

    def __post_init__(self) -> None:
        if self.listen.startswith("unix:/"):
            return
        address, _, port = self.listen.rpartition(":")
        if not (port.isascii() and port.isdecimal() and int(port) <= _PORT_MOST):
            raise ValueError(f"listen {self.listen!r} is neither ADDRESS:PORT nor unix:/PATH")
        if not ip_address(address.strip("[]")).is_loopback and not self.credentials:
            raise ValueError(
                f"listen {self.listen!r} is not a loopback address, and there are no credentials"
            )


class Telemetry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where traces of requests are sent: ``otlp`` is a collector's address,
    "http://127.0.0.1:4318".

    ``share`` is the part of requests without a trace context that are traced.
    """

    otlp: str
    service: str = "firstlight"
    share: float = 1.0

    def __post_init__(self) -> None:
        if not self.otlp.startswith(("http://", "https://")):
            raise ValueError(f"otlp {self.otlp!r} is not an HTTP address")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}: from 0 to 1")


class PodsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Networks for pods of other runtimes, served by the node's agent: ``agile agent``.

    ``range`` has the addresses of the node's pods. With ``range6``, at least as large, each has an
    IPv6 address too. ``cluster`` has more addresses that see pods' own; with ``masquerade``, all
    others see the node's. ``closed`` is what pods do not reach. With ``node`` "closed", pods reach
    none of the node's own sockets except ``node_services``. ``mtu`` 0 is the kernel's default.

    ``kubeconfig`` is a file, or "in-cluster". With it, an empty ``range`` is taken from the Node
    object, pods of other nodes are routed to and see pods' own addresses, and refusals become
    events. ``metrics`` is ADDRESS:PORT.
    """

    range: str = "10.244.0.0/24"
    range6: str = ""
    mtu: int = 0
    cluster: tuple[str, ...] = ()
    masquerade: bool = True
    closed: tuple[str, ...] = ("169.254.169.254/32", "100.100.100.200/32", "fd00:ec2::254/128")
    node: Literal["closed", "open"] = "closed"
    node_services: tuple[str, ...] = ("tcp/53", "udp/53", "tcp/6443", "tcp/10250")
    kubeconfig: str = ""
    metrics: str = ""
    pool: PoolSize = PoolSize(low=32, high=64)

    def __post_init__(self) -> None:
        if self.range:
            self._check_ranges()
        elif not self.kubeconfig:
            raise ValueError("pods.range is empty, and pods.kubeconfig names no cluster to ask")
        if self.mtu and not 1280 <= self.mtu <= 65535:
            raise ValueError(f"pods.mtu={self.mtu}: 0, or from 1280 to 65535")
        if self.metrics and not re.fullmatch(r".+:[1-9][0-9]{0,4}", self.metrics):
            raise ValueError(f"pods.metrics {self.metrics!r} is not ADDRESS:PORT")
        for prefix in (*self.cluster, *self.closed):
            ip_network(prefix)
        for service in self.node_services:
            _check_service(service)

    def _check_ranges(self) -> None:
        if not _PREFIX_LEAST <= IPv4Network(self.range).prefixlen <= _PREFIX_MOST:
            raise ValueError(
                f"pods.range {self.range} is not from /{_PREFIX_LEAST} to /{_PREFIX_MOST}"
            )
        size = IPv4Network(self.range).num_addresses
        if self.range6 and IPv6Network(self.range6).num_addresses < size:
            raise ValueError(f"pods.range6 {self.range6} is smaller than pods.range {self.range}")
        if self.pool.high > size - 3:
            raise ValueError(
                f"pods.pool.high={self.pool.high}: {self.range} has {size - 3} addresses"
            )


def _check_service(service: str) -> None:
    if not re.fullmatch(r"(tcp|udp)/[1-9][0-9]{0,4}", service):
        raise ValueError(f"host service {service!r} is not of the form tcp/53")


class Events(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asynchronous events. If its function fails, an event is retried ``retries`` times, the n-th
    after n times ``retry_seconds``. An event that is older than ``oldest_seconds`` is given up.
    Waiting events take at most ``queue_bytes``. When the file of given-up events reaches
    ``dead_bytes``, it replaces the second file.
    """

    retries: int = 2
    retry_seconds: float = 60.0
    oldest_seconds: float = 21600.0
    queue_bytes: int = 1 << 30
    dead_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name in ("retries", "retry_seconds", "oldest_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is below 0")
        if not self.oldest_seconds:
            raise ValueError("oldest_seconds=0: every event would be given up at once")
        for name in ("queue_bytes", "dead_bytes"):
            if not _BYTES_LEAST <= getattr(self, name) <= _BYTES_MOST:
                raise ValueError(f"{name}={getattr(self, name)} is not from {_BYTES_LEAST} (4 MiB) "
                                 f"to {_BYTES_MOST}")  # fmt: skip


class Logs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logs of detached instances. A file that reaches ``size`` bytes replaces the instance's second
    file; at most ``total`` bytes are kept in all. They are in ``directory``, by default below the
    runtime's state, which is removed with it.
    """

    size: int = 1 << 20
    total: int = 256 << 20
    directory: str = ""

    def __post_init__(self) -> None:
        if not _LOG_LEAST <= self.size <= self.total:
            raise ValueError(f"size={self.size}, total={self.total}: at least {_LOG_LEAST} and the "
                             "size at most the total are needed")  # fmt: skip
        if self.directory and not self.directory.startswith("/"):
            raise ValueError(f"directory {self.directory!r} is not an absolute path")


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A runtime. ``name`` marks everything that the runtime makes; two runtimes of the same name
    cannot run at once.
    """

    name: str = "default"
    state: str = _STATE
    store: str = "/var/lib/firstlight"
    """Where registered functions and accepted events are kept, in a subdirectory ``name``."""
    network: NetworkConfig = NetworkConfig()
    pods: PodsConfig = PodsConfig()
    pools: Pools = Pools()
    ahead: Ahead = Ahead()
    functions: Functions = Functions()
    identities: Identities = Identities()
    events: Events = Events()
    telemetry: Telemetry | None = None
    """With ``http``: without it nothing is traced."""
    logs: Logs = Logs()
    http: Http | None = None
    """Without it nothing is served over HTTP, and no server is loaded."""
    cgroup: str = ""
    """Its top cgroup, below the root of each hierarchy; by default ``firstlight.agile.NAME``."""
    instances: int = 2000
    """Maximum number of instances and prepared sandboxes."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} is not 1 to 8 letters a-z and digits")
        if not 1 <= self.instances <= _INSTANCES_MOST:
            raise ValueError(f"instances={self.instances}: from 1 to {_INSTANCES_MOST}")
        for what in ("state", "store"):
            if not getattr(self, what).startswith("/"):
                raise ValueError(f"{what} {getattr(self, what)!r} is not an absolute path")
        if ".." in self.cgroup:
            raise ValueError(f"cgroup {self.cgroup!r} is not below its hierarchy's root")

    @property
    def top_cgroup(self) -> str:
        """The path of its top cgroup below the root of each hierarchy."""
        return self.cgroup.strip("/") or f"firstlight.agile.{self.name}"

    @property
    def directory(self) -> Path:
        """The directory of the runtime's journal and socket."""
        return Path(self.state) / self.name

    @property
    def logs_directory(self) -> Path:
        """The directory of its instances' logs."""
        return Path(self.logs.directory or self.directory / "logs")

    @property
    def socket(self) -> Path:
        """Where ``firstlight agile up`` listens."""
        return self.directory / "socket"


def remove_directory(directory: Path) -> None:
    """Remove a runtime's directory if it is empty, and that of all by default, if it is too."""
    with suppress(OSError):
        directory.rmdir()
        if directory.parent == Path(_STATE):
            directory.parent.rmdir()


def load(path: Path) -> Config:
    """Read a configuration. Raises Failed, naming the key that is wrong."""

    what = f"the configuration {path} is invalid"
    try:
        written = tomllib.loads(files.read_given(path, _FILE_MOST).decode())
        _check_keys(what, written, Config)
        return msgspec.convert(written, Config)
    except OSError as error:
        raise Failed(f"cannot read the configuration {path}: {error.strerror}") from error
    except (ValueError, RecursionError, msgspec.ValidationError) as error:  # of TOML, UTF-8, value
        raise Failed(f"{what}: {_worded(str(error))}", _REMEDY) from error


def _check_keys(what: str, written: dict[str, Any], table: type[Struct], path: str = "") -> None:
    """Raise Failed for an unknown key, with the most similar known one as a hint."""
    fields = {field.name: field.type for field in msgspec.structs.fields(table)}
    for key, value in written.items():
        if key not in fields:
            near = get_close_matches(key, fields, 1)
            remedy = f"did you mean {path}{near[0]}?" if near else f"known: {', '.join(fields)}"
            raise Failed(f"{what}: there is no key {path}{key}", remedy)
        kinds = get_args(fields[key]) or (fields[key],)
        for below in kinds:
            if isinstance(value, dict) and isinstance(below, type) and issubclass(below, Struct):
                _check_keys(what, value, below, f"{path}{key}.")


def _worded(error: str) -> str:
    """An error of msgspec, with the key at its beginning."""
    words, at, key = error.removesuffix("`").partition(" - at `$.")
    return f"{key}: {words.replace('`', '')}" if at else error
