"""Recognises the programs that take part in a container's start, and their container.

No other part of a program's arguments and environment is kept.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from firstlight.lab.watch.files import read_json

RUNTIMES = ("runc", "crun", "youki", "runsc", "kata-runtime")
SHIMS = ("containerd-shim-runc-v2", "containerd-shim-runsc-v1", "containerd-shim-kata-v2",
         "containerd-shim")  # fmt: skip
MONITORS = ("conmon", "conmonrs")
ENGINES = ("podman", "buildah", "ctr", "nerdctl")
"""Engines without a daemon, and clients: their process is the first sign of a start."""

DAEMONS = ("containerd", "dockerd", "crio", "cri-dockerd", "buildkitd")
CNI_DIRECTORIES = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))

_STARTING = ("create", "run", "start", "restore")
_WITH_VALUE = frozenset(
    ("--root", "--log", "--log-format", "--criu", "--rootless", "--cgroup-manager", "--platform",
     "--network", "-b", "--bundle", "--console-socket", "--pid-file", "--preserve-fds", "--config",
     "--pid-file", "-f", "--file", "--user-log", "--debug-log")
)  # fmt: skip
"""Options of OCI runtimes whose value is a separate argument."""

_OF_RUNTIMES = ("--root", "--log", "-b", "--bundle")
"""Options that engines give to a runtime of any name."""


@dataclass(frozen=True)
class Program:
    """An execution of ``file`` with these arguments, at ``at`` ns of CLOCK_MONOTONIC.

    ``root`` is the root process of its tree.
    """

    root: int
    pid: int
    at: int
    file: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    config: object = None
    """The bundle's config.json, as it was when the program was executed, if that could be read."""
    record: object = None
    """Docker's record of the container, likewise."""
    ancestor: str = ""
    """The nearest ancestor that is a shim, a monitor or an engine, as the kernel cuts its name."""

    @property
    def name(self) -> str:
        """The file's name; for a file executed by its descriptor, the name in its arguments."""
        file = Path(self.file)
        by_descriptor = file.parent.name == "fd" and file.name.isdigit() and self.arguments
        return Path(self.arguments[0]).name if by_descriptor else file.name


@dataclass(frozen=True)
class Role:
    """A program's part in a start. ``container`` is the id of the container or pod sandbox.

    ``kind`` is ``runtime``, ``shim``, ``monitor``, ``network`` or ``engine``; ``starts_only`` is of
    a runtime that starts what was created before.
    """

    kind: str
    container: str = ""
    bundle: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    starts_only: bool = False


def watched(
    runtimes: Iterable[str] = (), directories: tuple[Path, ...] = CNI_DIRECTORIES
) -> list[str]:
    """The program names to watch: these and the known runtimes, shims, engines, CNI plugins.

    Of those with a slash at the end what they execute is watched, too, by whatever name; of those
    with two, that alone.
    """
    plugins = [file.name for directory in directories if directory.is_dir()
               for file in sorted(directory.iterdir()) if file.is_file()]  # fmt: skip
    parents = {*SHIMS, *MONITORS, *ENGINES}
    alone = {*RUNTIMES, *runtimes, *plugins} - parents - {*DAEMONS}
    return sorted({*alone, *(f"{name}/" for name in parents), *(f"{name}//" for name in DAEMONS)})


def role(program: Program, names: Collection[str] = RUNTIMES) -> Role | None:
    """A program's part in a start; None if it has none (``runc state``).

    A program that is not in ``names`` is a runtime only if it has options of runtimes: a container
    in its engine's PID namespace may itself execute ``npm run dev``.
    """
    known = _role(program, names)
    parent = program.environment.get("TRACEPARENT")
    if known and parent:
        known.labels.setdefault("traceparent", parent)
    return known


def _role(program: Program, names: Collection[str]) -> Role | None:
    if program.name.startswith("containerd-shim"):
        if "start" not in program.arguments:
            return None
        return Role("shim", _value(program.arguments, "-id", "--id"))
    if program.name in MONITORS:
        container = _value(program.arguments, "-c", "--cid")
        name = _value(program.arguments, "-n", "--name")
        bundle = _value(program.arguments, "-b", "--bundle")
        return Role("monitor", container, bundle, {"container": name} if name else {})
    if program.environment.get("CNI_COMMAND") == "ADD":
        labels = _cni_labels(program.environment.get("CNI_ARGS", ""))
        return Role("network", program.environment.get("CNI_CONTAINERID", ""), labels=labels)
    if program.name in ENGINES:
        pod = _value(program.arguments, "--pod")
        return Role("engine", labels={"pod": pod} if pod else {})
    return _runtime(program, program.name in names)


