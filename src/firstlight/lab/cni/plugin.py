"""Calls one plugin: environment, standard input, answer."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import FirstlightError, Unsupported
from firstlight.lab.cni.conf import Json

_SHOWN_BYTES = 400
_PACKAGED = frozenset(
    ("bandwidth", "bridge", "dhcp", "firewall", "host-device", "host-local", "ipvlan", "loopback",
     "macvlan", "portmap", "ptp", "sbr", "static", "tuning", "vlan", "vrf")
)  # fmt: skip
_BUILT = frozenset(("flannel", "weave-net", "weave-ipam", "calico", "calico-ipam", "cilium-cni"))


class PluginError(FirstlightError):
    """A plugin failed. ``code``, ``text`` and ``details`` are from its answer, if it gave one."""

    def __init__(
        self, call: str, fact: str, *, code: int | None = None, details: str = "",
        hint: str | None = None,
    ) -> None:  # fmt: skip
        coded = f" (code {code})" if code is not None else ""
        super().__init__(f"{call}: {fact}{coded}{': ' + details if details else ''}", hint)
        self.code = code
        self.text = fact
        self.details = details


@dataclass(frozen=True)
class Call:
    """What identifies a call of a plugin, besides its configuration.

    ``args`` is CNI_ARGS. A command without an attachment leaves the first three fields empty.
    """

    container: str = ""
    namespace: str = ""
    interface: str = ""
    args: str = ""

    def environment(self, command: str, path: Sequence[Path]) -> dict[str, str]:
        """The specification's variables, and those of this process that a program needs.

        A variable without a value is left out; except CNI_NETNS, which is empty for a DEL whose
        namespace is gone.
        """
        variables = {"CNI_COMMAND": command, "CNI_PATH": ":".join(map(str, path))}
        if self.container:
            variables |= {
                "CNI_CONTAINERID": self.container,
                "CNI_NETNS": self.namespace,
                "CNI_IFNAME": self.interface,
            }
            if self.args:
                variables["CNI_ARGS"] = self.args
        return variables


def find(kind: str, path: Sequence[Path]) -> Path:
    """The executable of a plugin's type, from the first directory with it. Raises Unsupported."""
    for directory in path:
        program = directory / kind
        if program.is_file() and os.access(program, os.X_OK):
            return program
    packaged = "apt-get install containernetworking-plugins, or " if kind in _PACKAGED else ""
    built = "make cni-plugins, or " if kind in _BUILT else ""
    raise Unsupported(
        f"CNI plugin {kind!r} is not installed",
        f"{packaged}{built}set CNI_PATH to its directory",
    )


def invoke(
    program: Path,
    variables: Mapping[str, str],
    configuration: Json,
    *,
    timeout: float,
    base: Mapping[str, str] | None = None,
) -> Json | None:
    """Execute a plugin; returns the JSON object that it printed, or None.

    ``base`` is the environment below ``variables``; None is this process's. Raises PluginError.
    """
    call = f"plugin {program.name} {variables['CNI_COMMAND']}"
    try:
        done = subprocess.run(
            [program],
            input=json.dumps(configuration).encode(),
            capture_output=True,
            env={**(os.environ if base is None else base), **variables},
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise PluginError(call, f"no answer in {timeout:g} s; killed") from error
    except OSError as error:
        raise PluginError(call, f"cannot execute {program}: {error.strerror}") from error
    text = done.stdout.decode(errors="replace").strip()
    if done.returncode == 0:
        return _answer(call, text) if text else None
    raise _failure(call, done.returncode, text, done.stderr.decode(errors="replace"))


def _answer(call: str, text: str) -> Json:
    try:
        answer = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PluginError(call, f"printed what is not JSON: {_shown(text)}") from error
    if not isinstance(answer, dict):
        raise PluginError(call, f"printed JSON that is not an object: {_shown(text)}")
    return answer


def _failure(call: str, status: int, text: str, complaint: str) -> PluginError:
    ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    try:
        said = json.loads(text)
        message, code = said["msg"], said.get("code")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        words = _shown(complaint.strip() or text)
        return PluginError(call, f"{ended}{': ' + words if words else ', without a message'}")
    return PluginError(
        call,
        str(message),
        code=code if isinstance(code, int) else None,
        details=str(said.get("details") or ""),
    )


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_BYTES else f"{text[:_SHOWN_BYTES]}…"
