"""The options of ``firstlight run``: their help, and the checks of their values."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli.output import YEAR, completion, finite
from firstlight.errors import FirstlightError, UnknownName, Unsupported

if TYPE_CHECKING:
    from firstlight.lab.experiments import Experiment, Options
    from firstlight.model import EndPoint

_END_POINTS = ("first-packet", "ready")
_FREE_BYTES_MIN = 200 << 20
_PROCESSES_MAX = 1 << 22
"""PID_MAX_LIMIT of Linux: no host can hold more starts at once."""
_OPTIONS = {
    "runtimes": "--runtime", "networks": "--cni", "hypervisors": "--hypervisor",
    "accel": "--accel",
    "guests": "--guest", "clocks": "--icount", "kubeconfig": "--kubeconfig",
    "context": "--context", "image": "--image", "cri": "--cri",
}  # fmt: skip


def _experiments() -> Iterable[str]:
    from firstlight.lab.experiments import catalogue

    return catalogue.ALL


def _accelerators() -> Sequence[str]:
    from firstlight.lab.backends.accel import ACCELERATORS

    return ACCELERATORS


def _networks() -> Iterable[str]:
    from firstlight.lab.cni import known

    return known.names()


def _guests() -> Iterable[str]:
    from firstlight.lab.guests import built_in, catalogue

    return [*built_in.NAMES, *(entry.name for entry in catalogue.entries())]


ExperimentName = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="The experiment's name, as firstlight list shows it.",
        autocompletion=completion(_experiments),
    ),
]
Instances = Annotated[
    str | None, typer.Option(metavar="N,N", help="Starts at once, such as 1,10,50.")
]
Repetitions = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Batches per point (3× for single starts).  [default: the experiment's]",
    ),
]
Fast = Annotated[
    bool, typer.Option("--fast", help="Few repetitions and instances, measured in at most 75 s.")
]
Budget = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help="Total time, such as 60s or 5m, spent most on what varies most.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the interrupted run in the directory of --out.")
]
Rigorous = Annotated[bool, typer.Option("--rigorous", help="Many repetitions.")]
Runtime = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME,NAME", help="OCI runtimes, by name or path. Repeatable."),
]
Cni = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|FILE",
        help="A CNI network: a built-in name or a file. Repeatable.",
        autocompletion=completion(_networks),
    ),
]
Hypervisor = Annotated[
    list[str] | None,
    typer.Option(metavar="PROGRAM", help="A hypervisor, by name or path. Repeatable."),
]
Accel = Annotated[
    str,
    typer.Option(
        metavar="auto|kvm|tcg",
        help="QEMU's accelerator.",
        autocompletion=completion(_accelerators),
    ),
]
Guest = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="What VMs boot: a built-in guest, such as probe, or an added one. Repeatable.",
        autocompletion=completion(_guests),
    ),
]
Icount = Annotated[
    bool,
    typer.Option(
        "--icount", help="Also boot on a clock that counts instructions: repeatable times."
    ),
]
Kubeconfig = Annotated[
    str, typer.Option(metavar="FILE", help="Measure pods on this kubeconfig's cluster.")
]
Context = Annotated[str, typer.Option(metavar="NAME", help="Context of the kubeconfig.")]
Image = Annotated[
    str,
    typer.Option(metavar="IMAGE", help="Image of the containers on your cluster or runtime."),
]
Nodes = Annotated[
    str,
    typer.Option(
        metavar="all|LABEL=VALUE",
        help="Measure on these nodes of the cluster instead of here: a Job on each.",
    ),
]
InTurn = Annotated[bool, typer.Option("--in-turn", help="With --nodes: one node after another.")]
Cri = Annotated[
    str,
    typer.Option("--cri", metavar="SOCKET", help="Measure sandboxes of this CRI runtime."),
]
EndPointName = Annotated[
    str,
    typer.Option(
        metavar="first-packet|ready",
        help="End each start when the gateway has answered its first packet, or a pod is Ready.",
        autocompletion=completion(lambda: _END_POINTS),
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Directory of the run.  [default: runs/…]")
]
Cold = Annotated[bool, typer.Option("--cold", help="Drop the page cache before each batch.")]
Trace = Annotated[bool, typer.Option(help="Also trace starts, for the breakdown.")]
Deadline = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", min=0.1, max=YEAR, callback=finite,
        help="Deadline per start.  [default: 60]",
    ),
]  # fmt: skip
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the schedule's order.")]


def instances(text: str | None) -> tuple[int, ...]:
    """Parse ``1,10,50``; none without the option. Raises FirstlightError."""
    if text is None:
        return ()
    try:
        counts = tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        counts = (0,)
    if not counts or any(not 1 <= count <= _PROCESSES_MAX for count in counts):
        raise FirstlightError(f"--instances {text!r} is not a list of counts", "such as 1,10,50")
    return counts


def runtimes(texts: Iterable[str], *, installed: bool = True) -> tuple[str, ...]:
    """Parse texts such as ``runc,/opt/crun``; one that names a file may have commas.

    Unless they are to be ``installed``, they are runtime classes or handlers of others. Raises
    Unsupported, FirstlightError.
    """
    import shutil

    from firstlight.lab.backends.oci import Oci
    from firstlight.lab.cluster import running

    names: list[str] = []
    for text in texts:
        is_one = installed and shutil.which(text)
        words = [text] if is_one else [word.strip() for word in text.split(",") if word.strip()]
        if not words:
            raise FirstlightError(f"--runtime {text!r} names no runtime", "such as runc,/opt/crun")
        names += words
    for name in names:
        if installed and name != running.SHIM:
            Oci(name).probe()
    return tuple(names)


def hypervisors(programs: Iterable[str]) -> tuple[str, ...]:
    """Check that each hypervisor is installed. Raises Unsupported."""
    import shutil

    names = tuple(programs)
    for name in names:
        if not shutil.which(name):
            raise Unsupported(
                f"hypervisor {name!r} is not installed", "give its path to --hypervisor"
            )
    return names


def kubeconfig(files: str) -> str:
    """The files of ``A:B``, by their absolute paths."""
    return os.pathsep.join(str(Path(file).absolute()) for file in files.split(os.pathsep) if file)


def accelerator(name: str) -> str:
    """Check the value of --accel. Raises UnknownName."""
    if name not in (valid := _accelerators()):
        raise UnknownName("accelerator", name, valid)
    return name


def end_point(name: str) -> "EndPoint | None":
    """The end point that --end-point names; None for the backend's own. Raises UnknownName."""
    from firstlight.model import EndPoint

    if name and name not in _END_POINTS:
        raise UnknownName("end point", name, _END_POINTS)
    points = {"first-packet": EndPoint.FIRST_PACKET, "ready": EndPoint.READY_AT_API}
    return points.get(name)


