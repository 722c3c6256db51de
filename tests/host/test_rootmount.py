"""Root file systems mounted for real, each in the mount namespace of its command."""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from firstlight.errors import Failed, UnknownName, Unsupported
from firstlight.lab import rootfs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LISTING = 'cd "$0" && find . -printf "%P %y %m %U %l\\n" | sort && cat etc/words'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "root"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "words").write_text("first light\n" * 10_000)
    (tree / "etc" / "link").symlink_to("words")
    (tree / "tmp").mkdir()
    (tree / "tmp").chmod(0o1777)
    (tree / "tool").write_bytes(b"")
    os.chown(tree / "tool", 1000, 1000)
    (tree / "tool").chmod(0o4711)
    return tree


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def supported(technique: str) -> None:
    try:
        rootfs.probe(technique)
    except Unsupported as error:
        pytest.skip(f"{error.message}: {error.hint}")


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def wrapped(technique: str, lower: Path, target: Path, *argv: str) -> tuple[str, ...]:
    return rootfs.wrap(technique, lower, target, target.parent / "scratch", argv)


def listing(root: Path) -> list[str]:
    return run("sh", "-c", LISTING, str(root)).stdout.splitlines()


def loops_of(image: Path) -> list[str]:
    result = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if file.read_text().strip() == str(image):
                result.append(file.parts[3])
        except OSError:  # it was let go meanwhile
            continue
    return result


def until(condition: Callable[[], bool]) -> None:
    """The kernel frees a loop device a little after the last unmount, and tells no one."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("technique", rootfs.TECHNIQUES)
def test_each_technique_shows_the_tree_and_leaves_nothing(
    technique: str, tree: Path, target: Path, tmp_path: Path
) -> None:
    supported(technique)
    mounts = Path("/proc/self/mountinfo").read_text()
    lower = rootfs.prepare(technique, tree, tmp_path)
    with rootfs.returned_loops():
        shown = run(*wrapped(technique, lower, target, "sh", "-c", LISTING, str(target)))
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert shown.stdout.splitlines()[1:] == listing(tree)[1:]  # but for the root itself
        assert "tool f 4711 1000 " in shown.stdout
        until(lambda: not loops_of(lower))
    assert list(target.iterdir()) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts


@pytest.mark.parametrize(
    ("technique", "is_writable", "is_kept"),
    [("bind", True, True), ("overlay", True, False), ("tmpfs", True, False),
     ("squashfs", False, False), ("erofs", False, False)],
)  # fmt: skip
def test_only_a_bind_writes_to_the_tree(
    technique: str, is_writable: bool, is_kept: bool, tree: Path, target: Path, tmp_path: Path
) -> None:
    supported(technique)
    lower = rootfs.prepare(technique, tree, tmp_path)
    done = run(*wrapped(technique, lower, target, "touch", f"{target}/new"))
    assert (done.returncode == 0) == is_writable
    assert (tree / "new").exists() == is_kept
    assert (tmp_path / "scratch/upper/new").exists() == (technique == "overlay")


@pytest.mark.parametrize("technique", ["overlay", "squashfs", "erofs"])
def test_a_hundred_at_once(technique: str, tree: Path, tmp_path: Path) -> None:
    supported(technique)
    lower = rootfs.prepare(technique, tree, tmp_path)
    devices = sorted(Path("/sys/block").glob("loop*"))
    with rootfs.returned_loops():
        with ExitStack() as starts:
            processes = []
            for index in range(100):
                target = tmp_path / str(index) / "target"
                target.mkdir(parents=True)
                script = 'cat "$0/etc/link" | head -n 1; read -r _'
                processes.append(
                    starts.enter_context(
                        subprocess.Popen(
                            wrapped(technique, lower, target, "sh", "-c", script, str(target)),
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                        )
                    )
                )  # fmt: skip
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "first light\n"
            assert len(loops_of(lower)) == (0 if technique == "overlay" else 100)
        until(lambda: not loops_of(lower))
    assert sorted(Path("/sys/block").glob("loop*")) == devices


def test_a_killed_command_leaves_no_loop_device(tree: Path, target: Path, tmp_path: Path) -> None:
    supported("squashfs")
    image = rootfs.prepare("squashfs", tree, tmp_path)
    with subprocess.Popen(
        wrapped("squashfs", image, target, "sh", "-c", "echo up; read -r _"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert loops_of(image)
        process.kill()
    until(lambda: not loops_of(image))


@pytest.mark.parametrize(
    ("technique", "lower", "text"),
    [
        ("bind", "missing", "cannot bind {lower} on {target}: No such file or directory"),
        ("tmpfs", "missing", "cannot open {lower}: No such file or directory"),
        ("erofs", "missing", "cannot open {lower}: No such file or directory"),
        ("squashfs", "root/etc/words", "Invalid argument"),
        ("zip", "root", "cannot mount by zip; valid: bind, overlay, tmpfs, squashfs, erofs"),
    ],
)
def test_a_failure_names_the_object_and_the_fact(
    technique: str, lower: str, text: str, tree: Path, target: Path, tmp_path: Path
) -> None:
    path = tmp_path / lower
    done = run(*wrapped(technique, path, target, "true"))
    assert done.returncode == 1
    assert done.stdout.startswith("firstlight error cannot ")
    assert text.format(lower=path, target=target) in done.stdout
    assert not loops_of(path)


def test_a_command_that_is_not_there_is_an_error(tree: Path, target: Path) -> None:
    done = run(*wrapped("bind", tree, target, "/nonexistent"))
    assert done.returncode == 1
    assert done.stdout == (
        "firstlight error cannot execute /nonexistent: No such file or directory\n"
    )


def test_an_image_is_made_once(tree: Path, tmp_path: Path) -> None:
    supported("erofs")
    image = rootfs.prepare("erofs", tree, tmp_path)
    before = image.stat()
    assert rootfs.prepare("erofs", tree, tmp_path) == image
    assert image.stat().st_mtime_ns == before.st_mtime_ns


def test_an_image_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    supported("squashfs")
    with pytest.raises(Failed, match="mksquashfs"):
        rootfs.prepare("squashfs", tmp_path / "root", tmp_path / "missing")


def test_what_is_missing_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="zip") as unknown:
        rootfs.probe("zip")
    assert "squashfs" in str(unknown.value.hint)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unsupported, match=r"mkfs\.erofs is not installed") as missing:
        rootfs.probe("erofs")
    assert missing.value.hint == "apt-get install erofs-utils"
    rootfs.probe("bind")
