"""Makes a version from a function's source and settings."""

import posixpath
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from firstlight.agile.function import SECRETS, Function
from firstlight.agile.functions.base import RUNTIME
from firstlight.agile.functions.errors import Invalid
from firstlight.agile.functions.records import Code, ImageSettings, Revision, Settings
from firstlight.agile.functions.version import REGION, FunctionVersion, Kind
from firstlight.agile.parts import roots
from firstlight.agile.python.interpreter import INTERPRETER
from firstlight.errors import Failed

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
ALIAS = re.compile(r"(?![0-9]+$)[A-Za-z0-9_-]{1,128}")
ARN = f"arn:aws:lambda:{REGION}:000000000000:function:"
TIMEOUT_MOST, ENVIRONMENT_MOST, DESCRIPTION_MOST = 900.0, 4096, 256
_NAMES_MOST = 10
WARM_MOST, PER_INSTANCE_MOST = 1000, 1000
_VARIABLE = re.compile(r"[^=\0]+")
RESERVED = frozenset({
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_RUNTIME_API", "LAMBDA_RUNTIME_DIR", "LAMBDA_TASK_ROOT", "_HANDLER",
})  # fmt: skip
"""What the node sets for functions that fetch events, whatever else their environment has."""


def merged(before: Settings, after: Settings) -> Settings:
    """Update settings by those that are given."""
    changes = {name: value for name in after.__struct_fields__
               if (value := getattr(after, name)) is not UNSET}  # fmt: skip
    return msgspec.structs.replace(before, **changes)


def made(
    name: str, number: int, settings: Settings, code: Code, own: ImageSettings | None,
    owner: str,
) -> Revision:  # fmt: skip
    """A revision from this code, these settings and those of its image. Raises Invalid."""
    fields: dict[str, Any] = {
        key: value
        for key in ("environment", "directory", "memory", "scratch", "cpus", "pids",
                    "timeout", "keep_warm", "warm", "per_instance", "network", "netlink", "port",
                    "volumes", "secrets")
        if (value := getattr(settings, key)) is not UNSET
    }  # fmt: skip
    if not settings.directory:
        fields.pop("directory", None)  # the image's own again, or that of its kind
    command = settings.command or ()
    handler = settings.handler or ""
    kind = settings.kind or _kind(code, own, only_command=bool(command and not handler))
    if own:
        fields["environment"] = {**_variables(own.env or []), **fields.get("environment", {})}
        fields.setdefault("directory", _working(own))
        if kind != "python":  # a fork of its interpreter calls the handler
            command = command or _image_command(own, settings)
    elif code.base:
        fields.setdefault("directory", "/var/task")
        if kind == "bootstrap" and not command:
            command = ("/var/task/bootstrap",)
        if kind == "python" and ":" not in handler:  # Lambda's own runtime for Python calls it
            given = dict(fields.get("environment", {}))
            path = [given["PYTHONPATH"]] if given.get("PYTHONPATH") else []
            fields["environment"] = {**given, "PYTHONPATH": ":".join([*path, RUNTIME])}
    version = FunctionVersion(
        name=name, kind=kind, revision=number, digest=code.digest, command=command,
        handler=handler, arn=ARN + name, owner=owner, **fields,
    )  # fmt: skip
    _check(version)
    _check_given(version, settings.environment or {})
    if len(settings.description or "") > DESCRIPTION_MOST:
        raise Invalid(f"the description is longer than {DESCRIPTION_MOST} characters")
    return Revision(
        number=number,
        version=version,
        code=code,
        settings=settings,
        image=own,
        modified=time.time(),
    )


def check_root(version: FunctionVersion) -> None:
    """Raise Invalid if a version certainly cannot be started in its root; blocks."""
    if version.kind != "wasm":
        command = version.command[0] if version.command else INTERPRETER
        with _invalid(), roots.readable("its code"):
            roots.check_command(
                Path(version.root), command, directory=version.directory, shown="its code"
            )


def is_root(path: Path, given: Settings) -> bool:
    """Whether a directory is a function's whole root: whether it has its program; blocks.

    Code without the program, such as a script, goes over the host's programs, and so does what is
    named relative to its directory. Raises Failed.
    """
    own = [] if given.handler else [
        word for word in (given.command or ())[:1] if "/" not in word or word.startswith("/")
    ]  # fmt: skip
    programs = [INTERPRETER, *own]
    with roots.readable(str(path)):
        places = [roots.find(path, program) for program in programs]
        return any(place is not None and place.exists() for place in places)


def contents(version: FunctionVersion) -> str:
    """Describe the content of a version's directory; empty if it is not a directory. Blocks."""
    try:
        names = sorted(roots.names(Path(version.root), version.directory))
    except (OSError, Failed):
        return ""
    more = [f"{len(names) - _NAMES_MOST} more"] if len(names) > _NAMES_MOST else []
    shown = ", ".join([*map(repr, names[:_NAMES_MOST]), *more]) or "nothing"
    return f"{version.directory} has {shown}"


def place_to_work(revision: Revision, root: Path) -> tuple[str, ...]:
    """An image's own working directory if its root lacks it, which container runtimes make; blocks.

    A point of a Revision.
    """
    directory = revision.version.directory
    if not revision.image or directory != _working(revision.image):
        return ()
    if directory.split("/")[1] in roots.MOUNT_POINTS:
        return ()
    with _invalid(), roots.readable("its working directory"):
        where = roots.inside(root, directory)
        return () if where is None or where.exists() else (f"{directory}/",)


