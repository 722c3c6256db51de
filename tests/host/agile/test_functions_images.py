"""Functions of images: from a real registry, from layouts and archives, and what is not taken."""

import asyncio
import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.lambda_host import run, with_functions, zipped

from firstlight.agile.functions import errors, unpack
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.child import Child
from firstlight.agile.functions.errors import BadCode
from firstlight.agile.functions.records import DirectorySource, ImageSource, Settings, ZipSource
from firstlight.agile.sockets import is_readable
from firstlight.errors import Failed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
REGISTRY = Path(sys.executable).parent.parent / "libexec/registry/usr/bin/docker-registry"
PORT = 9312
ECHO = ("/bin/busybox", "cat")
CAT = Settings(kind="command", command=ECHO, network="none", timeout=30.0)
Member = dict[str, Any]


@pytest.fixture(autouse=True)
def programs() -> None:
    for name in ("skopeo", "umoci", "busybox"):
        if not shutil.which(name):
            pytest.skip(f"{name} is missing")


def member(name: str, data: bytes = b"", **fields: Any) -> Member:
    return {"name": name, "data": data, **fields}


def link(target: str) -> Member:
    return member("x", type=tarfile.LNKTYPE, linkname=target)


def tar(*members: Member) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for member in members:
            information = tarfile.TarInfo(member["name"])
            for key, value in member.items():
                if key not in ("name", "data"):
                    setattr(information, key, value)
            information.size = len(member["data"])
            archive.addfile(information, io.BytesIO(member["data"]))
    return written.getvalue()


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 1)


