"""What strangers wrote is read, or refused in words: never a traceback.

Each target gets valid input, damaged in ways that Hypothesis draws: ``make fuzz`` draws 10,000 of
each.
"""

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import product
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from rich.console import Console

from firstlight import store
from firstlight.agile import config, protocol
from firstlight.agile.functions import images as layout_images
from firstlight.agile.functions.errors import NotAnArchive
from firstlight.analysis import Analysis, gate, provision, sides
from firstlight.analysis import compare as comparing
from firstlight.errors import Failed, FirstlightError
from firstlight.lab.cni import conf, known, needs
from firstlight.lab.experiments import Experiment, catalogue
from firstlight.lab.guests import catalogue as guests
from firstlight.lab.guests import images
from firstlight.lab.watch.programs import Program, labels_of, role
from firstlight.model import Ending, EndPoint, Header, Point, Sample, Setting, Stamps, Step
from firstlight.report import data, terminal, views
from firstlight.trace import details, netlink

SCHEMAS = Path(__file__).parents[1] / "data"
INTERESTING = (
    b"", b"\0", b"\xff", b"\xff" * 8, b"null", b"[]", b"{}", b'""', b"-1", b"1e999", b"NaN",
    b"9" * 5000, b'"\\ud800"', b"[" * 3000, b"\xe2\x80\xae", b"../../", b"%s%n", b"true",
)  # fmt: skip
fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ", "60")),
    suppress_health_check=list(HealthCheck),
)
damages = st.randoms(use_true_random=False)


