"""containerd's shim: what it makes, what survives its server, what is left."""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc_tools", reason="needs grpcio-tools")

from tests.support.laboratory import sanitized
from tests.support.pod_host import until
from tests.support.shim_host import SECONDS, Connection, Refusal, Shim, bundle, shim

from firstlight.agile.shim.mounts import mount
from firstlight.agile.shim.ttrpc import Code, messages
from firstlight.native import native

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("runc") or not Path("/bin/busybox").exists(),
    reason="needs root, runc and busybox",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    keeper = sanitized(tmp_path_factory.mktemp("keeper"), "shim/keeper.c", "common/socket.c")
    with shim(tmp_path_factory.mktemp("server"), keeper) as running:
        yield running
    assert running.keeper.returncode == 0


@pytest.fixture
def containerd(server: Shim) -> Iterator[Connection]:
    connection = server.connect()
    yield connection
    for name in ("c", "again", "a", "b", "pod"):
        leftover = messages.Leftover(id=name, namespace="default")
        connection.ask(server.leftovers, "Delete", leftover, messages.DeleteResponse)
    connection.close()
    server.events.events.clear()


def make_pod(containerd: Connection, server: Shim, **config: Any) -> int:
    pod = messages.PodSandboxConfig(hostname="pod", **config)
    options = messages.Any(value=pod.SerializeToString())
    create = messages.CreateSandboxRequest(sandbox_id="pod", options=options)
    containerd.ask(server.sandbox, "CreateSandbox", create)
    named = messages.SandboxRequest(sandbox_id="pod")
    started = containerd.ask(server.sandbox, "StartSandbox", named, messages.StartSandboxResponse)
    return int(started.pid)


def create(containerd: Connection, server: Shim, made: Path, **more: Any) -> int:
    message = messages.CreateTaskRequest(id=made.name, bundle=str(made), **more)
    return int(containerd.ask(server.task, "Create", message, messages.PidResponse).pid)


def call(
    containerd: Connection, server: Shim, method: str, kind: Any, name: str, **more: Any
) -> Any:
    message = messages.ProcessRequest(id=name, **more)
    return containerd.ask(server.task, method, message, kind)


def start(containerd: Connection, server: Shim, name: str, **more: Any) -> int:
    return int(call(containerd, server, "Start", messages.PidResponse, name, **more).pid)


def wait(containerd: Connection, server: Shim, name: str, **more: Any) -> int:
    return int(call(containerd, server, "Wait", messages.WaitResponse, name, **more).exit_status)


def fifo(directory: Path, name: str) -> tuple[str, int]:
    path = directory / name
    os.mkfifo(path, 0o700)
    return str(path), os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def read_all(descriptor: int) -> str:
    read = b""
    while True:
        assert select.select([descriptor], [], [], SECONDS)[0], read
        part = os.read(descriptor, 4096)
        if not part:
            os.close(descriptor)
            return read.decode()
        read += part


def test_a_container_prints_ends_and_leaves_nothing(
    server: Shim, containerd: Connection, tmp_path: Path
) -> None:
    path, output = fifo(tmp_path, "out")
    made = bundle(tmp_path, "c", "echo hello; kill -0 1 && exit 7")
    pid = create(containerd, server, made, stdout=path)
    exe = Path(f"/proc/{pid}/exe").readlink()
    assert str(exe) == "/memfd:runc (deleted)"  # the copy that all share
    groups = [Path(f"/sys/fs/cgroup{each}") for each in ("", "/pids", "/memory")]
    groups = [each / f"firstlight-shim-{os.getpid()}-c" for each in groups]
    assert any(each.is_dir() for each in groups)
    assert start(containerd, server, "c") == pid
    assert wait(containerd, server, "c") == 7
    assert read_all(output) == "hello\n"
    ended = messages.TaskExit.FromString(server.events.wait("/tasks/exit")[0])
    assert (ended.pid, ended.exit_status) == (pid, 7)
    deleted = call(containerd, server, "Delete", messages.DeleteResponse, "c")
    assert (deleted.pid, deleted.exit_status) == (pid, 7)
    assert not any(each.exists() for each in groups)
    left = [
        path for path in server.directory.rglob("*") if path.is_file() and not path.is_symlink()
    ]
    assert {path.name for path in left} == {"keeper"}
    with pytest.raises(Refusal) as refused:
        call(containerd, server, "State", messages.StateResponse, "c")
    assert refused.value.code == Code.NOT_FOUND


def test_missing_command_error_is_the_runtimes(
    server: Shim, containerd: Connection, tmp_path: Path
) -> None:
    made = bundle(tmp_path, "c", "", args=["/nonexistent"])
    with pytest.raises(Refusal, match=r"/nonexistent.*no such file"):
        create(containerd, server, made)
    create(containerd, server, bundle(tmp_path, "again", "exit 0"))


