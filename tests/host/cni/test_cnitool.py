"""``cnirun`` against cnitool, libcni's own: the same configuration, the same calls of plugins."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.support.cni_bench import Bench, bench

from firstlight.lab.cni import conf
from firstlight.lab.cni.attachment import Attachment

__all__ = ["bench"]

CNITOOL = Path(__file__).parents[3] / ".venv" / "libexec" / "cni" / "tools" / "cnitool"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not CNITOOL.exists(), reason=f"{CNITOOL} is missing: make cni-plugins"),
]
SCRIPT = """
mount -t tmpfs none /var/lib || exit 3
for command in "$@"; do "$CNITOOL" $command net /proc/self/ns/net || exit 4; done
"""


def reference(bench: Bench, text: str, *commands: str) -> list[dict[str, Any]]:
    """What cnitool's plugins were given, in a mount namespace that hides the host's own cache."""
    directory = bench.directory / "net.d"
    directory.mkdir()
    (directory / "10-net.conflist").write_text(text)
    record = bench.directory / "reference"
    subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", SCRIPT,
         "sh", *commands],
        check=True, capture_output=True,
        env={**os.environ, "CNITOOL": str(CNITOOL), "NETCONFPATH": str(directory),
             "CNI_PATH": str(bench.directory / "bin"), "RECORD": str(record),
             "CNI_ARGS": "A=b;C=d"},
    )  # fmt: skip
    return [json.loads(line) for line in record.read_text().splitlines()]


def comparable(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what may differ: empty variables, and ``capabilities``, which cnitool leaves in
    though the specification says that a plugin must not get it."""
    for call in calls:
        call["env"] = {name: value for name, value in call["env"].items() if value}
        call["stdin"].pop("capabilities", None)
    return calls


@pytest.mark.parametrize("version", conf.VERSIONS)
def test_plugins_are_given_what_cnitool_gives_them(bench: Bench, version: str) -> None:
    plugins = [{"type": "one", "capabilities": {"mac": True}, "mtu": 1400}, {"type": "two"}]
    text = json.dumps({"cniVersion": version, "name": "net", "plugins": plugins})
    commands = {"add": "up", "del": "del"}
    expected = comparable(reference(bench, text, *commands))
    container = expected[0]["env"]["CNI_CONTAINERID"]
    pod = Attachment(container, "/proc/self/ns/net", "eth0", "A=b;C=d")
    network = conf.parse(text, "test")
    bench.under = ("unshare", "--net")  # where no interface is called eth0
    for verb in commands.values():
        assert not bench.run(verb, network, pod)
    assert len(expected) == 2 * len(commands)
    assert comparable(bench.calls) == expected
