"""A Firecracker where there is none: its command line, its API and its log, and a guest's bytes.

Run as a program it is one. Every request is held against ``DESCRIBED``, which was written down from
Firecracker's own description (src/firecracker/swagger/firecracker.yaml, v1.16.1). Guests are those
of tinyguest.py: the few instructions that they are made of are carried out.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

VERSION = "1.16.1"
DESCRIBED: dict[tuple[str, str], tuple[dict[str, type], dict[str, type]]] = {
    ("PUT", "/machine-config"): (
        {"vcpu_count": int, "mem_size_mib": int},
        {"smt": bool, "cpu_template": str, "track_dirty_pages": bool, "huge_pages": str},
    ),
    ("PUT", "/boot-source"): ({"kernel_image_path": str}, {"boot_args": str, "initrd_path": str}),
    ("PUT", "/drives/{drive_id}"): (
        {"drive_id": str, "is_root_device": bool},
        {"partuuid": str, "cache_type": str, "is_read_only": bool, "path_on_host": str,
         "rate_limiter": dict, "io_engine": str, "socket": str},
    ),
    ("PUT", "/network-interfaces/{iface_id}"): (
        {"host_dev_name": str, "iface_id": str},
        {"guest_mac": str, "mtu": int, "rx_rate_limiter": dict, "tx_rate_limiter": dict},
    ),
    ("PUT", "/entropy"): ({}, {"rate_limiter": dict}),
    ("PUT", "/actions"): ({"action_type": str}, {}),
    ("PATCH", "/vm"): ({"state": str}, {}),
    ("PUT", "/snapshot/create"): (
        {"mem_file_path": str, "snapshot_path": str}, {"snapshot_type": str}
    ),
    ("PUT", "/snapshot/load"): (
        {"snapshot_path": str},
        {"mem_backend": dict, "mem_file_path": str, "resume_vm": bool, "network_overrides": list,
         "track_dirty_pages": bool, "enable_diff_snapshots": bool, "vsock_override": dict,
         "clock_realtime": bool},
    ),
}  # fmt: skip
"""What each request must hold and may hold besides, by name and type."""
_CHOICES = {
    "action_type": ("FlushMetrics", "InstanceStart", "SendCtrlAltDel"),
    "state": ("Paused", "Resumed"),
    "snapshot_type": ("Full", "Diff"),
    "backend_type": ("File", "Uffd"),
}


class Refused(Exception):
    """A request's fault, in the words of the answer."""


def check(method: str, path: str, body: dict[str, Any]) -> str:
    """The described path of a request. Raises Refused if it is not as described."""
    parts = path.strip("/").split("/")
    for (known, template), (required, optional) in DESCRIBED.items():
        names = template.strip("/").split("/")
        if known != method or len(names) != len(parts):
            continue
        pairs = list(zip(names, parts, strict=True))
        if any(name != part for name, part in pairs if not name.startswith("{")):
            continue
        _check_body(body, required, optional)
        for name, part in pairs:
            if name.startswith("{") and body[name[1:-1]] != part:
                raise Refused(f"The id from the path [{part}] does not match the body")
        return template
    raise Refused(f"Invalid request method and/or path: {method} {path.strip('/')}.")


def _check_body(body: dict[str, Any], required: dict[str, type], optional: dict[str, type]) -> None:
    known = required | optional
    for name, value in body.items():
        if name not in known:
            raise Refused(f"unknown field `{name}`, expected one of {', '.join(known)}")
        if type(value) is not known[name] or value not in _CHOICES.get(name, (value,)):
            raise Refused(f"invalid value for `{name}`: {value!r}")
    for name in required:
        if name not in body:
            raise Refused(f"missing field `{name}`")


def serial(code: bytes) -> Iterator[int]:
    """What a guest of tinyguest.py writes on its serial port, until it halts or resets."""
    at, port, value = 0, 0, 0
    while at < len(code):
        if code[at : at + 2] == b"\x66\xba":
            port, at = int.from_bytes(code[at + 2 : at + 4], "little"), at + 4
        elif code[at] == 0xB0:
            value, at = code[at + 1], at + 2
        elif code[at] == 0xEE:
            at += 1
            if port == 0x3F8:
                yield value
            elif (port, value) == (0x64, 0xFE):
                return
        elif code[at : at + 3] == b"\x83\xe9\x01" or code[at] == 0xB9:
            at += 5
        else:
            threading.Event().wait()  # hlt, or a jump to itself