class Layout:
    """An OCI layout that holds one image, made by hand, so that it can be wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs/sha256"
        self.blobs.mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def image(
        self, *layers: bytes, compress: Callable[[bytes], bytes] = packed,
        machine: str = "", kind: str = "tar+gzip", differences: list[str] | None = None,
        directory: str = "",
    ) -> ImageSource:  # fmt: skip
        result = [self.blob(compress(layer)) for layer in layers]
        config = {
            "architecture": machine or {"aarch64": "arm64"}.get(os.uname().machine, "amd64"),
            "os": "linux",
            "config": {"Entrypoint": ["/bin/busybox"], "Cmd": ["cat"], "Env": ["FROM=image"],
                       "WorkingDir": directory},
            "rootfs": {"type": "layers", "diff_ids": differences or [
                f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
        }  # fmt: skip
        media = "application/vnd.oci.image"
        manifest = {
            "schemaVersion": 2, "mediaType": f"{media}.manifest.v1+json",
            "config": {"mediaType": f"{media}.config.v1+json",
                       **self.blob(json.dumps(config).encode())},
            "layers": [{"mediaType": f"{media}.layer.v1.{kind}", **each} for each in result],
        }  # fmt: skip
        described = self.blob(json.dumps(manifest).encode())
        index = {"schemaVersion": 2, "manifests": [{
            "mediaType": manifest["mediaType"], **described,
            "annotations": {"org.opencontainers.image.ref.name": "it"}}]}  # fmt: skip
        (self.path / "index.json").write_text(json.dumps(index))
        return ImageSource(f"oci:{self.path}:it")


def busybox() -> bytes:
    return Path(str(shutil.which("busybox"))).read_bytes()


def base(*more: Member) -> bytes:
    return tar(
        member("bin", type=tarfile.DIRTYPE, mode=0o755),
        member("bin/busybox", busybox(), mode=0o755), *more,
    )  # fmt: skip


def umoci_image(where: Path) -> str:
    """An image of two layers, made by umoci."""
    layout = where / "layout"
    first, second = where / "first", where / "second"
    (first / "bin").mkdir(parents=True)
    (first / "bin/busybox").write_bytes(busybox())
    (first / "bin/busybox").chmod(0o755)
    (first / "word").write_text("first")
    second.mkdir()
    (second / "word").write_text("second")
    image = f"{layout}:it"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", image)
    run("umoci", "insert", "--image", image, first, "/")
    run("umoci", "insert", "--image", image, second / "word", "/word")
    run("umoci", "config", "--image", image, "--config.entrypoint", "/bin/busybox",
        "--config.cmd", "cat", "--config.cmd", "/word", "--config.workingdir", "/bin")  # fmt: skip
    return image


@asynccontextmanager
async def registry(where: Path) -> AsyncIterator[str]:
    """Debian's docker-registry on a loopback port."""
    program = REGISTRY if REGISTRY.exists() else shutil.which("docker-registry")
    if not program:
        pytest.skip("docker-registry is missing: make setup")
    (where / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {where}}}, "
        f"delete: {{enabled: true}}}}\nhttp: {{addr: '127.0.0.1:{PORT}'}}\n"
    )
    process = await asyncio.create_subprocess_exec(
        program, "serve", where / "config.yml", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", PORT)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield f"docker://127.0.0.1:{PORT}"
    finally:
        process.terminate()
        await process.wait()


async def called(functions: Functions, name: str, event: bytes = b"[1]") -> bytes:
    answer, _ = await functions.invoke(name, event, request_id="r")
    assert answer.error is None, answer.payload
    return answer.payload


def trees(functions: Functions) -> list[str]:
    return sorted(path.name for path in (functions.directory / "trees").iterdir())


def left(functions: Functions) -> list[Path]:
    """What of code is in the store."""
    names = ("trees/*", "blobs/*/*", "work/*")
    return [path for name in names for path in functions.directory.glob(name)]


async def push(source: str, target: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", source, target
    )
    assert await process.wait() == 0


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every user can enter. Each start of another pytest closes /tmp/pytest-of-…
    to others, whatever its mode was.
    """
    with tempfile.TemporaryDirectory(prefix="firstlight-") as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


def test_registry_image_lifecycle(tmp_path: Path, open_path: Path) -> None:
    image = umoci_image(tmp_path)

    async def main(functions: Functions) -> None:
        (tmp_path / "registry").mkdir()
        async with registry(tmp_path / "registry") as address:
            name = ImageSource(f"{address}/team/it:1")
            await push(f"oci:{image}", name.image)
            own = Settings(kind="command", network="none", timeout=30.0)
            function = await functions.add("a", name, own)
            assert function.latest.version.command == ("/bin/busybox", "cat", "/word")
            assert function.latest.version.directory == "/bin"
            assert await called(functions, "a") == b"second"
            before = trees(functions)
            assert len(before) == 2
            await functions.add("b", name, own)
            assert trees(functions) == before  # its layers are shared
            await functions.update("b", given=Settings(arguments=("cat", "/etc/hostname")))
            assert await called(functions, "b") == b"instance\n"
            digest = function.latest.code.digest
            await functions.add("c", ImageSource(f"{address}/team/it@{digest}"), own)
            with pytest.raises(errors.NoImage, match="manifest unknown"):
                await functions.update("a", ImageSource(f"{address}/team/it:none"))
            assert await called(functions, "a") == b"second"
        for each in ("a", "b", "c"):
            assert left(functions)
            await functions.remove(each)
        assert left(functions) == []

    with_functions(open_path / "store", main)


def test_a_layer_is_applied_upon_those_below(tmp_path: Path) -> None:
    second = tar(
        member("etc/.wh.gone"),
        member("var/.wh..wh..opq"),
        member("var/new", b"new"),
        member("fresh/.wh..wh..opq"),
        member("late", b"x", mtime=1 << 62),
        member("linked", type=tarfile.LNKTYPE, linkname="etc/kept"),
        member("through/it", b"through"),
        member("su", b"x", mode=0o6777),
        member("secret", b"shown", mode=0o600),
        member("dev/sda", type=tarfile.BLKTYPE),
        member("pipe", type=tarfile.FIFOTYPE),
    )
    first = base(
        member("etc/gone", b"x"), member("etc/kept", b"kept"), member("var/old/deep", b"x"),
        member("real/there", b"x"), member("through", type=tarfile.SYMTYPE, linkname="/real"),
        member("tmp", type=tarfile.SYMTYPE, linkname="real"), member("proc", b"no directory"),
    )  # fmt: skip
    source = Layout(tmp_path / "layout").image(first, second)

    async def main(functions: Functions) -> None:
        script = (
            "cd /; find etc var real linked su secret dev pipe | sort; cat linked real/it secret"
        )
        command = ("/bin/busybox", "sh", "-c", script)
        own = Settings(kind="command", command=command, network="none", timeout=30.0)
        await functions.add("f", source, own)
        async with functions.using("f") as version:
            root = Path(version.root)
        assert [name for name in ("proc", "tmp") if (root / name).is_symlink()] == []
        assert not (root / "etc/gone").exists()
        assert sorted(path.name for path in (root / "var").iterdir()) == ["new"]
        assert list((root / "fresh").iterdir()) == []
        assert (root / "linked").read_bytes() == b"kept"
        assert (root / "real/it").read_bytes() == b"through"  # as the link leads inside
        assert (root / "su").stat().st_mode & 0o7777 == 0o755
        assert (root / "secret").stat().st_mode & 0o7777 == 0o644
        assert not (root / "dev/sda").exists()
        assert not (root / "pipe").exists()
        assert (await called(functions, "f")).endswith(b"keptthroughshown")

    with_functions(tmp_path / "store", main)


def test_an_image_may_work_in_a_directory_that_no_layer_has(tmp_path: Path) -> None:
    source = Layout(tmp_path / "layout").image(base(), directory="/none/../../made/here")

    async def main(functions: Functions) -> None:
        own = Settings(kind="command", arguments=("pwd",), network="none", timeout=30.0)
        await functions.add("f", source, own)
        assert await called(functions, "f") == b"/made/here\n"
        with pytest.raises(errors.Invalid, match="no directory /other to work in"):
            await functions.update("f", given=Settings(directory="/other"))

    with_functions(tmp_path / "store", main)


def test_image_of_layers_starts_one_unpacking_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer's process is a fork of it: to start one for each takes several times as long."""
    started, verified = list[list[str]](), list[int]()
    rights = unpack._rights

    def start(words: list[str], *args: Any, **more: Any) -> Child:
        started.append(words)
        return Child(words, *args, **more)

    def verify(pid: int, uid: int) -> list[str]:
        verified.append(pid)
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"core file size +1 +1 ", limits)  # 0 does not stop a piped core_pattern
        return rights(pid, uid)

    monkeypatch.setattr(unpack, "Child", start)
    monkeypatch.setattr(unpack, "_rights", verify)
    source = Layout(tmp_path / "layout").image(base(), *(tar(member(f"{n}")) for n in range(9)))

    async def main(functions: Functions) -> None:
        await functions.add("f", source, CAT)
        assert await called(functions, "f") == b"[1]"

    with_functions(tmp_path / "store", main)
    assert len(started) == 1
    assert len(verified) == 10