def test_a_signal_s_status_and_a_process_by_exec(
    server: Shim, containerd: Connection, tmp_path: Path
) -> None:
    made = bundle(tmp_path, "c", "while true; do sleep 60; done")
    create(containerd, server, made)
    start(containerd, server, "c")
    path, output = fifo(tmp_path, "exec-out")
    process = b'{"args": ["/bin/sh", "-c", "echo inside; exit 5"], "cwd": "/", "user": {"uid": 0}}'
    exec_ = messages.ExecProcessRequest(
        id="c", exec_id="e", stdout=path, spec=messages.Any(value=process)
    )
    containerd.ask(server.task, "Exec", exec_)
    waiting = server.connect()
    waiting.send(server.task, "Wait", messages.ProcessRequest(id="c", exec_id="e"))
    start(containerd, server, "c", exec_id="e")
    assert waiting.receive(messages.WaitResponse).exit_status == 5
    assert read_all(output) == "inside\n"
    call(containerd, server, "Delete", messages.DeleteResponse, "c", exec_id="e")
    containerd.ask(server.task, "Kill", messages.KillRequest(id="c", signal=signal.SIGKILL))
    assert wait(containerd, server, "c") == 128 + signal.SIGKILL


def test_input_reaches_the_process_until_it_is_closed(
    server: Shim, containerd: Connection, tmp_path: Path
) -> None:
    path, output = fifo(tmp_path, "out")
    os.mkfifo(tmp_path / "in", 0o700)
    made = bundle(tmp_path, "c", "cat; exit 3")
    writer = os.open(tmp_path / "in", os.O_RDWR)
    create(containerd, server, made, stdin=str(tmp_path / "in"), stdout=path)
    start(containerd, server, "c")
    os.write(writer, b"line\n")
    assert select.select([output], [], [], SECONDS)[0]
    os.close(writer)  # as a killed containerd does; the next one opens it again
    writer = os.open(tmp_path / "in", os.O_WRONLY)
    os.write(writer, b"more\n")
    containerd.ask(server.task, "CloseIO", messages.CloseIORequest(id="c", stdin=True))
    assert wait(containerd, server, "c") == 3
    assert read_all(output) == "line\nmore\n"
    os.close(writer)


def test_a_terminal_has_its_size_and_outlives_the_server(
    server: Shim, containerd: Connection, tmp_path: Path
) -> None:
    path, output = fifo(tmp_path, "out")
    os.mkfifo(tmp_path / "in", 0o700)
    writer = os.open(tmp_path / "in", os.O_RDWR)
    made = bundle(tmp_path, "c", "tty; read x; stty size; exit 4", terminal=True)
    create(containerd, server, made, stdin=str(tmp_path / "in"), stdout=path, terminal=True)
    start(containerd, server, "c")
    size = messages.ResizePtyRequest(id="c", width=71, height=17)
    containerd.ask(server.task, "ResizePty", size)
    assert select.select([output], [], [], SECONDS)[0]
    server.kill_server()
    server.server()
    os.write(writer, b"go\n")
    assert wait(containerd, server, "c") == 4
    text = os.read(output, 65536).decode()
    assert "/dev/pts/0" in text
    assert "17 71" in text
    os.close(output)
    os.close(writer)


def test_who_holds_a_pod_has_no_rights_and_no_files(server: Shim, containerd: Connection) -> None:
    pid = make_pod(containerd, server)
    about = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )  # fmt: skip
    assert about["Uid"].split() == about["Gid"].split() == ["65535"] * 4
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(about[name], 16) == 0
    assert (about["NoNewPrivs"], about["Seccomp"], about["NSpid"].split()[-1]) == ("1", "2", "1")
    proc = Path(f"/proc/{pid}")
    seen = about["Name"], (proc / "cmdline").read_bytes().rstrip(b"\0")
    assert seen == ("pause", b"/pause")  # not where the host has the program
    assert (proc / "exe").readlink() == native("shim-sandbox")  # as the next server knows it
    until(lambda: not list((proc / "fd").iterdir()))  # closed after its answer
    assert [each.name for each in (proc / "root").iterdir()] == ["proc"]
    assert not list((proc / "root" / "proc").iterdir())
    ours = {name: Path(f"/proc/self/ns/{name}").readlink() for name in ("ipc", "uts", "pid", "mnt")}
    assert all((proc / "ns" / name).readlink() != each for name, each in ours.items())
    asked = messages.SandboxStatusRequest(sandbox_id="pod", verbose=True)
    status = containerd.ask(server.sandbox, "SandboxStatus", asked, messages.SandboxStatusResponse)
    shown = json.loads(status.info["info"])  # "crictl inspectp"
    assert (shown["pid"], shown["processStatus"]) == (pid, "running")
    names = {each["type"]: each["path"] for each in shown["runtimeSpec"]["linux"]["namespaces"]}
    assert names == {name: f"/proc/{pid}/ns/{name}" for name in ("ipc", "uts", "pid")}