def check_use(experiment: "Experiment", options: "Options") -> None:
    """Raise FirstlightError for an option that the experiment does not use, or not with another.

    Otherwise the user would misread the run.
    """
    default = type(options)(options.instances)
    for field, option in _OPTIONS.items():
        is_set = getattr(options, field) != getattr(default, field)
        if is_set and field not in experiment.options:
            raise FirstlightError(
                f"{option} has no effect on {experiment.name}",
                "leave it out; firstlight list shows what each experiment varies",
            )
    theirs = "--kubeconfig" if options.kubeconfig else "--cri" if options.cri else ""
    if theirs and options.networks:
        raise FirstlightError(f"--cni has no effect with {theirs}: the network is not the lab's",
                              "leave one of them out")  # fmt: skip
    if options.image and not theirs:
        wanted = next(
            _OPTIONS[each] for each in ("kubeconfig", "cri") if each in experiment.options
        )
        raise FirstlightError(f"--image needs {wanted}: the lab's own containers have its image",
                              f"leave it out, or give {wanted}")  # fmt: skip
    if "counted" in options.clocks and options.accel == "kvm":
        raise FirstlightError("--icount excludes --accel kvm: only TCG counts instructions",
                              "leave one of them out")  # fmt: skip


def check_space(directory: Path) -> None:
    """Raise Unsupported if the disk of ``directory`` is too full for a run."""
    import shutil

    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < _FREE_BYTES_MIN:
        raise Unsupported(
            f"{directory} has only {free >> 20} MiB free, and a run needs "
            f"{_FREE_BYTES_MIN >> 20} MiB",
            "free some space, or choose another directory with --out",
        )


def budget(text: str) -> float | None:
    """Seconds from a text such as ``90``, ``90s``, ``5m`` or ``1h``; None from ""."""
    if not text:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text)
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise FirstlightError(f"--budget {text!r} is not a time", "such as 60s, 5m or 1h")
    return seconds