def test_unpacking_process_ends_with_its_manager(tmp_path: Path) -> None:
    for name in ("upper", "target", "work"):
        (tmp_path / name).mkdir()
    code = f"""
import os
from firstlight.agile.functions import unpack
unpack._rights = lambda pid, uid: print(pid, flush=True)
job = unpack.Job(directory={str(tmp_path)!r}, upper="upper", target="target", work="work",
                 uid=65534, kind="tar")
endless = os.open("/dev/zero", os.O_RDONLY)
with unpack.unpacking() as unpacker:
    unpacker.unpack(job, endless, "it")
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as manager:
        assert manager.stdout
        ended = os.pidfd_open(int(manager.stdout.readline()))
        manager.kill()
    assert is_readable(ended, 60)
    os.close(ended)


def test_silent_registry_holds_up_nothing_else(open_path: Path) -> None:
    async def main(functions: Functions) -> None:
        with socket.create_server(("127.0.0.1", 0)) as registry:
            registry.setblocking(False)
            silent = ImageSource(f"docker://127.0.0.1:{registry.getsockname()[1]}/x")
            adding = [asyncio.create_task(functions.add(f"x{each}", silent)) for each in range(40)]
            connection, _ = await asyncio.get_running_loop().sock_accept(registry)
            async with asyncio.timeout(60):
                await functions.add(
                    "f", ZipSource(data=zipped(app="")), Settings(handler="app.main")
                )
                assert functions.names() == ["f"]
            for each in adding:
                each.cancel()
            await asyncio.wait(adding)
            connection.close()

    with_functions(open_path / "store", main)


def test_fetching_process_ends_with_its_manager(open_path: Path) -> None:
    open_path.chmod(0o777)
    code = f"""
