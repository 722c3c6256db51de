"""Requests and answers of the Lambda API. Shapes: its description, API version 2015-03-31."""

import base64
import hashlib
import io
import platform
import re
import time
import uuid
import zipfile
from math import ceil
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from firstlight.agile.functions import settings
from firstlight.agile.functions.errors import Invalid
from firstlight.agile.functions.records import (
    Alias,
    ImageSource,
    Provisioned,
    Registration,
    Revision,
    Settings,
    Source,
    ZipSource,
)

_MIB = 1 << 20
_ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "arm64"}
_SPACE = uuid.UUID("8f1f6a52-6f6e-4d3c-9f0e-5a1d0a3f4b00")

Megabytes = Annotated[int, Meta(ge=128, le=32768)]
Seconds = Annotated[int, Meta(ge=1, le=900)]
Text = Annotated[str, Meta(max_length=256)]
TagKey = Annotated[str, Meta(min_length=1, max_length=128)]
TagsOf = Annotated[dict[TagKey, Text], Meta(max_length=50)]
Level = Literal["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"]
_ROLE = re.compile(r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+")
_VARIABLE = re.compile(r"[a-zA-Z][a-zA-Z0-9_]+")
_RESERVED = settings.RESERVED | {
    "AWS_DEFAULT_REGION", "AWS_EXECUTION_ENV", "AWS_REGION", "_X_AMZN_TRACE_ID"
}  # fmt: skip
_ABSENT = {
    "layers": ("layers", "put them into the code, or into an image"),
    "file_system_configs": (
        "FileSystemConfigs",
        "give it a volume on the node: firstlight agile function update --volume",
    ),
    "vpc_config": ("VpcConfig", "leave it out"),
    "dead_letter_config": (
        "dead-letter targets", "leave it out; given-up events are in dead-letters.jsonl"
    ),
    "code_signing_config_arn": ("code signing", "leave it out"),
    "tenancy_config": ("TenancyConfig", "leave it out"),
    "capacity_provider_config": ("capacity providers", "leave it out"),
    "durable_config": ("durable functions", "leave it out"),
    "accelerator_config": ("accelerators", "leave it out"),
}  # fmt: skip
"""What a function cannot have here: its name and the remedy."""


class _Shape(Struct, frozen=True, kw_only=True, rename="pascal"):
    pass


class Variables(_Shape, frozen=True):
    """Environment."""

    variables: dict[str, str] = {}


class ImageConfig(_Shape, frozen=True):
    """Settings that replace an image's own."""

    entry_point: list[str] | None = None
    command: list[str] | None = None
    working_directory: str | None = None


class Storage(_Shape, frozen=True):
    """The size of /tmp, in MiB."""

    size: Annotated[int, Meta(ge=16, le=10240)]


class Tracing(_Shape, frozen=True):
    """TracingConfig."""

    mode: Literal["Active", "PassThrough"] = "PassThrough"


class Logging(_Shape, frozen=True, omit_defaults=True):
    """LoggingConfig."""

    log_format: Literal["JSON", "Text"] | None = None
    application_log_level: Level | None = None
    system_log_level: Level | None = None
    log_group: Annotated[str, Meta(min_length=1, max_length=512)] | None = None


class Snap(_Shape, frozen=True):
    """SnapStart."""

    apply_on: Literal["PublishedVersions", "None"] = "None"


class CodeShape(_Shape, frozen=True):
    """The source of code: a zip file's bytes, or an image."""

    zip_file: bytes | None = None
    image_uri: str | None = None
    s3_bucket: str | None = None
    architectures: list[str] | None = None

    def source(self) -> Source:
        """The same as the registry takes it. Raises Invalid."""
        if self.s3_bucket is not None:
            raise Invalid("this node has no S3", "give ZipFile or ImageUri")
        machine = _ARCHITECTURES.get(platform.machine(), platform.machine())
        if self.architectures and self.architectures != [machine]:
            raise Invalid(f"this node runs {machine}, not {', '.join(self.architectures)}")
        if (self.zip_file is None) == (self.image_uri is None):
            raise Invalid(
                "the request has no code, or two sources of it", "give ZipFile or ImageUri"
            )
        if self.zip_file == b"":
            raise Invalid("ZipFile is empty", "give the bytes of a zip file")
        if self.zip_file is not None:
            return ZipSource(data=self.zip_file)
        uri = str(self.image_uri)
        if uri.startswith(("oci:", "docker-archive:")):
            raise Invalid("over HTTP, images come from registries",
                          "add it on the node: firstlight agile function add")  # fmt: skip
        return ImageSource(uri if uri.startswith("docker://") else f"docker://{uri}")


class Configuration(_Shape, frozen=True):
    """The settings in CreateFunction and UpdateFunctionConfiguration."""

    runtime: str | None = None
    role: str | None = None
    handler: Annotated[str, Meta(max_length=128, pattern=r"\A\S*\Z")] | None = None
    description: Text | None = None
    timeout: Seconds | None = None
    memory_size: Megabytes | None = None
    environment: Variables | None = None
    image_config: ImageConfig | None = None
    ephemeral_storage: Storage | None = None
    tracing_config: Tracing | None = None
    logging_config: Logging | None = None
    snap_start: Snap | None = None
    kms_key_arn: str | None = msgspec.field(default=None, name="KMSKeyArn")
    revision_id: str | None = None
    layers: list[Any] | None = None
    file_system_configs: list[Any] | None = None
    vpc_config: dict[str, Any] | None = None
    dead_letter_config: dict[str, Any] | None = None
    code_signing_config_arn: str | None = None
    tenancy_config: dict[str, Any] | None = None
    capacity_provider_config: dict[str, Any] | None = None
    durable_config: dict[str, Any] | None = None
    accelerator_config: dict[str, Any] | None = None

    def settings(self) -> Settings:
        """The same as the registry takes it. Raises Invalid."""
        for name, (what, remedy) in _ABSENT.items():
            value = getattr(self, name)
            if any(value.values()) if isinstance(value, dict) else value:
                raise Invalid(f"this node has no {what}", remedy)
        if self.role is not None and not _ROLE.fullmatch(self.role):
            raise Invalid(f"{self.role[:80]!r} is not a role's ARN",
                          "any of the form arn:aws:iam::000000000000:role/NAME")  # fmt: skip
        _check_variables(self.environment)
        given: dict[str, Any] = {
            "handler": self.handler, "role": self.role, "description": self.description,
            "runtime": self.runtime, "kms_key": self.kms_key_arn,
            "tracing": None if self.tracing_config is None else self.tracing_config.mode,
            "snap_start": None if self.snap_start is None else self.snap_start.apply_on,
            "timeout": None if self.timeout is None else float(self.timeout),
            "memory": None if self.memory_size is None else self.memory_size * _MIB,
            "environment": None if self.environment is None else self.environment.variables,
        }  # fmt: skip
        if self.ephemeral_storage:
            given["scratch"] = self.ephemeral_storage.size * _MIB
        if self.logging_config is not None:
            given["logging"] = msgspec.to_builtins(self.logging_config)
        if self.image_config is not None:  # it replaces the one before as a whole
            given["entrypoint"] = tuple(self.image_config.entry_point or ())
            given["arguments"] = tuple(self.image_config.command or ())
            given["directory"] = self.image_config.working_directory or ""
        if self.runtime is not None:
            given["kind"] = _kind(self.runtime)
        return Settings(**{key: value for key, value in given.items() if value is not None})


class Create(Configuration, frozen=True, kw_only=True):
    """CreateFunction."""

    function_name: str
    code: CodeShape
    ephemeral_storage: Storage = Storage(size=512)
    package_type: str = "Zip"
    publish: bool = False
    tags: TagsOf = {}
    architectures: list[str] | None = None


class UpdateCode(CodeShape, frozen=True):
    """UpdateFunctionCode."""

    publish: bool = False
    dry_run: bool = False
    revision_id: str | None = None


class Publish(_Shape, frozen=True):
    """PublishVersion."""

    code_sha256: str | None = msgspec.field(default=None, name="CodeSha256")
    description: Text = ""
    revision_id: str | None = None


class _AliasShape(_Shape, frozen=True):
    routing_config: dict[str, Any] | None = None

    def check(self) -> None:
        """Raise Invalid for a feature that this node does not have."""
        if any((self.routing_config or {}).values()):
            raise Invalid("this node has no weighted aliases", "leave RoutingConfig out")


class CreateAlias(_AliasShape, frozen=True, kw_only=True):
    """CreateAlias."""

    name: str
    function_version: str
    description: Text = ""


class UpdateAlias(_AliasShape, frozen=True, kw_only=True):
    """UpdateAlias."""

    function_version: str | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    revision_id: str | None = None


class Concurrency(_Shape, frozen=True):
    """PutFunctionConcurrency."""

    reserved_concurrent_executions: Annotated[int, Meta(ge=0)]


class Provision(_Shape, frozen=True):
    """PutProvisionedConcurrencyConfig."""

    provisioned_concurrent_executions: Annotated[int, Meta(ge=1)]


class Tags(_Shape, frozen=True):
    """TagResource."""

    tags: TagsOf


def configuration(
    function: Registration, revision: Revision, qualifier: str = ""
) -> dict[str, Any]:
    """A FunctionConfiguration. ``qualifier`` is the request's."""
    version, given = revision.version, revision.settings
    answer: dict[str, Any] = {
        "FunctionName": function.name,
        "FunctionArn": settings.qualified(function.name, qualifier),
        "CodeSize": revision.code.size,
        "CodeSha256": _sha256(revision.code.digest),
        "Description": given.description or "",
        "Timeout": ceil(version.timeout),
        "MemorySize": version.memory // _MIB,
        "LastModified": _time(revision.modified),
        "Version": version.version,
        "TracingConfig": {"Mode": given.tracing or "PassThrough"},
        "LoggingConfig": {
            "LogFormat": "Text",
            "LogGroup": f"/aws/lambda/{function.name}",
            **(given.logging or {}),
        },
        "SnapStart": {"ApplyOn": given.snap_start or "None", "OptimizationStatus": "Off"},
        "RevisionId": revision_id(revision.number),
        "State": "Active",
        "LastUpdateStatus": "Successful",
        "PackageType": "Image" if revision.image else "Zip",
        "Architectures": [_ARCHITECTURES.get(platform.machine(), platform.machine())],
        "EphemeralStorage": {"Size": version.scratch // _MIB},
    }
    if given.role:
        answer["Role"] = given.role
    if given.kms_key:
        answer["KMSKeyArn"] = given.kms_key
    if version.handler:
        answer["Handler"] = version.handler
    if given.runtime:
        answer["Runtime"] = given.runtime
    if given.environment:
        answer["Environment"] = {"Variables": given.environment}
    if revision.image and (given.entrypoint or given.arguments or given.directory):
        answer["ImageConfigResponse"] = {
            "ImageConfig": {
                "EntryPoint": list(given.entrypoint or ()), "Command": list(given.arguments or ()),
                "WorkingDirectory": given.directory or "",
            }
        }  # fmt: skip
    return answer


def tried(function: Registration, code: "UpdateCode") -> dict[str, Any]:
    """The result that UpdateFunctionCode would have; blocks. Raises Invalid if it is not a zip
    file.
    """
    answer = configuration(function, function.latest)
    if code.zip_file is not None:
        if not zipfile.is_zipfile(io.BytesIO(code.zip_file)):
            raise Invalid("the code is not a zip file")
        digest = hashlib.sha256(code.zip_file).hexdigest()
        answer |= {"CodeSize": len(code.zip_file), "CodeSha256": _sha256(f"sha256:{digest}")}
    return answer


def function(registration: Registration, revision: Revision, qualifier: str = "") -> dict[str, Any]:
    """The answer to GetFunction."""
    code = {"RepositoryType": "firstlight", "Location": revision.code.source}
    if revision.image:
        uri = revision.code.source.removeprefix("docker://")
        name = uri.split("@")[0]
        code = {"RepositoryType": "ECR", "ImageUri": uri,
                "ResolvedImageUri": f"{name}@{revision.code.digest}"}  # fmt: skip
    described = configuration(registration, revision, qualifier)
    answer: dict[str, Any] = {"Configuration": described, "Code": code}
    if registration.tags:
        answer["Tags"] = registration.tags
    if registration.concurrency is not None:
        answer["Concurrency"] = {"ReservedConcurrentExecutions": registration.concurrency}
    return answer


def alias(name: str, described: Alias) -> dict[str, Any]:
    """An AliasConfiguration."""
    return {
        "AliasArn": settings.qualified(name, described.name), "Name": described.name,
        "FunctionVersion": described.version, "Description": described.description,
        "RevisionId": revision_id(described.revision),
    }  # fmt: skip


def provisioned(kept: Provisioned, ready: int) -> dict[str, Any]:
    """A provisioned concurrency configuration with this many instances ready."""
    ready = min(ready, kept.instances)
    return {
        "RequestedProvisionedConcurrentExecutions": kept.instances,
        "AvailableProvisionedConcurrentExecutions": ready,
        "AllocatedProvisionedConcurrentExecutions": ready,
        "Status": "READY" if ready == kept.instances else "IN_PROGRESS",
        "LastModified": _time(kept.modified),
    }


def revision_id(number: int) -> str:
    """A revision's number as the API shows it."""
    return str(uuid.UUID(int=_SPACE.int + number))


def revision_number(identity: str | None) -> int | None:
    """The number of a RevisionId; for an invalid one, a number that no revision has."""
    if identity is None:
        return None
    try:
        return uuid.UUID(identity).int - _SPACE.int
    except ValueError:
        return -1


def _sha256(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()


def _check_variables(environment: Variables | None) -> None:
    """Raise Invalid for variables that the API does not let a function have."""
    names = environment.variables if environment else {}
    if reserved := sorted(_RESERVED & names.keys()):
        raise Invalid(f"reserved environment variables cannot be set: {', '.join(reserved)}",
                      "leave them out")  # fmt: skip
    for name in names:
        if not _VARIABLE.fullmatch(name):
            raise Invalid(f"{name[:80]!r} cannot be an environment variable",
                          "a letter, then one or more letters, digits and _")  # fmt: skip


def _kind(runtime: str) -> str:
    if runtime.startswith("python3"):
        return "python"
    if runtime.startswith("provided"):
        return "bootstrap"
    raise Invalid(f"this node has no runtime {runtime[:60]!r}",
                  "use python3 (the host's), provided, or an image")  # fmt: skip


def _time(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}+0000"