class Machine:
    """One machine, told what to be by requests."""

    def __init__(self, log: Path | None) -> None:
        self._log_file = log
        self.settings: dict[str, dict[str, Any]] = {}
        self._is_running = self._is_paused = False

    def log(self, text: str) -> None:
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now // 10**9))
        line = f"{stamp}.{now % 10**9:09} [anonymous-instance:main] {text}\n"
        if self._log_file:
            with self._log_file.open("a") as file:
                file.write(line)
        else:
            sys.stdout.write(line)

    def do(self, method: str, path: str, body: dict[str, Any]) -> None:
        """One request. Raises Refused."""
        described = check(method, path, body)
        if described == "/actions":
            self.start()
        elif described == "/vm":
            self._is_paused = body["state"] == "Paused"
        elif described == "/snapshot/create":
            if not self._is_paused:
                raise Refused("Create snapshot error: Cannot save a microVM that is not paused.")
            Path(body["snapshot_path"]).write_text(json.dumps([VERSION, self.settings]))
            Path(body["mem_file_path"]).write_bytes(bytes(4096))
        elif described == "/snapshot/load":
            self._load(body)
        elif self._is_running:
            raise Refused("The requested operation is not supported after starting the microVM.")
        else:
            self.settings[path] = body
            self._open(described, body)

    def _open(self, described: str, body: dict[str, Any]) -> None:
        file = {"/boot-source": "kernel_image_path", "/drives/{drive_id}": "path_on_host"}
        what = {"/boot-source": "Boot source error: The kernel file cannot be opened"}
        name = file.get(described)
        if name and not Path(body[name]).is_file():
            reason = what.get(described, "Block device error")
            raise Refused(f"{reason}: No such file or directory (os error 2)")

    def _load(self, body: dict[str, Any]) -> None:
        if self.settings:
            raise Refused("Load snapshot error: Loading a microVM snapshot not allowed after "
                          "configuring boot-specific resources.")  # fmt: skip
        version, self.settings = json.loads(Path(body["snapshot_path"]).read_text())
        if version != VERSION:
            raise Refused(f"Load snapshot error: Invalid snapshot version: {version}")
        _check_body(body["mem_backend"], {"backend_type": str, "backend_path": str}, {})
        if not Path(body["mem_backend"]["backend_path"]).is_file():
            raise Refused("Load snapshot error: Failed to open memory file")
        for override in body.get("network_overrides", []):
            _check_body(override, {"iface_id": str, "host_dev_name": str}, {})
        self.log("Artificially kick devices")

    def start(self) -> None:
        """Let the guest run."""
        if "/boot-source" not in self.settings:
            raise Refused("Start microvm error: Cannot start microvm without kernel configuration.")
        kernel = Path(self.settings["/boot-source"]["kernel_image_path"]).read_bytes()
        at = kernel.find(b"\x66\xba")
        if not kernel.startswith(b"\x7fELF") or at < 0:
            raise Refused("Start microvm error: Invalid Elf magic number")
        self._is_running = True
        self.log("Artificially kick devices")
        threading.Thread(target=self._run, args=(kernel[at:],), daemon=True).start()

    def _run(self, code: bytes) -> None:
        for byte in serial(code):
            os.write(1, bytes((byte,)))
        self.log("Vmm is stopping.")
        os._exit(0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    machine: Machine

    def _answer(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            self.machine.do(self.command, self.path, json.loads(text))
            status, words = 204, b""
        except Refused as error:
            status, words = 400, json.dumps({"fault_message": str(error)}).encode()
        self.send_response(status)
        if words:
            self.send_header("Content-Length", str(len(words)))
        self.end_headers()
        self.wfile.write(words)

    do_PUT = do_PATCH = _answer  # noqa: N815

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        """It is silent."""


def main() -> int:
    """Be a Firecracker."""
    request = argparse.ArgumentParser()
    for flag in ("--version", "--no-api"):
        request.add_argument(flag, action="store_true")
    for option in ("--id", "--level", "--log-path", "--config-file", "--api-sock"):
        request.add_argument(option)
    message = request.parse_args()
    if message.version:
        print(f"Firecracker v{VERSION}\n")  # noqa: T201
        return 0
    _Handler.machine = machine = Machine(Path(message.log_path) if message.log_path else None)
    server = ThreadingUnixStreamServer(message.api_sock, _Handler) if message.api_sock else None
    try:
        if message.config_file:
            _configure(machine, json.loads(Path(message.config_file).read_text()))
    except Refused as error:
        machine.log(f"RunWithoutApiError error: Failed to build MicroVM from Json: {error}")
        machine.log("Firecracker exiting with error. exit_code=1")
        return 1
    if server:
        server.serve_forever()
    threading.Event().wait()
    return 0


def _configure(machine: Machine, whole: dict[str, Any]) -> None:
    for part, content in whole.items():
        for body in content if isinstance(content, list) else [content]:
            name = body.get("drive_id") or body.get("iface_id")
            machine.do("PUT", f"/{part}/{name}" if name else f"/{part}", body)
    machine.start()


if __name__ == "__main__":
    sys.exit(main())
