"""Runs cases of critest against a containerd of ours: conformance.py DIRECTORY RUNTIME CASE...

In a process of its own, which enters the namespaces of a run. The report is DIRECTORY/report.json.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from firstlight.host.workspace import sandbox
from firstlight.lab.cluster import image, programs, running

BUSYBOX = Path("/bin/busybox")
IMAGE = "docker.io/firstlight/busybox:1"
APPLETS = ("sh", "sleep", "top", "echo", "ls", "cat", "tail", "touch", "true", "hostname", "mount",
           "wc", "ps", "id", "seq", "date", "mkdir", "rm")  # fmt: skip


def main(directory: Path, runtime: str, cases: list[str]) -> None:
    archive, images = directory / "busybox.tar", directory / "images.yaml"
    links = {f"bin/{name}": "/bin/busybox" for name in APPLETS}
    image.archive(archive, IMAGE, ["/bin/sh"], {"bin/busybox": BUSYBOX}, links)
    images.write_text(json.dumps({"defaultTestContainerImage": IMAGE, "webServerTestImage": IMAGE}))
    handlers = running.handlers((runtime,), ("bridge",))
    with (
        sandbox(f"critest-{os.getpid()}") as workspace,
        running.cluster(workspace, handlers, control_plane=False) as node,
    ):
        socket = str(node.settings.socket)
        ctr = (programs.path("ctr"), "--address", socket, "--namespace", "k8s.io")
        subprocess.run([*ctr, "images", "import", archive], check=True, capture_output=True)
        subprocess.run(
            ["nsenter", f"--target={node.pid}", "--mount", "--net", "--pid",
             programs.path("critest"), f"--runtime-endpoint=unix://{socket}",
             f"--image-endpoint=unix://{socket}", f"--test-images-file={images}",
             f"--ginkgo.json-report={directory}/report.json", f"--ginkgo.focus={'|'.join(cases)}"],
            cwd=directory, stdout=sys.stderr,
        )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
