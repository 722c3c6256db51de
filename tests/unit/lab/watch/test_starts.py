"""Which programs are of which container's start."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.lab.watch import records
from firstlight.lab.watch.programs import Program, labels_of, own_program, role, watched
from firstlight.lab.watch.starts import Executed, join


def program(
    *arguments: str, pid: int = 10, root: int = 10, at: int = 0, **environment: str
) -> Program:
    return Program(root, pid, at, f"/usr/bin/{arguments[0]}", arguments, environment)


@pytest.mark.parametrize(
    ("words", "container", "bundle"),
    [
        ("runc run mine", "mine", ""),
        ("runc --root /r --systemd-cgroup create --bundle /b --pid-file /p id", "id", "/b"),
        ("crun --cgroup-manager=disabled run -b /b --detach id", "id", "/b"),
        ("runc --log /l --log-format json start id", "id", ""),
        ("runsc --root=/r --log=/l create --bundle=/b id", "id", "/b"),
    ],
)
def test_a_runtime_names_its_container(words: str, container: str, bundle: str) -> None:
    known = role(program(*words.split()))
    assert known is not None
    assert (known.kind, known.container, known.bundle) == ("runtime", container, bundle)


@pytest.mark.parametrize(
    "words",
    ["runc state id", "runc kill id KILL", "runc --version", "runc", "runc create",
     "containerd-shim-runc-v2 delete -id x", "bridge", "runc delete --force id"],
)  # fmt: skip
def test_what_starts_nothing_has_no_part(words: str) -> None:
    assert role(program(*words.split())) is None


def test_a_plugin_names_its_pod() -> None:
    known = role(
        program("bridge", CNI_COMMAND="ADD", CNI_CONTAINERID="sandbox",
                CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=shop-1")
    )  # fmt: skip
    assert known is not None
    assert (known.container, known.labels) == ("sandbox", {"pod": "shop-1", "namespace": "web"})
    assert role(program("bridge", CNI_COMMAND="DEL", CNI_CONTAINERID="sandbox")) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"annotations": 7}', b"\xff", None])
def test_a_bundle_that_says_nothing_has_no_labels(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert labels_of(str(tmp_path)) == {}


def test_hostile_bundle_neither_blocks_nor_fills_memory(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    os.mkfifo(config)
    assert labels_of(str(tmp_path)) == {}
    config.unlink()
    config.symlink_to("/dev/zero")
    assert labels_of(str(tmp_path)) == {}
    config.unlink()
    config.write_bytes(b"[" * 100_000)
    assert labels_of(str(tmp_path)) == {}


def test_the_parts_of_a_pod_and_its_container_are_distinguished(tmp_path: Path) -> None:
    annotations = {
        "io.kubernetes.cri.sandbox-name": "shop-1",
        "io.kubernetes.cri.sandbox-namespace": "web",
        "io.kubernetes.cri.container-name": "nginx",
        "io.kubernetes.cri.container-type": "container",
    }
    (tmp_path / "config.json").write_text(json.dumps({"annotations": annotations}))
    of_sandbox = {"annotations": {
        "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-name": "shop-1",
    }}  # fmt: skip
    seen = [
        program("bridge", CNI_COMMAND="ADD", CNI_CONTAINERID="sandbox", pid=1, root=1, at=5),
        program("containerd-shim-runc-v2", "-id", "sandbox", "start", pid=2, root=2, at=20),
        program("runc", "create", "--bundle", "/none", "sandbox", pid=3, root=2, at=30),
        program("runc", "start", "sandbox", pid=5, root=2, at=50),
        program("runc", "create", "--bundle", str(tmp_path), "app", pid=6, root=2, at=60),
        replace(program("runc", "start", "app", pid=8, root=2, at=80), config=of_sandbox),
        program("runc", "create", "--bundle", "/none", "gone", pid=9, root=2, at=90),
        replace(program("runc", "start", "gone", pid=11, root=2, at=95), config=of_sandbox),
    ]
    executed = [Executed((4, 3, 2), 55), Executed((7, 6, 2), 85), Executed((99,), 90)]
    sandbox, app, gone = join(seen, executed)
    assert (sandbox.container, sandbox.began, sandbox.ready) == ("sandbox", 5, 55)
    assert (app.container, app.began, app.ready, app.root) == ("app", 60, 85, 2)
    assert sandbox.roots == {1, 2}
    assert (app.labels["container"], app.labels["kind"]) == ("nginx", "container")
    assert (gone.labels["pod"], gone.labels.get("kind")) == ("shop-1", None)
    assert app.labels["runtime"] == "runc"
    assert sandbox.labels["engine"] == "containerd"


def test_an_engine_without_a_daemon_is_the_first_sign() -> None:
    seen = [
        program("podman", "run", "image", pid=1, root=1, at=1),
        program("conmon", "-c", "id", "-n", "mine", pid=2, root=1, at=5),
        program("crun", "create", "id", pid=3, root=1, at=6),
        program("crun", "start", "id", pid=5, root=1, at=8),
    ]
    [start] = join(seen, [Executed((4, 3), 9)])
    assert (start.began, start.ready, start.labels["engine"]) == (1, 9, "podman")
    assert start.labels["container"] == "mine"


def test_a_client_counts_for_what_it_starts_first() -> None:
    """As by ``podman build`` with two commands, the second of them in another window or not."""
    client = program("podman", "build", pid=1, root=1, at=1)
    one = program("runc", "run", "one", pid=2, root=1, at=5)
    two = replace(program("runc", "run", "two", pid=5, root=1, at=10), ancestor="podman")
    starts = join([client, one, two], [Executed((3, 2), 8), Executed((6, 5), 15)])
    assert [(each.began, each.labels["engine"]) for each in starts] == [
        (1, "podman"),
        (10, "podman"),
    ]
    [start] = join([two], [Executed((6, 5), 15)])
    assert (start.began, start.labels["engine"]) == (10, "podman")


@pytest.mark.parametrize(
    ("ancestor", "annotations", "engine"),
    [
        ("dockerd", {}, "docker"),
        ("buildkitd", {}, "buildkitd"),
        ("conmon", {}, "podman"),
        ("conmon", {"io.container.manager": "cri-o"}, "cri-o"),
        ("", {}, None),
    ],
)
def test_an_ancestor_names_the_engine_where_nothing_else_does(
    ancestor: str, annotations: dict[str, str], engine: str | None
) -> None:
    config = {"annotations": annotations}
    made = replace(program("runc", "run", "id", pid=2), ancestor=ancestor, config=config)
    [start] = join([made], [Executed((3, 2), 8)])
    assert start.labels.get("engine") == engine


def test_runtime_first_in_a_namespace_is_not_its_container() -> None:
    """As by ``unshare --pid --fork crun run id``, which executes itself again."""
    seen = [program("crun", "run", "id", pid=3, root=3, at=at) for at in (6, 8)]
    for executed, ready in (([], None), ([Executed((4, 3), 20)], 20)):
        own = [Executed((3,), 7), Executed((3,), 9)]
        [start] = join(seen, own + executed)
        assert (start.began, start.ready) == (6, ready)


def test_engine_program_that_starts_nothing_is_no_start() -> None:
    assert join([program("podman", "ps")], []) == []


@given(
    st.lists(st.text()), st.dictionaries(st.sampled_from(["CNI_COMMAND", "CNI_ARGS"]), st.text())
)
def test_no_arguments_end_in_a_traceback(words: list[str], environment: dict[str, str]) -> None:
    for name in ("runc", "conmon", "containerd-shim-runc-v2", "bridge"):
        join([Program(1, 1, 1, name, (name, *words), environment)], [Executed((1,), 2)])


def test_engines_records_give_the_names_that_bundles_lack(tmp_path: Path) -> None:
    bundle = tmp_path / "overlay-containers/id/userdata"
    metadata = json.dumps({"name": "web", "image-name": "localhost/tiny:1"})
    (tmp_path / "overlay-containers").mkdir()
    (tmp_path / "overlay-containers/containers.json").write_text(
        json.dumps([7, {"id": "other"}, {"id": "id", "metadata": metadata}])
    )
    assert records.labels("id", str(bundle), None) == {
        "container": "web", "image": "localhost/tiny:1"
    }  # fmt: skip
    assert records.labels("none", str(bundle), None) == {}
    dockers = {"ID": "id", "Name": "/db", "Config": {"Image": "a:1"}}
    assert records.labels("id", "/run/b", dockers) == {"container": "db", "image": "a:1"}
    for record in (dockers | {"ID": "other"}, {"ID": "id"}, {"ID": "id", "Config": 7}, [7], "x"):
        assert records.labels("id", "/run/b", record) == {}


def test_crio_names_its_pods_and_containers_in_one_word(tmp_path: Path) -> None:
    annotations = {
        "io.container.manager": "cri-o",
        "io.kubernetes.cri-o.SandboxName": "k8s_shop-1_web_u1_0",
        "io.kubernetes.cri-o.Name": "k8s_nginx_shop-1_web_u1_0",
        "io.kubernetes.cri-o.ImageName": "localhost/tiny:1",
    }
    labels = labels_of(str(tmp_path), {"annotations": annotations})
    assert labels == {
        "engine": "cri-o", "pod": "shop-1", "namespace": "web", "container": "nginx",
        "image": "localhost/tiny:1",
    }  # fmt: skip


def test_podman_pod_is_not_crio() -> None:
    config = {"annotations": {"io.container.manager": "libpod",
                              "io.kubernetes.cri-o.SandboxID": "pod"}}  # fmt: skip
    words = ("conmon", "-c", "id", "-n", "web", "-b", "/b")
    monitor = Program(10, 10, 1, "/usr/bin/conmon", words, {}, config)
    created = Program(10, 11, 2, "/usr/bin/runc", ("runc", "create", "-b", "/b", "id"), {}, config)
    [start] = join([monitor, created], [Executed((12, 11), 3)])
    assert (start.labels["engine"], start.labels["container"]) == ("podman", "web")


def runtime(words: str, at: int, pid: int = 10, **linux: object) -> Program:
    """One whose bundle has this configuration of Linux, and the program ``/bin/serve``."""
    config = {"process": {"args": ["serve", "--all"]}, "linux": linux}
    arguments = tuple(words.split())
    return Program(pid, pid, at, f"/usr/bin/{arguments[0]}", arguments, {}, config)


OWN, HOSTS, ANOTHERS = [{"type": "pid"}], [{"type": "mount"}], [{"type": "pid", "path": "/p"}]


@pytest.mark.parametrize("namespaces", [HOSTS, ANOTHERS])
def test_shared_pid_namespace_starts_at_own_program(
    namespaces: list[dict[str, str]],
) -> None:
    executed = [
        Executed((11, 10), 2, "/proc/self/exe", is_first=False),
        Executed((12, 10), 3, "/usr/bin/hook", is_first=False),
        Executed((13, 10), 5, "/usr/local/bin/serve", is_first=False),
        Executed((99,), 4, "/usr/local/bin/serve", is_first=False),
    ]
    [start] = join([runtime("runc run a", 1, namespaces=namespaces)], executed)
    assert start.ready == 5
    [start] = join([runtime("runc run a", 1, namespaces=OWN)], executed)
    assert start.ready is None


UNKNOWN: list[object] = [
    None, [], {}, {"linux": 1}, {"linux": {"namespaces": 1}},
    {"linux": {"namespaces": [1]}, "process": {"args": []}},
]  # fmt: skip


@pytest.mark.parametrize("config", UNKNOWN)
def test_unknown_container_has_own_namespace(config: object) -> None:
    assert own_program(config) is None


def test_repeated_starts_of_container_are_distinct() -> None:
    programs = [runtime("runc run a", at, pid=at) for at in (10, 20, 30)]
    starts = join(
        programs, [Executed((15, 10), 15), Executed((25, 20), 25), Executed((35, 30), 35)]
    )
    assert [(start.began, start.ready) for start in starts] == [(10, 15), (20, 25), (30, 35)]


def test_a_start_of_what_was_made_before_is_no_failed_start() -> None:
    assert join([runtime("runc start a", 1)], []) == []
    [start] = join([runtime("runc create a", 1), runtime("runc start a", 5, pid=20)], [])
    assert start.ready is None


def test_a_runtime_is_known_behind_a_script_and_a_descriptor() -> None:
    words = ("/bin/sh", "-e", "/opt/nvidia-runtime", "--root", "/r", "create", "a")
    role_of = role(Program(1, 1, 1, "/opt/nvidia-runtime", words, {}))
    assert role_of is not None
    assert (role_of.kind, role_of.container) == ("runtime", "a")
    assert Program(1, 1, 1, "/dev/fd/3", ("/usr/bin/crun", "run", "a"), {}).name == "crun"
    assert Program(1, 1, 1, "/dev/fd/3", (), {}).name == "3"


@pytest.mark.parametrize(
    ("command", "own"),
    [("crun create --bundle /b app", "npm run dev"),
     ("mine --root /r create --bundle /b app", "tool run x --root /r")],
)  # fmt: skip
def test_container_program_named_runc_is_no_runtime(command: str, own: str) -> None:
    made = runtime(command, 2, pid=2, namespaces=HOSTS)
    assert isinstance(made.config, dict)
    made.config["process"] = {"args": own.split()}
    name = own.split()[0]
    seen = [program("conmon", "-c", "app", pid=1, root=2, at=1), made,
            program(*own.split(), pid=3, root=2, at=5)]  # fmt: skip
    [start] = join(seen, [Executed((3, 2), 6, f"/usr/bin/{name}", is_first=False)])
    assert (start.container, start.ready, start.labels["engine"]) == ("app", 6, "podman")


def test_a_runtime_is_known_by_its_name_or_by_its_options() -> None:
    assert role(program("mine", "run", "a")) is None
    for known in (
        role(program("mine", "run", "a"), ["mine"]),
        role(program("mine", "create", "-b", "/b", "--pid-file", "/p", "a")),
        role(program("mine", "--root=/r", "--log-format", "json", "start", "a")),
    ):
        assert known is not None
        assert (known.kind, known.container) == ("runtime", "a")


def test_what_engines_execute_is_watched_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "bridge").touch()
    names = watched(["my-runtime"], (tmp_path, tmp_path / "missing"))
    assert {"my-runtime", "runc", "bridge", "containerd-shim/", "conmon/", "crio//",
            "buildkitd//"} <= set(names)  # fmt: skip


def test_annotations_name_engine_of_unknown_shim() -> None:
    assert labels_of("", {"annotations": {"io.kubernetes.cri.sandbox-id": "s"}}) == {
        "sandbox": "s", "engine": "containerd",
    }  # fmt: skip
    assert labels_of("", {"annotations": {"nerdctl/name": "web-1"}}) == {
        "container": "web-1", "engine": "nerdctl",
    }  # fmt: skip