def damaged(content: bytes, random: Random) -> bytes:
    """With one to eight changes: bytes flipped, cut out, repeated or replaced."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 8)):
        start = random.randint(0, len(changed))
        end = min(len(changed), start + random.choice((0, 1, 1, 2, 4, 8, 64, 4096)))
        match random.randrange(5):
            case 0 if changed:
                changed[min(start, len(changed) - 1)] ^= 1 << random.randrange(8)
            case 1:
                del changed[start:end]
            case 2:
                changed[start:start] = changed[start:end]
            case 3:
                changed[start:end] = random.choice(INTERESTING)
            case _:
                changed[start:end] = random.randbytes(end - start)
    return bytes(changed)


def _values(document: object) -> list[tuple[object, object]]:
    """Each place of a document, as its container and key."""
    result: list[tuple[object, object]] = []
    items: Iterable[tuple[object, object]] = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    for key, value in items:
        result += [(document, key), *_values(value)]
    return result


def mistaken(document: object, random: Random) -> bytes:
    """A document of which some values have another type, sign or size, as JSON."""
    copy = json.loads(json.dumps(document))
    for _ in range(random.randint(1, 3)):
        holder, key = random.choice(_values(copy))
        holder[key] = random.choice(  # type: ignore[index]
            (None, True, -1, 0, 1 << 70, 1.5, "", "\0", "\ud800", "x" * 5000, [], {}, [[]],
             [None], {"": None}, -0.0)
        )  # fmt: skip
    return json.dumps(copy).encode(errors="surrogatepass")


def refuses(read: Callable[[], object]) -> None:
    with suppress(FirstlightError):
        read()


CONFLISTS = [
    {"cniVersion": "1.0.0", "name": name, "plugins": known.find(name)[0].plugins}
    for name in known.networks()
]


@fuzzed
@given(damages)
def test_cni_configurations(random: Random) -> None:
    document = random.choice(CONFLISTS)
    content = (
        mistaken(document, random)
        if random.random() < 0.7
        else damaged(json.dumps(document).encode(), random)
    )

    def read() -> None:
        network = conf.parse(content.decode(errors="surrogateescape"), "x.conflist")
        for use in (needs.directories, needs.links, needs.takes_default_link, needs.check):
            use(network)
        for plugin in network.plugins:
            conf.execution(network, plugin)

    refuses(read)


@fuzzed
@given(damages)
def test_bundles(tmp_path_factory: pytest.TempPathFactory, random: Random) -> None:
    bundle = tmp_path_factory.mktemp("bundle")
    document = {
        "ociVersion": "1.0.2", "process": {"args": ["sh"], "env": ["A=b"]},
        "annotations": {"io.kubernetes.cri.sandbox-name": "a", "io.kubernetes.pod.name": "b",
                        "io.kubernetes.cri.image-name": "c"},
    }  # fmt: skip
    content = mistaken(document, random)
    (bundle / "config.json").write_bytes(
        content if random.random() < 0.7 else damaged(content, random)
    )
    labels = labels_of(str(bundle))
    assert all(isinstance(value, str) for value in labels.values())
    shutil.rmtree(bundle)


def _bzimage() -> bytes:
    head = bytearray(0x10000)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<BI", head, 0x1F1, 4, 0)
    struct.pack_into("<I", head, 0x1F4, 0x800)
    return bytes(head)


def _elf() -> bytes:
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0x1000000)
    program = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4)
    return (header + program + note).ljust(4096, b"\0")


def _disk() -> bytes:
    sector = bytearray(512)
    sector[:3] = b"\xeb\x63\x90"
    sector[510:] = b"\x55\xaa"
    struct.pack_into("<BxxxBxxxII", sector, 0x1AE + 16, 0x80, 0x83, 8, 120)
    volume = bytearray(60 << 10)
    struct.pack_into("<I", volume, 1024, 0xE0F5E1E2)
    volume[1024 + 12] = 12
    return bytes(sector).ljust(8 * 512, b"\0") + bytes(volume)


def _gpt() -> bytes:
    first = bytearray(_disk()[:512])
    first[0x1C2] = 0xEE
    second = b"EFI PART".ljust(72, b"\0") + struct.pack("<QII", 2, 128, 128)
    entry = struct.pack("<16s16x2Q", b"a kind", 34, 40).ljust(128, b"\0")
    return (bytes(first) + second.ljust(512, b"\0") + entry).ljust(41 * 512, b"\0")


@fuzzed
@given(damages)
def test_kernels_and_disks(tmp_path_factory: pytest.TempPathFactory, random: Random) -> None:
    directory = tmp_path_factory.mktemp("image")
    file = directory / "image"
    file.write_bytes(damaged(random.choice((_bzimage(), _elf(), _disk(), _gpt())), random))
    for identify in (images.kernel, images.disk):
        refuses(lambda: identify(file))  # noqa: B023
    shutil.rmtree(directory)


EXAMPLE = re.sub(
    r"(?m)^# (?=\[|listen|credentials|otlp|service|share)",
    "",
    (Path(__file__).parents[2] / "conf/agile/firstlight.toml").read_text(),
)
WORDS = (
    "-1", "0", "1.5", '""', '"x"', "nan", "inf", "true", "[]", "{}", "[[]]", '"\\u0000"', "9" * 400,
    "1e400", '["/"]', '"::1/64"', '"10.0.0.0/33"', "1979-05-27", '"http://[::"', '"http://h:99999"',
    '"unix:"', '"a:b"', '"127.0.0.1:99999"', '"udp/70000"', "[" * 2000,
)  # fmt: skip


@fuzzed
@given(damages)
def test_configurations_of_the_runtime(
    tmp_path_factory: pytest.TempPathFactory, random: Random
) -> None:
    file = tmp_path_factory.mktemp("configuration") / "firstlight.toml"
    lines = EXAMPLE.splitlines()
    keys = [place for place, line in enumerate(lines) if re.match(r"\w+ *=", line)]
    for place in random.sample(keys, random.randint(1, 3)):
        lines[place] = f"{lines[place].partition('=')[0]}= {random.choice(WORDS)}"
    content = "\n".join(lines).encode()
    file.write_bytes(content if random.random() < 0.7 else damaged(EXAMPLE.encode(), random))
    refuses(lambda: config.load(file))
    shutil.rmtree(file.parent)


GUEST = {
    "name": "mine", "kind": "linux", "sums": {"kernel": "a"}, "filesystem": "erofs",
    "program": "/x", "arguments": "{ip}", "ready": "x",
}  # fmt: skip


@fuzzed
@given(damages)
def test_guests(tmp_path_factory: pytest.TempPathFactory, random: Random) -> None:
    directory = tmp_path_factory.mktemp("guests")
    file = directory / "mine" / guests._ENTRY
    file.parent.mkdir()
    content = mistaken(GUEST, random)
    file.write_bytes(content if random.random() < 0.7 else damaged(content, random))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRSTLIGHT_GUESTS", str(directory))
        refuses(lambda: list(map(guests.guest, guests.entries())))
        refuses(lambda: guests.find("mine"))
    shutil.rmtree(directory)


@fuzzed
@given(damages)
def test_layouts_of_images(tmp_path_factory: pytest.TempPathFactory, random: Random) -> None:
    layout = tmp_path_factory.mktemp("layout")
    (layout / "sha256").mkdir()

    def written(document: object) -> str:
        chance = random.random()
        content = mistaken(document, random) if chance < 0.3 else json.dumps(document).encode()
        content = damaged(content, random) if 0.3 < chance < 0.5 else content
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        for file in layout_images.blob(layout, digest), layout / "index.json":
            file.write_bytes(content)
        return digest

    layer = f"sha256:{'0' * 64}"
    configuration = written({
        "architecture": "amd64", "os": "linux", "config": {"Env": ["A=b"], "Cmd": ["x"]},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    })  # fmt: skip
    manifest = written({
        "config": {"mediaType": "a", "digest": configuration, "size": 1},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer,
                    "size": 1}],
    })  # fmt: skip
    written({"manifests": [{"mediaType": "x", "digest": manifest, "size": 1}]})
    refuses(lambda: layout_images._check_layout("source", layout, layout))
    shutil.rmtree(layout)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"x":' + b"[" * 100_000, b'{"x":"\xe5"}'])
def test_documents_that_are_nested_too_deeply_or_no_text(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(Failed):
        protocol.request(text)
    entry = tmp_path / guests._ENTRY
    entry.write_bytes(text)
    with pytest.raises(Failed, match="cannot read the guest"):
        guests._entry(entry)
    file = tmp_path / "firstlight.toml"
    file.write_bytes(b"name = " + text)
    with pytest.raises(Failed, match="is invalid"):
        config.load(file)
    (tmp_path / "index.json").write_bytes(text)
    with pytest.raises(NotAnArchive):
        layout_images._check_layout("source", tmp_path, tmp_path)


CALLS = (
    "unshare", "clone3", "setns", "prctl", "seccomp", "bpf", "socket", "connect", "bind", "mount",
    "sendto", "sendmsg", "ioctl", "openat", "no such call",
)  # fmt: skip
NEWLINK = struct.pack("<IHHIIBxHiII", 64, 16, 0x605, 1, 0, 0, 0, 0, 0, 0) + struct.pack(
    "<HH4sHHHH4s", 8, 3, b"fl0\0", 16, 18, 8, 1, b"veth"
)


@fuzzed
@given(damages)
def test_traced_words(random: Random) -> None:
    text = damaged(
        random.choice((NEWLINK, b"a\0tmpfs\0", b"\x02\0\0\x50" + b"\x7f\0\0\x01")), random
    )
    numbers = [random.choice((0, 1, 16, 1 << 32, (1 << 64) - 1)) for _ in range(6)]
    magic = random.choice((0, 0x534F434B, 0x6E736673, 0xFFFFFFFF))
    shown = details.detail(
        random.choice(CALLS), magic, random.choice((0, 1, 2, 10, 16, 65535)), numbers[4] & 0xFFFF,
        numbers[:4], text,
    )  # fmt: skip
    assert isinstance(shown, str)
    assert isinstance(netlink.describe(numbers[5] & 0xFFFF, text), str)
    file = random.choice(("/usr/bin/runc", "/bin/conmon", "/x/containerd-shim-runc-v2", "bridge"))
    arguments = [os.fsdecode(word) for word in text.split(b"\0")]
    variables = {"CNI_COMMAND": "ADD", "CNI_ARGS": os.fsdecode(text)}
    role(Program(1, 1, 1, file, tuple(arguments), variables))


RUNS = sorted(header.parent for header in SCHEMAS.rglob("header.json"))


@fuzzed
@given(damages)
def test_runs(tmp_path_factory: pytest.TempPathFactory, random: Random) -> None:
    path = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(random.choice(RUNS), path)
    damage(random.choice(sorted(each for each in path.rglob("*") if each.is_file())), random)
    refuses(lambda: show(path))
    shutil.rmtree(path.parent)


def damage(file: Path, random: Random) -> None:
    """A file of a run: JSON with other values most times, else any bytes."""
    content = file.read_bytes()
    if file.suffix == ".jsonl" and random.random() < 0.7:
        lines = content.split(b"\n")
        at = random.randrange(max(len(lines) - 1, 1))
        if lines[at]:
            lines[at] = mistaken(json.loads(lines[at]), random)
        file.write_bytes(b"\n".join(lines))
    elif file.suffix == ".json" and random.random() < 0.7:
        file.write_bytes(mistaken(json.loads(content), random))
    else:
        file.write_bytes(damaged(content, random))


def show(path: Path) -> None:
    analysis = Analysis(store.read(path))
    with Console(file=open(os.devnull, "w"), width=80) as console:  # noqa: PTH123
        console.print(terminal.summary([analysis]))
    data.as_json([analysis])


AXES = sorted({axis for experiment in catalogue.ALL.values() for axis in experiment.axes})
VIEWS = ("", "no such view", *views.ALL)
SOME: dict[str, tuple[Setting, ...]] = {
    "backend": ("agile", "agile-cold"), "background": (0, 50), "cni": ("calico", "weave"),
    "console": ("serial", "vga"), "filesystem": ("ext4", "erofs"), "instances": (1, 10),
    "layers": (1, 8), "mebibytes": (16, 64), "method": ("ip", "netlink"),
    "order": ("sequential", "parallel"), "pools": ("full", "refilling"),
    "protocol": ("disk", "pvh"), "rate": (50, 200), "runtime": ("runc", "crun"),
    "state": ("met", "mended"), "without": ("nothing", "networks", "sandboxes"),
}  # fmt: skip
SETTINGS: tuple[Setting, ...] = (
    -1,
    0,
    1,
    2,
    10,
    1.5,
    1e300,
    True,
    "",
    "x",
    "10",
    "runc",
    "1 000",
    "\0",
    "x" * 5000,
)


@fuzzed
@given(damages)
def test_runs_of_every_experiment(tmp_path_factory: pytest.TempPathFactory, random: Random) -> None:
    """What a header says of all starts is wrong in the same way for each of them."""
    experiment = random.choice(list(catalogue.ALL.values()))
    each = product(*(SOME.get(axis, ("a", "b")) for axis in experiment.axes))
    points = [dict(zip(experiment.axes, point, strict=True)) for point in each]
    points = random.sample(points, min(len(points), 4))
    name, view, axes = experiment.name, experiment.presentation.view, list(experiment.axes)
    for _ in range(random.randint(1, 3)):
        axis = random.choice(axes) if axes else "instances"
        match random.randrange(5):
            case 0:
                name = random.choice(list(catalogue.ALL))
            case 1:
                view = random.choice(VIEWS)
            case 2:
                axes = [each for each in axes if each != axis]
            case 3:
                other = random.choice(AXES)
                axes = [other if each == axis else each for each in axes]
                points = [
                    {other if key == axis else key: value for key, value in point.items()}
                    for point in points
                ]
            case _:
                value = random.choice(SETTINGS)
                points = [
                    point if random.random() < 0.3 else {**point, axis: value} for point in points
                ]
    path = tmp_path_factory.mktemp("run") / "run"
    write_run(path, experiment, name, view, tuple(axes), tuple(points), random)
    refuses(lambda: show(path))
    refuses(lambda: comparing.compare(store.read(path), store.read(path), across=True))
    refuses(lambda: gate.compare(*sides.of_run(store.read(path))))
    refuses(lambda: provision.costs(store.read(path)))
    shutil.rmtree(path.parent)


def write_run(
    path: Path, experiment: Experiment, name: str, view: str, axes: tuple[str, ...],
    points: tuple[Point, ...], random: Random,
) -> None:  # fmt: skip
    """Three repetitions of each point, one of them traced."""
    presentation = structs.replace(experiment.presentation, view=view)
    header = Header(
        run="fl-fuzz", experiment=name, question="?", end_point=random.choice(list(EndPoint)),
        axes=axes, points=points, argv=("firstlight",), seed=1, started="now", revision="0",
        repetitions=3, presentation=presentation,
    )  # fmt: skip
    batches = list(product(points, (False, False, False, True)))
    with store.Writer(path, header) as writer:
        index = 0
        for batch, (point, traced) in enumerate(batches):
            size = point.get("instances")
            for instance in range(size if isinstance(size, int) and 0 < size < 20 else 1):
                at = batch * 10**9
                spent = random.randrange(10**6, 10**8)
                writer.append(
                    [
                        Sample(
                            index=index, batch=batch, instance=instance, repetition=batch % 4,
                            point=point, traced=traced, ending=Ending.READY,
                            stamps=Stamps(at, at, at + spent, at + spent, at + 2 * spent),
                            steps=(Step("netns", at, at + spent // 2),), pid=index,
                        )
                    ]
                )  # fmt: skip
                index += 1
