"""Recognises the programs that take part in a container's start, and their container.

No other part of a program's arguments and environment is kept.
"""

from dataclasses import dataclass, field
from pathlib import Path

from firstlight.lab.watch.files import read_json

RUNTIMES = ("runc", "crun", "youki", "runsc", "kata-runtime")
SHIMS = ("containerd-shim-runc-v2", "containerd-shim-runsc-v1", "containerd-shim-kata-v2",
         "containerd-shim")  # fmt: skip
MONITORS = ("conmon", "conmonrs")
ENGINES = ("podman", "buildah", "ctr", "nerdctl")
"""Engines without a daemon, and clients: their process is the first sign of a start."""

DAEMONS = ("containerd", "dockerd", "crio")
CNI_DIRECTORIES = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))

_STARTING = ("create", "run", "start", "restore")
_WITH_VALUE = frozenset(
    ("--root", "--log", "--log-format", "--criu", "--rootless", "--cgroup-manager", "--platform",
     "--network", "-b", "--bundle", "--console-socket", "--pid-file", "--preserve-fds", "--config",
     "--pid-file", "-f", "--file", "--user-log", "--debug-log")
)  # fmt: skip
"""Options of OCI runtimes whose value is a separate argument."""


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

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.file).name


@dataclass(frozen=True)
class Role:
    """A program's part in a start. ``container`` is the id of the container or pod sandbox.

    ``kind`` is ``runtime``, ``shim``, ``monitor``, ``network`` or ``engine``.
    """

    kind: str
    container: str = ""
    bundle: str = ""
    labels: dict[str, str] = field(default_factory=dict)


def watched(directories: tuple[Path, ...] = CNI_DIRECTORIES) -> list[str]:
    """The program names to watch: runtimes, shims, engines, and installed CNI plugins."""
    plugins = [file.name for directory in directories if directory.is_dir()
               for file in sorted(directory.iterdir()) if file.is_file()]  # fmt: skip
    return sorted({*RUNTIMES, *SHIMS, *MONITORS, *ENGINES, *plugins})


def role(program: Program) -> Role | None:
    """A program's part in a start; None if it has none (``runc state``)."""
    known = _role(program)
    parent = program.environment.get("TRACEPARENT")
    if known and parent:
        known.labels.setdefault("traceparent", parent)
    return known


def _role(program: Program) -> Role | None:
    if program.name in RUNTIMES:
        return _runtime(program)
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
    return None


def labels_of(bundle: str, document: object = None) -> dict[str, str]:
    """The labels in a bundle's annotations: pod, namespace, container, image.

    ``document`` is its config.json, if that was read before. Knows those of containerd's CRI
    plugin, CRI-O and Podman. Empty if there are none.
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
    return _crio_names(annotations) | labels


def manager(document: object) -> str:
    """What has made a bundle with this config.json, by its own name: ``libpod``, ``cri-o``."""
    return str(_annotations(document).get("io.container.manager", ""))


def _annotations(document: object) -> dict[str, object]:
    annotations = document.get("annotations") if isinstance(document, dict) else None
    return annotations if isinstance(annotations, dict) else {}


def _crio_names(annotations: dict[str, object]) -> dict[str, str]:
    """Those in what CRI-O calls its pod, ``k8s_POD_NAMESPACE_UID_ATTEMPT``, and its container."""
    pod = str(annotations.get("io.kubernetes.cri-o.SandboxName", "")).split("_")
    name = str(annotations.get("io.kubernetes.cri-o.Name", "")).split("_")
    labels = {"pod": pod[1], "namespace": pod[2]} if len(pod) == 5 else {}
    return labels | ({"container": name[1]} if len(name) == 6 else {})


_ANNOTATIONS = {
    "pod": ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
    "namespace": ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
    "container": ("io.kubernetes.cri.container-name", "io.kubernetes.container.name"),
    "image": ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"),
    "kind": ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"),
    "traceparent": ("traceparent",),
    "sandbox": ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"),
}


def _runtime(program: Program) -> Role | None:
    """Parse ``runc [OPTION…] create [OPTION…] ID``, the syntax of all OCI runtimes."""
    words = list(program.arguments[1:])
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
    if len(positional) < 2 or positional[0] not in _STARTING:
        return None
    return Role("runtime", positional[-1], bundle)


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
