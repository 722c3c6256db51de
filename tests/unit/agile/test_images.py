"""What skopeo says, as errors with a remedy."""

import os
from pathlib import Path

import pytest

from firstlight.agile.functions import errors, images
from firstlight.errors import Unsupported

SOURCE = "docker://10.0.0.1:5000/denied/EOF-429:1"
PING = "pinging container registry 10.0.0.1:5000: "
GET = PING + r"Get \"https://10.0.0.1:5000/v2/\": "
READ = "reading manifest 1 in 10.0.0.1:5000/denied/EOF-429: "


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (READ + "toomanyrequests: You have reached your pull rate limit.", "limits requests"),
        (READ + "StatusCode: 429, <html>slow down</html>", "limits requests"),
        (READ + "received unexpected HTTP status: 503 Service Unavailable", "the registry failed"),
        (PING + "invalid status code from registry 500 (Internal)", "the registry failed"),
        (READ + "unauthorized", "skopeo login"),
        (PING + "invalid status code from registry 403 (Forbidden)", "skopeo login"),
        ("invalid character '<' looking for beginning of value", "does not answer as one"),
        (GET + "stopped after 10 redirects", "does not answer as one"),
        (GET + "x509: certificate signed by unknown authority", "certs.d"),
        (GET + "http: server gave HTTP response to HTTPS client", "plain HTTP"),
        (GET + "tls: first record does not look like a TLS handshake", "plain HTTP"),
        (GET + "tls: protocol version not supported", "certs.d"),
        (GET + "EOF", "address right"),
        (GET + "dial tcp: lookup x on 10.0.0.2:53: no such host", "address right"),
        (GET + "read tcp 1.1.1.1:1->10.0.0.1:5: connection reset by peer", "address right"),
        (READ + "manifest unknown", "is its name right"),
        (READ + "StatusCode: 404, <html>not found</html>", "is its name right"),
    ],
)  # fmt: skip
def test_registry_failure_has_its_own_remedy(words: str, remedy: str) -> None:
    text = f'time="2026" level=fatal msg="initializing source {SOURCE}: {words}"'
    error = images._failure(SOURCE, text)
    assert type(error) is errors.NoImage
    assert remedy in (error.hint or ""), error.hint
    assert words.replace(r"\"", '"') in error.message


def test_local_failure_does_not_speak_of_a_registry() -> None:
    words = "decoding tar manifest.json: invalid character '<' looking for beginning of value"
    error = images._failure("docker-archive:/x.tar", f'level=fatal msg="{words}"')
    assert isinstance(error, errors.NotAnArchive)
    assert "registry" not in (error.hint or "")
    broken = images._failure(SOURCE, f'msg="writing blob: {SOURCE}: unexpected EOF"')
    assert isinstance(broken, errors.Truncated)
    words = "Download config.json digest sha256:51 does not match expected sha256:00"
    wrong = images._failure(SOURCE, f'msg="copying: {words}"')
    assert isinstance(wrong, errors.WrongDigest)


def test_missing_skopeo_and_image_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "skopeo")
    with pytest.raises(errors.NoImage, match="oci:/nowhere:1 does not exist"):
        images.fetch("oci:/nowhere:1", tmp_path, tmp_path, 65534)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(Unsupported, match="skopeo is not installed"):
        images.fetch("oci:/nowhere:1", tmp_path, tmp_path, 65534)


@pytest.mark.parametrize("name", ["", "index.json", "oci-layout", "blobs/sha256/0"])
def test_an_image_of_a_fifo_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "skopeo")
    monkeypatch.setattr(images, "Child", None)
    fifo = tmp_path / "image" / name
    fifo.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(fifo)
    source = f"oci:{tmp_path}/image:1" if name else f"docker-archive:{fifo}"
    with pytest.raises(errors.NotAnArchive, match=f"{fifo}: it is not a regular file"):
        images.fetch(source, tmp_path, tmp_path, 65534)
