"""What a node of the lab's cluster sees of the host's files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_LOOK = """
import sys
from pathlib import Path
from firstlight.lab.cluster import mounts
tree, work = Path(sys.argv[1]), Path(sys.argv[2])
mounts._OVERLAID = tuple(tree / name for name in ("etc", "opt", "var"))
mounts.private(work, work / "scratch", [])
for each in sorted(tree.rglob("*")):
    if each.is_file():
        print(each.relative_to(tree))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_node_begins_without_the_hosts_cni_plugins(tmp_path: Path) -> None:
    tree, work = tmp_path / "host", tmp_path / "work"
    files = (
        "etc/cni/net.d/87-podman.conflist", "etc/resolv.conf", "opt/cni/bin/bridge", "opt/tool",
        "var/lib/cni/networks/podman/10.88.0.2", "var/lib/other",
    )  # fmt: skip
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    work.mkdir()
    seen = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", sys.executable, "-c", _LOOK, tree, work],
        check=True, stdout=subprocess.PIPE, text=True, timeout=60,
    ).stdout.split()  # fmt: skip
    assert seen == ["etc/resolv.conf", "opt/tool", "var/lib/other"]
    assert all((tree / name).exists() for name in files)
