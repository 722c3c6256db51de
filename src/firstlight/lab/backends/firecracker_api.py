"""A Firecracker VM as API requests or as a configuration file.

The bodies follow the published description, src/firecracker/swagger/firecracker.yaml in its
repository, as far as all versions since 1.4 accept it; before 1.4 there is no ``/entropy``. Nothing
here is timed: ``vmrun`` makes the requests of measured starts.
"""

import json
import socket
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from firstlight.errors import Failed, longer

_ANSWER_SECONDS = longer(120.0)  # a snapshot writes the guest's whole memory

Body = dict[str, object]


@dataclass(frozen=True)
class Request:
    """A request; ``path`` begins with a slash."""

    method: str
    path: str
    body: Body


@dataclass(frozen=True)
class Machine:
    """A guest and its devices. Paths are as Firecracker sees them, in a jail from its root.

    Drives are not root devices: Firecracker would add a ``root=`` to the guest's arguments.
    """

    kernel: str
    arguments: str
    initrd: str | None = None
    disk: str | None = None
    writable: bool = False
    tap: str | None = None
    mac: str | None = None
    has_rng: bool = False
    memory_mb: int = 1024
    cpus: int = 1


def configuration(machine: Machine) -> Body:
    """The VM as the content of a ``--config-file``."""
    source: Body = {"kernel_image_path": machine.kernel, "boot_args": machine.arguments}
    if machine.initrd:
        source["initrd_path"] = machine.initrd
    whole: Body = {
        "machine-config": {"vcpu_count": machine.cpus, "mem_size_mib": machine.memory_mb},
        "boot-source": source,
        "drives": [],
        "network-interfaces": [],
    }
    if machine.disk:
        whole["drives"] = [
            {
                "drive_id": "disk",
                "path_on_host": machine.disk,
                "is_root_device": False,
                "is_read_only": not machine.writable,
            }
        ]
    if machine.tap:
        whole["network-interfaces"] = [
            {"iface_id": "net", "host_dev_name": machine.tap, "guest_mac": machine.mac}
        ]
    if machine.has_rng:
        whole["entropy"] = {}
    return whole


def text(machine: Machine) -> str:
    """The same, as JSON text."""
    return json.dumps(configuration(machine), indent=1)


def requests(machine: Machine) -> list[Request]:
    """The VM as requests; the last one starts it."""
    made = []
    for part, content in configuration(machine).items():
        if isinstance(content, list):
            for device in content:
                name = device.get("drive_id") or device["iface_id"]
                made.append(Request("PUT", f"/{part}/{name}", device))
        elif isinstance(content, dict):
            made.append(Request("PUT", f"/{part}", content))
    return [*made, Request("PUT", "/actions", {"action_type": "InstanceStart"})]


def save(state: str, memory: str) -> list[Request]:
    """Pause a running guest and write its state and memory to files."""
    return [
        Request("PATCH", "/vm", {"state": "Paused"}),
        Request(
            "PUT",
            "/snapshot/create",
            {"snapshot_type": "Full", "snapshot_path": state, "mem_file_path": memory},
        ),
    ]


def restore(state: str, memory: str, tap: str | None) -> list[Request]:
    """Load a saved guest and resume it, on another ``tap`` if one is given.

    Another tap needs Firecracker 1.12 or later.
    """
    body: Body = {
        "snapshot_path": state,
        "mem_backend": {"backend_type": "File", "backend_path": memory},
        "resume_vm": True,
    }
    if tap:
        body["network_overrides"] = [{"iface_id": "net", "host_dev_name": tap}]
    return [Request("PUT", "/snapshot/load", body)]


def lines(made: list[Request]) -> str:
    """Requests as ``vmrun`` reads them: METHOD PATH BODY, one per line."""
    return "".join(f"{each.method} {each.path} {json.dumps(each.body)}\n" for each in made)


def perform(api: Path, made: list[Request]) -> None:
    """Make requests in sequence, untimed. Raises Failed with Firecracker's message."""
    connection = _Connection(api)
    try:
        for each in made:
            connection.request(
                each.method,
                each.path,
                json.dumps(each.body),
                {"Content-Type": "application/json", "Accept": "application/json"},
            )
            answer = connection.getresponse()
            body = answer.read()
            if answer.status // 100 != 2:
                raise Failed(
                    f"Firecracker answered {answer.status} to {each.method} {each.path}: "
                    f"{_fault(body)}"
                )
    except (OSError, HTTPException) as error:
        raise Failed(f"Firecracker's API at {api} does not answer: {error}") from error
    finally:
        connection.close()


def _fault(body: bytes) -> str:
    try:
        return str(json.loads(body)["fault_message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip() or "no reason given"


class _Connection(HTTPConnection):
    def __init__(self, api: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECONDS)
        self._api = api

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._api))
