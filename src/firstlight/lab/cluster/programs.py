"""The programs built by ``make kubernetes``, and why one is missing."""

import os
import sys
from pathlib import Path

from firstlight.errors import Unsupported
from firstlight.native import make

BUILT = Path(os.environ.get("FIRSTLIGHT_KUBERNETES") or Path(sys.prefix, "libexec", "kubernetes"))
"""The directory of their links; ``NAME.missing`` says why one could not be built."""

CLUSTER = ("etcd", "containerd", "containerd-shim-runc-v2", "ctr", "kube-apiserver",
           "kube-scheduler", "kube-controller-manager", "kubelet", "kube-proxy")  # fmt: skip
NODE = ("containerd", "containerd-shim-runc-v2", "ctr")
DAEMONS = ("flanneld",)
"""The daemons of CNI products that are built apart."""


def path(name: str) -> Path:
    """The program with this name. Raises Unsupported."""
    program = BUILT / name
    if program.exists():
        return program
    hint = make("cni-daemons" if name in DAEMONS else "kubernetes")
    try:
        why = (BUILT / f"{name}.missing").read_text().strip()
    except FileNotFoundError:
        raise Unsupported(f"{name} is not built", hint) from None
    raise Unsupported(f"{name} could not be built: {why}", hint)


def probe(names: tuple[str, ...]) -> None:
    """Raise Unsupported if one of them is missing."""
    for name in names:
        path(name)