from pathlib import Path
from firstlight.agile.functions import images
where = Path({str(open_path)!r})
images.fetch("docker://127.0.0.1:{{}}/x", where, where, 65534)
"""
    with socket.create_server(("127.0.0.1", 0)) as registry:
        words = [sys.executable, "-c", code.format(registry.getsockname()[1])]
        registry.settimeout(60)
        with subprocess.Popen(words) as manager:
            connection, _ = registry.accept()  # and no answer
            [fetching] = (
                Path(f"/proc/{manager.pid}/task/{manager.pid}/children").read_text().split()
            )
            [first] = Path(f"/proc/{fetching}/task/{fetching}/children").read_text().split()
            ended = os.pidfd_open(int(first))
            manager.kill()
        assert is_readable(ended, 20)
        os.close(ended)
        connection.close()


def test_unpacking_process_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "_SECONDS", 1.0)
    pids = list[int]()
    monkeypatch.setattr(unpack, "_rights", lambda pid, _: pids.append(pid))
    for name in ("upper", "target", "work"):
        (tmp_path / name).mkdir()
    job = unpack.Job(
        directory=str(tmp_path), upper="upper", target="target", work="work", uid=65534, kind="tar"
    )
    never, writer = os.pipe()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with unpack.unpacking() as unpacker, pytest.raises(BadCode, match="takes more than 1 s"):
        unpacker.unpack(job, never, "it")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not Path(f"/proc/{pids[0]}").exists()
    os.close(never)
    os.close(writer)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EPIPE])
def test_archive_that_cannot_be_sent_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "send_fds", fail)
    job = unpack.Job(
        directory=str(tmp_path), upper="upper", target="target", work="work", uid=65534, kind="tar"
    )
    with unpack.unpacking() as unpacker, pytest.raises(Failed, match="cannot start the process"):
        unpacker.unpack(job, 0, "it")


def small(*more: Member) -> bytes:
    return tar(member("etc/words", os.urandom(9000)), *more)


def cut(layout: Layout) -> ImageSource:
    return layout.image(small(), compress=lambda data: packed(data)[:-2000])


def cut_in_place(layout: Layout) -> ImageSource:
    source = layout.image(small())
    largest = max(layout.blobs.iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 1000)
    return source


def changed_in_place(layout: Layout) -> ImageSource:
    source = layout.image(small())
    largest = max(layout.blobs.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[-100] ^= 1
    largest.write_bytes(data)
    return source


WRONG: dict[str, tuple[Callable[[Layout], ImageSource], type[BadCode], str]] = {
    "a layer whose gzip stream ends early": (cut, errors.Truncated, "ends too early"),
    "a blob that is cut": (cut_in_place, BadCode, "igest|EOF|size"),
    "a blob that is not what its digest names": (changed_in_place, BadCode, "igest"),
    "another difference than the image says": (
        lambda layout: layout.image(small(), differences=[f"sha256:{'0' * 64}"]),
        errors.WrongDigest, "the image names"),
    "a path that climbs out": (
        lambda layout: layout.image(small(member("a/../../x"))), errors.ClimbsOut, "leads out"),
    "a hard link that climbs out": (
        lambda layout: layout.image(small(link("../etc/shadow"))), errors.ClimbsOut, "leads out"),
    "a path that is too long": (
        lambda layout: layout.image(small(member("d/" * 501 + "x"))), errors.NotAnArchive,
        "too long or too deep"),
    "a white-out of its own directory": (
        lambda layout: layout.image(small(member("etc/.wh."))), errors.NotAnArchive,
        "names nothing"),
    "a white-out of the directory above": (
        lambda layout: layout.image(small(member("etc/.wh..."))), errors.NotAnArchive,
        "names nothing"),
    "a hard link to what is not there": (
        lambda layout: layout.image(small(link("etc/shadow"))), errors.NotAnArchive, "missing"),
    "a device node": (
        lambda layout: layout.image(small(member("sda", type=tarfile.BLKTYPE, devmajor=8))),
        errors.DeviceNode, "device node sda"),
    "another architecture": (
        lambda layout: layout.image(small(), machine="riscv64"), errors.WrongArchitecture, "riscv"),
    "a layer that is no tar file": (
        lambda layout: layout.image(b"nonsense" * 1000), errors.NotAnArchive, "cannot be read"),
    "a layer that says gzip and is none": (
        lambda layout: layout.image(b"\x1f\x8bnonsense" * 1000, compress=bytes),
        errors.NotAnArchive, "cannot be read|invalid"),
}  # fmt: skip


def test_wrong_image_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        good = Layout(tmp_path / "good").image(base())
        await functions.add("f", good, CAT)
        stays = left(functions)
        for number, (what, (make, kind, words)) in enumerate(WRONG.items()):
            source = make(Layout(tmp_path / str(number)))
            change = functions.update("f", source) if number else functions.add("g", source, CAT)
            with pytest.raises(BadCode, match=words) as error:
                await change
            assert isinstance(error.value, kind), (what, error.value)
            assert left(functions) == stays, what
            assert functions.names() == ["f"]
        assert await called(functions, "f") == b"[1]"
        assert list(functions.get("f").revisions) == ["$LATEST", "1"]

    with_functions(tmp_path / "store", main)


def test_a_layer_of_zstd_and_an_archive_are_taken(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")

    async def main(functions: Functions) -> None:
        source = Layout(tmp_path / "zstd").image(
            base(), compress=zstandard.ZstdCompressor().compress, kind="tar+zstd"
        )
        await functions.add("z", source, CAT)
        assert await called(functions, "z") == b"[1]"
        plain = Layout(tmp_path / "plain").image(base(), compress=bytes, kind="tar")
        archive = f"docker-archive:{tmp_path}/it.tar"
        await push(plain.image, f"{archive}:it:1")
        (tmp_path / "it.tar").chmod(0o600)  # root's, and yet it is read
        await functions.add("a", ImageSource(archive), CAT)
        assert await called(functions, "a") == b"[1]"

    with_functions(tmp_path / "store", main)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path / "store")
        noise = os.urandom(6 << 20)
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr("noise", noise)
        (tmp_path / "noise").mkdir()
        (tmp_path / "noise/noise").write_bytes(noise)
        image = Layout(tmp_path / "large").image(base(member("noise", noise)))
        await functions.add("small", Layout(tmp_path / "small").image(base()), CAT)
        stays = left(functions)
        python = Settings(handler="app:main")
        for source, settings in (
            (ZipSource(data=zipped.getvalue()), python),
            (DirectorySource(str(tmp_path / "noise")), python),
            (image, CAT),
        ):
            with pytest.raises(errors.DiskFull) as full:
                await functions.add("f", source, settings)
            assert "free space there" in (full.value.hint or "")
            assert left(functions) == stays
        assert await called(functions, "small") == b"[1]"

    (tmp_path / "store").mkdir()
    with_functions(tmp_path / "store", main)