def test_pod_containers_share_name_and_shm_and_outlive_server(
    server: Shim, containerd: Connection, tmp_path: Path
) -> None:
    pod = make_pod(containerd, server, dns_config=messages.DNSConfig(servers=["192.0.2.9"]))
    path, output = fifo(tmp_path, "out")
    first = bundle(tmp_path, "a", "while [ ! -e /dev/shm/go ]; do sleep 0.05; done; exit 9", pod)
    show = "hostname; cat /etc/resolv.conf /etc/hosts; touch /dev/shm/go"
    second = bundle(tmp_path, "b", show, pod)
    create(containerd, server, first)
    start(containerd, server, "a")
    waiting = server.connect()
    waiting.send(server.task, "Wait", messages.ProcessRequest(id="a"))
    waiting.send(server.sandbox, "WaitSandbox", messages.SandboxRequest(sandbox_id="pod"))
    server.kill_server()
    create(containerd, server, second, stdout=path)
    start(containerd, server, "b")
    assert waiting.receive(messages.WaitResponse).exit_status == 9
    assert wait(containerd, server, "b") == 0
    hosts = Path("/etc/hosts").read_text()
    assert read_all(output) == f"pod\nnameserver 192.0.2.9\n{hosts}"
    for name in ("a", "b"):
        call(containerd, server, "Delete", messages.DeleteResponse, name)
    named = messages.SandboxRequest(sandbox_id="pod")
    containerd.ask(server.sandbox, "StopSandbox", messages.StopSandboxRequest(sandbox_id="pod"))
    assert waiting.receive(messages.WaitResponse).exit_status == 128 + signal.SIGKILL
    for _ in range(2):  # the answer to the first may have been lost with a server
        containerd.ask(server.sandbox, "ShutdownSandbox", named)
    assert str(server.directory) not in Path("/proc/self/mountinfo").read_text()
    assert not list(server.directory.glob("sandboxes/*/*"))


def test_next_server_makes_pod_of_killed_one(server: Shim, containerd: Connection) -> None:
    shm = server.directory / "sandboxes" / "default" / "pod" / "shm"
    shm.mkdir(parents=True)
    mount("tmpfs", "shm", shm, ())
    server.kill_server()
    make_pod(containerd, server)
    assert len(list(shm.parent.glob("record.json"))) == 1
    named = messages.SandboxRequest(sandbox_id="pod")
    containerd.ask(server.sandbox, "ShutdownSandbox", named)
    assert str(server.directory) not in Path("/proc/self/mountinfo").read_text()


def test_end_without_a_server_is_told_to_the_next(
    server: Shim, containerd: Connection, tmp_path: Path
) -> None:
    made = bundle(tmp_path, "c", "while true; do sleep 60; done")
    pid = create(containerd, server, made)
    start(containerd, server, "c")
    stale = server.directory / "scratch" / "of-an-earlier-server.pid"
    stale.touch()
    directory = server.directory / "scratch" / "no-file-of-the-server"
    directory.mkdir()
    first = server.server()
    os.kill(first, signal.SIGSTOP)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGKILL)
    os.kill(first, signal.SIGKILL)
    assert wait(containerd, server, "c") == 128 + signal.SIGKILL
    # containerd, restarted, deletes a container that has no process, and loses its exit status
    named = messages.TaskRequest(id="c")
    listed = containerd.ask(server.task, "Pids", named, messages.PidsResponse)
    assert [process.pid for process in listed.processes] == [pid]
    assert not stale.exists()
    directory.rmdir()


def test_server_umask_ignores_starter(server: Shim) -> None:
    status = Path(f"/proc/{server.server()}/status").read_text()
    assert "Umask:\t0022\n" in status


def test_sigterm_of_keepers_server_ends_its_pods(tmp_path: Path) -> None:
    with shim(tmp_path) as server:
        containerd = server.connect()
        pod = make_pod(containerd, server)
        pid = create(containerd, server, bundle(tmp_path, "c", "sleep 600", pod))
        start(containerd, server, "c")
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pod}").exists()
    assert str(server.directory) not in Path("/proc/self/mountinfo").read_text()


