"""Images of several layers, the spans of pulling them, and the files that a container reads."""

import json
import subprocess
import tarfile
from pathlib import Path

from tests.unit.analysis.test_pods import pod

from firstlight.analysis import phases
from firstlight.lab.cluster import image
from firstlight.lab.cluster.pod_spans import _of_image
from firstlight.lab.cluster.telemetry import Span
from firstlight.model import ComponentSpan
from firstlight.native import native
from firstlight.report.views.image import _layers


def test_an_archive_has_a_layer_for_each_part_of_its_data(tmp_path: Path) -> None:
    payload, archive = native("payload"), tmp_path / "image.tar"
    parts = [{"/data/0": b"zero"}, {"/data/1": b"one", "/data/2": b"two"}]
    image.archive(archive, "a/b:1", ["/bin/payload"], {"/bin/payload": payload}, data=parts)
    with tarfile.open(archive) as tar:
        index = json.load(tar.extractfile("index.json"))  # type: ignore[arg-type]
        blobs = {name.rpartition("/")[2]: name for name in tar.getnames()}

        def blob(digest: str) -> bytes:
            held = tar.extractfile(blobs[digest.partition(":")[2]])
            assert held
            return held.read()

        manifest = json.loads(blob(index["manifests"][0]["digest"]))
        config = json.loads(blob(manifest["config"]["digest"]))
    digests = [layer["digest"] for layer in manifest["layers"]]
    assert len(digests) == 3
    assert config["rootfs"]["diff_ids"] == digests


def test_the_payload_reads_a_directory_before_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(100_000))
    payload = native("payload")

    def read(directory: Path) -> "subprocess.CompletedProcess[bytes]":
        words = [str(payload), "read", str(directory), "/bin/echo", "read"]
        return subprocess.run(words, capture_output=True, timeout=60)

    assert read(tmp_path).stdout == b"read\n"
    assert read(tmp_path / "none").returncode == 1


def span(name: str, start: int, digest: str = "") -> Span:
    attributes = {"layer.media.digest": f"sha256:{digest}"} if digest else {}
    return Span("containerd", name, "t", "s", "", start, start + 10, attributes)


def test_spans_of_a_layer_are_known_by_its_digest() -> None:
    prefix = "pkg.unpack.unpacker"
    spans = [
        span(f"{prefix}.fetchLayer", 0, "a" * 64),
        span(f"{prefix}.unpackLayer", 10, "a" * 64),
        span(f"{prefix}.unpack", 5),
        span("containerd.task.v3.Task/Create", 30),
        span("containerd.services.containers.v1.Containers/Create", 20),
        span("containerd.services.version.v1.Version/Version", 1),
    ]
    named = [part for recorded in spans for part in _of_image(recorded)]
    assert [phases.of_component(each.name) for each in named] == [
        "image.fetch", "image.unpack", "image", "container.runtime", "container.create",
    ]  # fmt: skip
    assert _layers(pod(tuple(named))) == [(10, 10)]
    assert _layers(pod((ComponentSpan("image", 0, 1), ComponentSpan("", 0, 1)))) == []
