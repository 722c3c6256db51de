"""What the words after the options of ``firstlight run`` mean, and whether they mean anything."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from firstlight.errors import FirstlightError, UnknownName, Unsupported

if TYPE_CHECKING:
    from firstlight.lab.experiments import Experiment, Options
    from firstlight.model import EndPoint

_LEAST_FREE_BYTES = 200 << 20
_NAMES = {
    "runtimes": "--runtime", "confs": "--conf", "binaries": "--binary", "accel": "--accel",
    "guests": "--guest", "clocks": "--icount",
}  # fmt: skip


def experiments() -> Iterable[str]:
    """The names of all experiments."""
    from firstlight.lab.experiments import catalogue

    return catalogue.ALL


def numbers(words: str) -> tuple[int, ...]:
    """``1,10,50`` of --instances."""
    try:
        found = tuple(int(word) for word in words.split(",") if word.strip())
    except ValueError:
        found = (0,)
    if any(number < 1 for number in found):
        raise FirstlightError(f"--instances {words!r} is not a list of counts", "such as 1,10,50")
    return found


def runtimes(words: str) -> tuple[str, ...]:
    """``runc,/opt/crun`` of --runtime, each of which is there."""
    from firstlight.lab.backends.oci import Oci

    found = tuple(word.strip() for word in words.split(",") if word.strip())
    for runtime in found:
        Oci(runtime).probe()
    return found


def binaries(words: Iterable[str]) -> tuple[str, ...]:
    """Each --binary, which is there."""
    import shutil

    found = tuple(words)
    for binary in found:
        if not shutil.which(binary):
            raise Unsupported(f"hypervisor {binary!r} is not found", "give its path to --binary")
    return found


def accelerator(word: str) -> str:
    """What --accel names."""
    from firstlight.lab.backends.accel import ACCELERATORS

    if word not in ACCELERATORS:
        raise UnknownName("accelerator", word, ACCELERATORS)
    return word


def end_point(word: str) -> "EndPoint | None":
    """What --until names."""
    from firstlight.model import EndPoint

    asked = {"first-packet": EndPoint.FIRST_PACKET}
    if word and word not in asked:
        raise UnknownName("end point", word, asked)
    return asked.get(word)


def check_use(experiment: "Experiment", asked: "Options") -> None:
    """Raise FirstlightError for an option that the experiment never looks at.

    Else the user would take a run for an answer to what was asked.
    """
    from firstlight.lab.experiments import Options

    looked_at: set[str] = set()

    class Watched(Options):
        def __getattribute__(self, name: str) -> object:
            looked_at.add(name)
            return super().__getattribute__(name)

    experiment.points(Watched(**vars(asked)))
    default = Options(asked.instances)
    for field, option in _NAMES.items():
        if field not in looked_at and getattr(asked, field) != getattr(default, field):
            raise FirstlightError(
                f"{option} says nothing to {experiment.name}",
                "leave it out; firstlight list shows what each experiment varies",
            )


def check_space(directory: Path) -> None:
    """Raise Unsupported if a run would fill the disk that ``directory`` is to be made on."""
    import shutil

    there = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < _LEAST_FREE_BYTES:
        raise Unsupported(
            f"{directory} has only {free >> 20} MiB free, and a run needs "
            f"{_LEAST_FREE_BYTES >> 20} MiB",
            "free some, or name another directory with --out",
        )


@contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """What cannot be written to ``path`` is the user's word to change, not a fault of ours."""
    try:
        yield
    except OSError as error:
        raise FirstlightError(
            f"cannot write {error.filename or path}: {error.strerror}",
            f"give {option} another path",
        ) from error
