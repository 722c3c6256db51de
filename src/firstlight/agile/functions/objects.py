"""The custom resource Function: its meaning for a runtime, and its status by node.

The status is bounded, whatever the number of nodes: it names a few, those that fail first.
``deploy/kubernetes/functions/crd.yaml`` describes the fields.
"""

import base64
import datetime
import io
import zipfile
from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from firstlight.agile import protocol
from firstlight.agile.apiserver import Object
from firstlight.agile.function import Reach
from firstlight.agile.functions.records import ImageSource, Settings, Source, ZipSource
from firstlight.agile.functions.version import Kind
from firstlight.errors import Failed

OWNER = "kubernetes"
NODES_MOST, MESSAGE_MOST = 16, 1024
UID, _GENERATION = "firstlight.dev/uid", "firstlight.dev/generation"

State = tuple[str, int]
"""Which object it is, by its UID, and which generation of it."""


class CodeSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """The code: files by name, a zip file in base64, or an image."""

    files: dict[str, str] = {}
    zip: str = ""
    image: str = ""


class Spec(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A Function's ``spec``. ``memory`` and ``scratch`` are quantities, times are in seconds."""

    code: CodeSpec
    kind: Kind | UnsetType = UNSET
    handler: str | UnsetType = UNSET
    command: tuple[str, ...] | UnsetType = UNSET
    entrypoint: tuple[str, ...] | UnsetType = UNSET
    arguments: tuple[str, ...] | UnsetType = UNSET
    environment: dict[str, str] | UnsetType = UNSET
    directory: str | UnsetType = UNSET
    memory: str | int | UnsetType = UNSET
    scratch: str | int | UnsetType = UNSET
    cpus: float | UnsetType = UNSET
    pids: int | UnsetType = UNSET
    timeout: float | UnsetType = UNSET
    keep_warm: float | UnsetType = UNSET
    warm: int | UnsetType = UNSET
    per_instance: int | UnsetType = UNSET
    network: Reach | UnsetType = UNSET
    netlink: bool | UnsetType = UNSET
    port: int | UnsetType = UNSET
    description: str | UnsetType = UNSET
    concurrency: int | None = None
    queue: int = 0


def state(function: Object) -> State:
    """An object's metadata, with or without its content."""
    return function["metadata"]["uid"], function["metadata"]["generation"]


def kept(tags: dict[str, str]) -> State:
    """The state that a registered function was made from. Clients of the API can change tags."""
    try:
        return tags[UID], int(tags[_GENERATION])
    except (KeyError, ValueError):
        return "", 0


def request(function: Object) -> protocol.ApplyFunction:
    """The request that makes the runtime's function match the object. Raises Failed."""
    try:
        spec = msgspec.convert(function["spec"], Spec)
        settings: dict[str, Any] = {
            name: value for name in Settings.__struct_fields__
            if (value := getattr(spec, name, UNSET)) is not UNSET
        }  # fmt: skip
        for name in ("memory", "scratch"):
            if name in settings:
                settings[name] = _bytes(settings[name])
        uid, generation = state(function)
        return protocol.ApplyFunction(
            name=function["metadata"]["name"], source=_source(spec.code),
            settings=Settings(**settings), owner=OWNER,
            tags={UID: uid, _GENERATION: str(generation)},
            concurrency=spec.concurrency, queue=spec.queue,
        )  # fmt: skip
    except (KeyError, ValueError, msgspec.ValidationError) as error:
        raise Failed(f"the Function is malformed: {error}",
                     "kubectl explain functions.spec") from error  # fmt: skip


def status(function: Object, node: str, problem: str) -> Object:
    """The object's status after a node's attempt; ``problem`` is "" if the node serves it.

    It is unchanged if nothing is new, or if there is no room for one more node.
    """
    before = function.get("status") or {}
    generation = function["metadata"]["generation"]
    now = _now()
    nodes = {each["name"]: each for each in before.get("nodes") or ()
             if each.get("generation") == generation}  # fmt: skip
    own = {"name": node, "generation": generation, "ready": not problem,
           "message": problem[:MESSAGE_MOST]}  # fmt: skip
    if {**nodes.get(node, {}), "time": ""} != {**own, "time": ""}:
        nodes[node] = own | {"time": now}
    return _status(before, generation, list(nodes.values()), now)


def unready(function: Object) -> list[str]:
    """The nodes that do not serve the object, as its status has it."""
    nodes = (function.get("status") or {}).get("nodes") or ()
    return [each["name"] for each in nodes if not each["ready"]]


def without(function: Object, gone: Collection[str]) -> Object:
    """The object's status when the cluster no longer has these nodes."""
    before = function["status"]
    nodes = [each for each in before["nodes"] if each["name"] not in gone]
    return _status(before, before["observedGeneration"], nodes, _now())


def _status(before: Object, generation: int, nodes: list[Object], now: str) -> Object:
    shown = sorted(nodes, key=lambda each: (each["ready"], each["time"]))[:NODES_MOST]
    failed = [each for each in shown if not each["ready"]]
    condition = {
        "type": "Ready", "status": "False" if failed else "True", "observedGeneration": generation,
        "reason": "Refused" if failed else "Served",
        "message": f"{failed[0]['name']}: {_line(failed[0]['message'])}" if failed else "",
        "lastTransitionTime": now,
    }  # fmt: skip
    for each in before.get("conditions") or ():
        if each["type"] == condition["type"] and each["status"] == condition["status"]:
            condition["lastTransitionTime"] = each["lastTransitionTime"]
    return {"observedGeneration": generation, "conditions": [condition] if shown else [],
            "nodes": sorted(shown, key=lambda each: str(each["name"]))}  # fmt: skip


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _line(text: str) -> str:
    """Shorten a problem for a table: a traceback has its reason at the end."""
    lines = text.strip().splitlines()
    return f"{lines[0]} … {lines[-1].strip()}" if len(lines) > 1 else text


def _source(code: CodeSpec) -> Source:
    if bool(code.files) + bool(code.zip) + bool(code.image) != 1:
        raise ValueError("code is files, zip or image, and one of them")
    if code.image:
        return ImageSource(code.image)
    if code.zip:
        return ZipSource(data=base64.b64decode(code.zip, validate=True))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, text in sorted(code.files.items()):
            # without times, so that the same code has the same digest
            file.writestr(zipfile.ZipInfo(name), text)
    return ZipSource(data=archive.getvalue())


def _bytes(quantity: str | int) -> int:
    from kubernetes.utils import parse_quantity

    return int(parse_quantity(quantity))  # type: ignore[no-untyped-call]
