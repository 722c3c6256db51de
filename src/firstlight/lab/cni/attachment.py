"""One interface of one pod, and the request by which ``cnirun`` makes and ends it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import FirstlightError
from firstlight.lab.cni.conf import NetworkList, execution
from firstlight.lab.cni.plugin import find

_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_INTERFACE = re.compile(r"(?!\.{1,2}$)[^\s/:]{1,15}")


class BadAttachment(FirstlightError):
    """An attachment that the specification does not allow."""


@dataclass(frozen=True)
class Attachment:
    """One interface of one container. ``args`` is CNI_ARGS."""

    container: str
    namespace: str
    interface: str = "eth0"
    args: str = ""

    def __post_init__(self) -> None:
        if not _CONTAINER.fullmatch(self.container):
            raise BadAttachment(
                f"container id {self.container!r} is not allowed",
                "letters and digits, then also '_', '.' and '-'",
            )
        if not _INTERFACE.fullmatch(self.interface):
            raise BadAttachment(
                f"interface name {self.interface!r} is not allowed",
                "1 to 15 characters without '/', ':' and white space",
            )

    def variables(self, path: Sequence[Path]) -> dict[str, str]:
        """The specification's variables but for CNI_COMMAND; CNI_ARGS only if there are any."""
        variables = {
            "CNI_PATH": ":".join(map(str, path)),
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": self.namespace,
            "CNI_IFNAME": self.interface,
        }
        return {**variables, "CNI_ARGS": self.args} if self.args else variables


def request(
    network: NetworkList,
    attachment: Attachment,
    path: Sequence[Path],
    kept: Path,
    environment: Mapping[str, str],
    more: Iterable[str] = (),
) -> str:
    """A request as ``native/cni/cnirun.c`` describes it; ``more`` are further lines of it.

    Plugins are looked for in ``path`` and get ``environment`` besides the specification's
    variables; ``kept`` is where the result is kept. Raises Unsupported.
    """
    variables = {**environment, **attachment.variables(path)}
    lines = [
        f"kept {kept}",
        f"version {network.version}",
        f"namespace {attachment.namespace}",
        f"interface {attachment.interface}",
        *more,
        *(f"env {name}={value}" for name, value in variables.items()),
    ]
    for plugin in network.plugins:
        lines += [
            f"plugin {find(plugin['type'], path)}",
            f"conf {json.dumps(execution(network, plugin))[:-1]}",
        ]
    return "\n".join(lines) + "\n"