def points(version: FunctionVersion) -> tuple[str, ...]:
    """The paths that a version's root needs for volumes and secrets (Revision.points); blocks."""
    made = [
        each.target if Path(each.source).is_file() else f"{each.target}/"
        for each in version.volumes
    ]
    return (*made, *([f"{SECRETS}/"] if version.secrets else []))


def qualified(name: str, qualifier: str) -> str:
    """The ARN of a version or an alias; without one, of the function."""
    return ARN + name + (f":{qualifier}" if qualifier else "")


def _kind(code: Code, own: ImageSettings | None, *, only_command: bool) -> Kind:
    if code.module:
        return "wasm"
    if own:
        return "image"
    return "python" if code.base and not only_command else "command"


def _working(own: ImageSettings) -> str:
    """An image's working directory. It never climbs: it may be made on the host, below a root."""
    if not own.working_dir or not own.working_dir.startswith("/"):
        return own.working_dir or "/"
    return "/" + posixpath.normpath(own.working_dir).lstrip("/")


def _variables(words: list[str]) -> dict[str, str]:
    """An image's variables. Words that name none with a value set none in a container either."""
    named = (word.partition("=") for word in words)
    return {name: value for name, separator, value in named if name and separator}


def _image_command(own: ImageSettings, settings: Settings) -> tuple[str, ...]:
    """An image's command, with its entry point or arguments replaced if the settings say so."""
    return (*(settings.entrypoint or own.entrypoint or ()), *(settings.arguments or own.cmd or ()))


@contextmanager
def _invalid() -> Iterator[None]:
    """Report an error in a function as one of the request that defined it."""
    try:
        yield
    except Failed as error:
        raise Invalid(error.message, error.hint) from error


def _check(version: FunctionVersion) -> None:
    if not NAME.fullmatch(version.name):
        raise Invalid(f"{version.name[:100]!r} cannot be a function's name",
                      "1 to 64 letters, digits, - and _")  # fmt: skip
    _check_numbers(version)
    if (version.volumes or version.secrets) and (
        version.kind == "wasm" or (version.kind == "python" and ":" in version.handler)
    ):
        raise Invalid(
            f"{version.name} cannot have volumes or secrets: its handler runs in a fork of an "
            "interpreter, or in a WebAssembly module",
            "make it a command, or a Lambda handler: MODULE.NAME with (event, context)",
        )
    if version.kind in ("python", "wasm") and not version.handler:
        raise Invalid(f"{version.name} has no handler", "give one: --handler app:main")
    if version.kind in ("command", "http", "image", "bootstrap") and not any(version.command[:1]):
        raise Invalid(f"{version.name} has no command to run",
                      "give one, or an image with an entry point")  # fmt: skip
    _check_text(version)
    for name, value in version.environment.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise Invalid(
                f"{name!r} cannot be an environment variable", "use no = in it, and no NUL"
            )
    words = (*version.command, version.handler, version.directory)
    if any("\0" in word for word in words):
        raise Invalid(f"a word of {version.name} has a NUL", "leave it out")
    if not version.directory.startswith("/"):
        raise Invalid(f"the working directory of {version.name} is {version.directory!r}",
                      "give an absolute one: --directory DIR")  # fmt: skip


def _check_given(version: FunctionVersion, given: dict[str, str]) -> None:
    """Raise Invalid for variables that a function cannot be given; an image may have more."""
    size = sum(len(text.encode()) for each in given.items() for text in each)
    if size > ENVIRONMENT_MOST:
        raise Invalid(f"the environment has {size} bytes", f"give at most {ENVIRONMENT_MOST}")
    called = version.kind == "python" and ":" not in version.handler
    fetches = called or version.kind in ("bootstrap", "image")
    if reserved := sorted(RESERVED & given.keys()) if fetches else []:
        raise Invalid(f"the node itself sets {', '.join(reserved)}", "leave it out")


def _check_text(version: FunctionVersion) -> None:
    named = {"command": version.command, "handler": (version.handler, version.directory),
             "environment": (*version.environment, *version.environment.values())}  # fmt: skip
    for what, texts in named.items():
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise Invalid(f"the {what} of {version.name} is not UTF-8",
                          "give such bytes in a file, or by --secret") from None  # fmt: skip


def _check_numbers(version: FunctionVersion) -> None:
    if not 0 < version.timeout <= TIMEOUT_MOST:
        raise Invalid(f"a timeout of {version.timeout:g} s is out of range",
                      f"give more than 0 s, up to {TIMEOUT_MOST:g} s")  # fmt: skip
    if not 0 <= version.keep_warm < float("inf"):
        raise Invalid(f"keep_warm {version.keep_warm} is out of range", "give seconds from 0 on")
    if not 0 <= version.warm <= WARM_MOST:
        raise Invalid(f"{version.warm} instances cannot be kept warm", f"from 0 to {WARM_MOST}")
    if version.warm and version.kind == "command":
        raise Invalid(f"{version.name} has no instances to keep warm: each event starts one",
                      "leave warm out")  # fmt: skip
    if not 1 <= version.per_instance <= PER_INSTANCE_MOST:
        raise Invalid(f"{version.per_instance} requests per instance are out of range",
                      f"from 1 to {PER_INSTANCE_MOST}")  # fmt: skip
    if not 1 <= version.port <= 65535:
        raise Invalid(f"{version.port} is not a valid port", "from 1 to 65535")
    with _invalid():
        Function(
            rootfs="/", command=("/",), memory=version.memory, cpus=version.cpus,
            pids=version.pids, scratch=version.scratch, network=version.network,
            volumes=version.volumes, secrets=version.secrets,
        ).check()  # fmt: skip