def test_a_keeper_ends_what_a_killed_one_has_left(tmp_path: Path) -> None:
    with shim(tmp_path) as server:
        containerd = server.connect()
        pod = make_pod(containerd, server)
        pid = create(containerd, server, bundle(tmp_path, "c", "sleep 600", pod))
        start(containerd, server, "c")
        ends = [os.pidfd_open(each) for each in (pod, pid)]
        server.keeper.kill()
        server.keeper.wait(SECONDS)
        containerd.close()
        (tmp_path / "events.sock").unlink()
        with shim(tmp_path) as after:
            containerd = after.connect()
            again = make_pod(containerd, after)  # the name is free
            for end in ends:
                assert select.select([end], [], [], SECONDS)[0]
                os.close(end)
            assert Path(f"/proc/{again}").exists()
            assert not list(after.directory.glob("tasks/*/*"))


def test_leftovers_of_a_container_are_deleted_by_runtime(
    server: Shim, containerd: Connection, tmp_path: Path
) -> None:
    create(containerd, server, bundle(tmp_path, "c", "sleep 600"))
    start(containerd, server, "c")
    leftover = messages.Leftover(id="c", namespace="default")
    answer = containerd.ask(server.leftovers, "Delete", leftover, messages.DeleteResponse)
    assert answer.exit_status == 128 + signal.SIGKILL
    with pytest.raises(Refusal):
        call(containerd, server, "State", messages.StateResponse, "c")


def test_the_program_says_which_mounts_the_runtime_can_make() -> None:
    """Otherwise containerd ends at a recursive read-only one, and the kubelet refuses its pod."""
    program = native("containerd-shim-firstlight-v1")
    info = subprocess.run([program, "-info"], check=True, capture_output=True).stdout
    features = json.loads(info[info.index(b"{") :])
    assert "rro" in features["mountOptions"]
    assert "user" not in features["linux"].get("namespaces", ())


@pytest.mark.parametrize("frame", [b"\xff" * 64, b"\0\0\0\4\0\0\0\1\1\0\xff\xff\xff\xff"])
def test_nonsense_is_refused_or_hung_up_on_and_harms_nobody(
    server: Shim, containerd: Connection, frame: bytes
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(SECONDS)
        peer.connect(str(server.directory / "socket"))
        peer.sendall(frame)
        assert len(peer.recv(4096)) != len(frame)  # a refusal, or the end
    before = server.server()
    make_pod(containerd, server)
    assert server.server() == before


def test_what_it_cannot_do_is_refused(server: Shim, containerd: Connection, tmp_path: Path) -> None:
    made = bundle(tmp_path, "c", "true")
    for what, more in (("binary://", {"stdout": "binary:///bin/true"}),
                       ("checkpoints", {"checkpoint": "/x"})):  # fmt: skip
        with pytest.raises(Refusal, match=what) as refused:
            create(containerd, server, made, **more)
        # after UNIMPLEMENTED containerd asks by its API before, and shows that answer
        assert refused.value.code == Code.INVALID_ARGUMENT
    options = messages.NamespaceOption(userns_options=messages.UserNamespace(mode=0))
    context = messages.LinuxSandboxSecurityContext(namespace_options=options)
    linux = messages.LinuxPodSandboxConfig(security_context=context)
    with pytest.raises(Refusal, match="hostUsers") as refused:
        make_pod(containerd, server, linux=linux)
    assert refused.value.code == Code.UNIMPLEMENTED
    with pytest.raises(Refusal, match="Checkpoint is not supported"):
        containerd.ask(server.task, "Checkpoint", messages.TaskRequest(id="c"))
    linux = messages.LinuxPodSandboxConfig(sysctls={"fs.mqueue.no_such": "1"})
    with pytest.raises(Refusal, match=r"sysctl fs.mqueue.no_such: No such file"):
        make_pod(containerd, server, linux=linux)
    make_pod(containerd, server)


@pytest.mark.parametrize(
    ("name", "of_node"),
    [
        ("vm/swappiness", ""),
        ("kernel/core_uses_pid", ""),
        ("net/../vm/swappiness", ""),
        ("kernel/shmmni", "ipc"),
        ("net/ipv4/ip_forward", "network"),
    ],
)
def test_a_pod_sets_no_sysctl_of_the_node(
    server: Shim, containerd: Connection, name: str, of_node: str
) -> None:
    options = messages.NamespaceOption(**({of_node: 2} if of_node else {}))
    value = (Path("/proc/sys") / name).read_text().strip()  # a success would change nothing
    shown = name if ".." in name else name.replace("/", ".")
    linux = messages.LinuxPodSandboxConfig(
        security_context=messages.LinuxSandboxSecurityContext(namespace_options=options),
        sysctls={shown: value},
    )
    with pytest.raises(Refusal, match=f"is the node's: {shown}: Operation not permitted"):
        make_pod(containerd, server, linux=linux)