def labels_of(bundle: str, document: object = None) -> dict[str, str]:
    """The labels in a bundle's annotations: pod, namespace, container, image.

    ``document`` is its config.json, if that was read before. Knows those of containerd's CRI
    plugin, CRI-O, Podman and nerdctl. Empty if there are none.
    """
    if document is None and bundle.startswith("/"):
        document = read_json(Path(bundle) / "config.json")
    annotations = _annotations(document)
    labels: dict[str, str] = {}
    for label, keys in _ANNOTATIONS.items():
        for key in keys:
            text = annotations.get(key)
            if isinstance(text, str) and text:
                labels.setdefault(label, text)
    engine = _MANAGERS.get(str(annotations.get("io.container.manager"))) or next(
        (name for name, key in _KEYS.items() if key in annotations), ""
    )
    return _crio_names(annotations) | labels | ({"engine": engine} if engine else {})


def own_program(document: object) -> str | None:
    """The program of a container that is not the first process of a PID namespace of its own.

    None if it is the first, or if its config.json is not known.
    """
    if not isinstance(document, dict):
        return None
    linux, process = document.get("linux"), document.get("process")
    spaces = linux.get("namespaces") if isinstance(linux, dict) else None
    words = process.get("args") if isinstance(process, dict) else None
    if not isinstance(spaces, list) or not isinstance(words, list) or not words:
        return None
    has_own = any(
        isinstance(space, dict) and space.get("type") == "pid" and not space.get("path")
        for space in spaces
    )
    return None if has_own else str(words[0])


def _annotations(document: object) -> dict[str, object]:
    annotations = document.get("annotations") if isinstance(document, dict) else None
    return annotations if isinstance(annotations, dict) else {}


def _crio_names(annotations: dict[str, object]) -> dict[str, str]:
    """Those in what CRI-O calls its pod, ``k8s_POD_NAMESPACE_UID_ATTEMPT``, and its container."""
    pod = str(annotations.get("io.kubernetes.cri-o.SandboxName", "")).split("_")
    name = str(annotations.get("io.kubernetes.cri-o.Name", "")).split("_")
    labels = {"pod": pod[1], "namespace": pod[2]} if len(pod) == 5 else {}
    return labels | ({"container": name[1]} if len(name) == 6 else {})


_KEYS = {"containerd": "io.kubernetes.cri.sandbox-id", "cri-o": "io.kubernetes.cri-o.SandboxID",
         "nerdctl": "nerdctl/name"}  # fmt: skip
"""An annotation of each engine's own. Podman gives CRI-O's to the containers of its pods."""

_MANAGERS = {"libpod": "podman", "cri-o": "cri-o"}

_ANNOTATIONS = {
    "pod": ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
    "namespace": ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
    "container": (
        "io.kubernetes.cri.container-name",
        "io.kubernetes.container.name",
        "nerdctl/name",
    ),
    "image": ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"),
    "kind": ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"),
    "traceparent": ("traceparent",),
    "sandbox": ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"),
}


def _runtime(program: Program, is_known: bool) -> Role | None:
    """Parse ``runc [OPTION…] create [OPTION…] ID``, the syntax of all OCI runtimes."""
    words = list(program.arguments[1:])
    if program.file in words[:2]:  # a script, and its interpreter with an argument at most
        words = words[words.index(program.file) + 1 :]
    positional: list[str] = []
    bundle = ""
    while words:
        word = words.pop(0)
        name, has_value, value = word.partition("=")
        if not word.startswith("-"):
            positional.append(word)
            continue
        if not has_value and name in _WITH_VALUE and words:
            value = words.pop(0)
        if name in ("-b", "--bundle"):
            bundle = value
        is_known |= name in _OF_RUNTIMES and len(positional) < 2
    if not is_known or len(positional) < 2 or positional[0] not in _STARTING:
        return None
    return Role("runtime", positional[-1], bundle, starts_only=positional[0] == "start")


def _value(words: tuple[str, ...], *names: str) -> str:
    for place, word in enumerate(words):
        name, has_value, value = word.partition("=")
        if name in names:
            return value if has_value else next(iter(words[place + 1 : place + 2]), "")
    return ""


def _cni_labels(arguments: str) -> dict[str, str]:
    """The pod's name and namespace in CNI_ARGS, as Kubernetes runtimes set them."""
    pairs = dict(pair.partition("=")[::2] for pair in arguments.split(";"))
    keys = {"pod": "K8S_POD_NAME", "namespace": "K8S_POD_NAMESPACE"}
    return {label: pairs[key] for label, key in keys.items() if pairs.get(key)}
