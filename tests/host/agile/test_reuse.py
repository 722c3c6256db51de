"""A function's next instance in the same sandbox: it finds nothing of the one before.

Each thing that an instance can leave behind is left by one, or by root inside; the next looks at
all that it can read, and must see what the first of all saw, in the same sandbox or in another.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.agile_host import on_host
from tests.support.python_functions import python_root

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import Pools, PoolSize
from firstlight.agile.function import Counts
from firstlight.agile.instance import Instance

LOOK = '''
import ctypes, fcntl, json, os, socket, struct, subprocess, sys, time

libc = ctypes.CDLL(None, use_errno=True)


def text(path):
    with open(path) as file:
        return file.read()


def refused(call, *words):
    """Whether the kernel refuses a call, for want of a right."""
    ctypes.set_errno(0)
    return call(*words) == -1 and ctypes.get_errno() in (1, 13, 38)


def linger(work=lambda: None):
    """A process that outlives its parent, in a session of its own, deaf to what can be ignored."""
    ready, done = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            import signal
            for number in range(1, 32):
                if number not in (9, 19):
                    signal.signal(number, signal.SIG_IGN)
            work()
            os.write(done, b"x")
            for descriptor in range(3):
                os.close(descriptor)
            time.sleep(600)
        os._exit(0)
    os.close(done)
    assert os.read(ready, 1)


def lock():
    locked = os.open("/srv/look.py", os.O_RDONLY)
    fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return locked


def watch():
    assert libc.inotify_add_watch(libc.inotify_init(), b"/tmp", 0xFFF) > 0


def abstract(name="left"):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("\\0" + name)
    sock.listen()
    return sock


def listening(kind):
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 7777))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def queue():
    assert libc.mq_open(b"/left", os.O_CREAT | os.O_RDWR, 0o600, None) >= 0


def children():
    for _ in range(20):
        if os.fork() == 0:
            os._exit(0)
        os.wait()


def send(address):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (address, 9))


def no_route():
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_DGRAM, "240.0.0.1"),
        (socket.AF_INET, socket.SOCK_STREAM, "255.255.255.255"),
        (socket.AF_INET6, socket.SOCK_DGRAM, "2001:db8::1"),
        (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
    ):
        try:
            socket.socket(family, kind).connect((address, 9))
        except OSError:
            pass


def multipath():
    """A connection that is counted before its address is refused."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).connect(("224.0.0.1", 9))
    except OSError:
        pass


def route():
    """A route that is kept on each CPU, with its time; no packet is sent."""
    for cpu in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {cpu})
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("198.51.100.9", 9))
    time.sleep(0.05)


def age_of_route():
    """Hundredths of a second since the kernel made the route that it keeps for an address."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        body = struct.pack("BBBBBBBBI", 2, 32, 0, 0, 0, 0, 0, 0, 0)
        body += struct.pack("HH4s", 8, 1, socket.inet_aton("198.51.100.9"))
        sock.send(struct.pack("IHHII", 16 + len(body), 26, 1, 1, 0) + body)
        answer, at = sock.recv(4096), 28
        while answer[4] == 24:  # not an error
            size, kind = struct.unpack_from("HH", answer, at)
            if kind == 12:
                return struct.unpack_from("I", answer, at + 8)[0]
            at += size + 3 & ~3
        return 0


def group():
    """What is reported to the network after its end, for a while."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(0, 35, socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1"))


def flow_label():
    """A label that the kernel keeps for a minute, with its destination."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    label = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + bytes(4)
    try:
        sock.setsockopt(41, 32, label + bytes([0, 255, 1, 0, 60, 0, 60, 0]) + bytes(4))
    except OSError:
        pass


def files():
    os.makedirs("/tmp/a/b/c")
    open("/tmp/a/b/c/file", "w").write("x" * 100_000)
    os.mkfifo("/tmp/fifo")
    os.symlink("/etc", "/tmp/link")
    os.chmod("/tmp/a", 0)
    socket.socket(socket.AF_UNIX).bind("/tmp/socket")


def first_process():
    """PID 1 is the node's: not to be seen, signalled or traced."""
    assert not os.path.exists("/proc/1")
    for call, *words in (
        (libc.kill, 1, 9), (libc.ptrace, 16, 1, 0, 0),
        (libc.setpriority, 0, 1, 10), (libc.prlimit, 1, 7, None, ctypes.create_string_buffer(16)),
    ):
        assert refused(call, *words), call


def nothing_is_writable():
    for top, folders, names in os.walk("/"):
        folders[:] = [one for one in folders if one not in ("proc", "dev", "tmp", "usr")]
        for name in (*folders, *names):
            assert not os.access(os.path.join(top, name), os.W_OK)


LEAVES = {
    "nothing": lambda: None,
    "files": files,
    "a file that came and went": lambda: (open("/tmp/gone", "w"), os.unlink("/tmp/gone")),
    "a look at /tmp": lambda: os.listdir("/tmp"),
    "a process": linger,
    "a stopped process": lambda: linger(lambda: subprocess.Popen(["sh", "-c", "kill -STOP $$"])),
    "pids": children,
    "a timer": lambda: __import__("signal").setitimer(0, 1000),
    "a lock": lambda: linger(lock),
    "a watch": lambda: linger(watch),
    "an abstract socket": lambda: linger(lambda: linger(lambda: globals().update(s=abstract()))),
    "a listening socket": lambda: linger(lambda: globals().update(s=listening(1))),
    "a bound port": lambda: linger(lambda: globals().update(s=listening(2))),
    "shared memory": lambda: libc.shmget(7, 4096, 0o1600),
    "shared memory that came and went": lambda: libc.shmctl(libc.shmget(7, 4096, 0o1600), 0, None),
    "a message queue": lambda: libc.msgget(7, 0o1600),
    "semaphores": lambda: libc.semget(7, 1, 0o1600),
    "a POSIX queue": queue,
    "niceness": lambda: os.nice(5),
    "a datagram by loopback": lambda: send("127.0.0.1"),
    "a datagram to the world": lambda: send("198.51.100.9"),
    "a connect without a route": no_route,
    "a multipath connection": multipath,
    "a route": route,
    "a flow label of IPv6": flow_label,
    "a multicast group": group,
    "an attempt to mount": lambda: refused(libc.mount, b"t", b"/tmp", b"tmpfs", 0, None) or 1 / 0,
    "an attempt to unshare": lambda: refused(libc.unshare, 0x20000) or 1 / 0,
    "an attempt to rename the host": lambda: refused(libc.sethostname, b"x", 1) or 1 / 0,
    "an attempt at keys": lambda: refused(libc.syscall, 248, b"user", b"k", b"v", 1, -3) or 1 / 0,
    "an attempt at root's files": nothing_is_writable,
    "attempts at PID 1": first_process,
}


def ids():
    made = [libc.shmget(9, 4096, 0o1600), libc.semget(9, 1, 0o1600), libc.msgget(9, 0o1600)]
    libc.shmctl(made[0], 0, None), libc.semctl(made[1], 0, 0), libc.msgctl(made[2], 0, None)
    return made


def child():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.wait()
    return pid


def seen():
    """All that an instance reads of its surroundings, before anything else."""
    status = os.stat("/tmp")
    net = ("dev", "snmp", "netstat", "unix", "tcp", "udp", "arp", "igmp", "snmp6")
    net += ("ip6_flowlabel",)
    net = [text("/proc/net/sockstat").splitlines()[0], *(text(f"/proc/net/{n}") for n in net)]
    return {
        "pids": [name for name in os.listdir("/proc") if name.isdigit()],
        "mounts": [line.split()[3:] for line in text("/proc/self/mountinfo").splitlines()
                   if "/etc/hosts" not in line],
        "tmp": [oct(status.st_mode), status.st_uid, status.st_atime_ns == status.st_mtime_ns,
                os.statvfs("/tmp").f_bfree, os.statvfs("/tmp").f_ffree, os.listdir("/tmp")],
        "sysv": [text(f"/proc/sysvipc/{name}") for name in ("shm", "sem", "msg")],
        "queue": libc.mq_open(b"/left", os.O_RDWR, 0, None),
        "host": os.uname().nodename, "nice": os.nice(0), "cgroup": text("/proc/self/cgroup"),
        "keys": text("/proc/keys") if os.access("/proc/keys", os.R_OK) else "",
        "limits": text("/proc/self/limits"), "net": net, "pid": os.getpid(),
        "route": age_of_route() < 4,
    }  # fmt: skip


found = seen()
found |= {"ids": ids(), "child": child()}
abstract().close()
act = os.environ.get("ACT")
if act != "stay":  # those hold it at once
    os.close(lock())
sandbox = [os.readlink("/proc/self/ns/mnt"), os.stat("/proc").st_ctime_ns]  # when it was made
print(json.dumps([sandbox, found]), flush=True)
if act == "stay":
    time.sleep(600)
elif act:
    LEAVES[act]()
'''
ROOT = {
    "a mount": ("-m", "mount -t tmpfs left /srv"),
    "a mount that came and went": ("-m", "mount -t tmpfs left /srv && umount /srv"),
    "the host name": ("-u", "hostname left"),
    "the domain name": ("-u", "domainname left"),
    "a route": ("-n", "ip route add 192.0.2.0/24 dev eth0"),
    "a neighbour": ("-n", "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0"),
    "a sysctl": ("-n", "echo 2000 3000 >/proc/sys/net/ipv4/ip_local_port_range"),
    "a counted packet": ("-n", "echo x >/dev/udp/127.0.0.1/9"),
    "a process": ("-p", "sleep 600 >&- 2>&- <&- &"),
}
ENDS_IT = {name for name in ROOT if "mount" in name or "name" in name}
EAT = "import os; os._exit(0) if os.fork() and os.wait() else bytearray(1 << 30)"
Seen = list[Any]


def with_function(
    where: Path, main: Callable[[Runtime, Function], Awaitable[None]], pools: Pools | None = None,
    **more: Any,
) -> None:  # fmt: skip
    root = python_root(where, {"look": LOOK})
    more = {"reuse": "sandbox", "command": ("/usr/bin/python3", "/srv/look.py"), **more}

    async def on() -> None:
        subprocess.run(["mount", "--bind", "/usr", root / "usr"], check=True)
        async with Runtime(Config(name="t6", pools=pools or Pools())) as runtime:
            await main(runtime, Function(rootfs=str(root), **more))

    on_host(on)


def doing(function: Function, act: str) -> Function:
    return msgspec.structs.replace(function, env={"ACT": act})


async def look(instance: Instance) -> Seen:
    """The sandbox, and all that an instance sees in it at its start."""
    assert instance.stdout
    await asyncio.wait_for(instance.stdout.until(b"["), 60)
    lines = (await instance.stdout.read()).decode().splitlines()
    return list(json.loads(next(line for line in lines if line.startswith("["))))


async def run(runtime: Runtime, function: Function) -> Seen:
    """The same, of an instance that has ended."""
    async with await runtime.start(function) as instance:
        result = await look(instance)
        ended = await instance.wait()
        assert instance.stderr
        assert ended.status == 0, (await instance.stderr.read()).decode()
        return result


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def test_nothing_of_an_instance_is_left_for_the_next(tmp_path: Path) -> None:
    async def main(runtime: Runtime, function: Function) -> None:
        sandbox, first = await run(runtime, function)
        names = re.findall(
            r'^    "(.+?)": ', LOOK.partition("LEAVES = {")[2].partition("}")[0], re.M
        )
        assert len(names) > 20
        left, others = {}, []
        for name in names:
            again, _ = await run(runtime, doing(function, name))
            after, left_behind = await run(runtime, function)
            left[name] = differences(first, left_behind)
            others += [name] if (again, after) != (sandbox, sandbox) else []
        assert {name: left_behind for name, left_behind in left.items() if left_behind} == {}
        assert others == [], "one sandbox serves them all"

    with_function(tmp_path, main)


def test_a_reused_network_has_no_route_of_the_instance_before(tmp_path: Path) -> None:
    async def main(runtime: Runtime, function: Function) -> None:
        served = []
        for act in ("a route", ""):
            async with await runtime.start(doing(function, act)) as instance:
                _, seen = await look(instance)
                served.append(await instance.network)
                await instance.wait()
            while not any(pool.returned for pool in runtime.pools() if "network" in pool.name):
                await asyncio.sleep(0.01)
        assert served[0] is served[1]
        assert seen["route"]

    with_function(tmp_path, main, reuse="network")


def processes_in(pids: Path) -> list[int]:
    """The processes of a PID namespace."""
    inside = []
    for each in Path("/proc").iterdir():
        with suppress(OSError):
            if each.name.isdecimal() and (each / "ns/pid").readlink() == pids:
                inside.append(int(each.name))
    return inside


def test_what_root_leaves_in_a_sandbox_ends_it_or_is_removed(tmp_path: Path) -> None:
    async def main(runtime: Runtime, function: Function) -> None:
        sandbox, first = await run(runtime, function)
        left, ended = {}, set[str]()
        for name, (where, command) in ROOT.items():
            async with await runtime.start(doing(function, "stay")) as instance:
                await look(instance)
                words = ["nsenter", "-t", str(instance.pid), where, "bash", "-ec", command]
                await asyncio.to_thread(subprocess.run, words, check=True)
                pids = Path(f"/proc/{instance.pid}/ns/pid").readlink()
                assert (await instance.stop()).signal == signal.SIGKILL
            after, left_behind = await run(runtime, function)
            assert len(processes_in(pids)) <= 1, name
            left[name] = differences(first, left_behind)
            ended |= {name} if after != sandbox else set()
            sandbox = after
        assert {name: left_behind for name, left_behind in left.items() if left_behind} == {}
        assert ended == ENDS_IT

    with_function(tmp_path, main)


IPC = """
import ctypes, os
libc = ctypes.CDLL(None)
print(os.readlink("/proc/self/ns/ipc"))
exec(os.environ.get("ACT", ""))
"""
MADE = (
    "libc.shmctl(libc.shmget(0, 4096, 0o600), 0, None)",
    "libc.semctl(libc.semget(0, 1, 0o600), 0, 0)",
    "libc.msgctl(libc.msgget(0, 0o600), 0, None)",
    "libc.mq_open(b'/left', os.O_CREAT, 0o600, None)",
)


@pytest.mark.skipif(
    not Path("/proc/sys/kernel/shm_next_id").exists(), reason="needs CONFIG_CHECKPOINT_RESTORE"
)
@pytest.mark.parametrize("act", MADE)
def test_ipc_namespace_is_kept_until_something_is_made_in_it(act: str, tmp_path: Path) -> None:
    async def main(runtime: Runtime, function: Function) -> None:
        async def space(act: str = "") -> bytes:
            async with await runtime.start(doing(function, act)) as instance:
                assert (await instance.wait()).status == 0
                assert instance.stdout
                return await instance.stdout.read()

        kept = await space()
        assert await space("libc.shmget(7, 0, 0), libc.mq_open(b'/none', 0)") == kept
        assert await space(act) == kept
        for _ in range(2):
            before, kept = kept, await space()
            assert kept != before

    with_function(tmp_path, main, command=("/usr/bin/python3", "-c", IPC))


@pytest.mark.parametrize(
    ("make", "remove"),
    [
        ("libc.shmget(0, 4096, 0o600)", "libc.shmctl(each, 0, None)"),
        ("libc.semget(0, 1, 0o600)", "libc.semctl(each, 0, 0)"),
        ("libc.msgget(0, 0o600)", "libc.msgctl(each, 0, None)"),
    ],
)
def test_identifier_of_removed_object_is_not_given_again(
    make: str, remove: str, tmp_path: Path
) -> None:
    act = f"ids = []\nfor _ in range(100):\n each = {make}; {remove}; ids.append(each)\nprint(ids)"

    async def main(runtime: Runtime, function: Function) -> None:
        async with await runtime.start(doing(function, act)) as instance:
            assert (await instance.wait()).status == 0
            assert instance.stdout
            ids = json.loads((await instance.stdout.read()).splitlines()[-1])
        assert min(ids) >= 0
        assert len(set(ids)) == 100

    with_function(tmp_path, main, command=("/usr/bin/python3", "-c", IPC))


def test_changed_function_gets_new_sandbox(tmp_path: Path) -> None:
    async def main(runtime: Runtime, function: Function) -> None:
        before, _ = await run(runtime, function)
        assert (await run(runtime, function))[0] == before
        (tmp_path / "root/new").touch()
        await runtime.register(function)
        assert (await run(runtime, function))[0] != before

    with_function(tmp_path, main)


def test_cgroup_of_idle_sandbox_is_not_ready(tmp_path: Path) -> None:
    async def main(runtime: Runtime, function: Function) -> None:
        def cgroups() -> Counts:
            return next(pool for pool in runtime.pools() if pool.name == "cgroup")

        await runtime.prepare(function)
        async with await runtime.start(doing(function, "stay")):
            while cgroups().made < 2:  # another in its place
                await asyncio.sleep(0.01)
        await runtime.sync()
        assert cgroups().ready == 1

    one = Pools(cgroup=PoolSize(low=1, high=1, dry="refuse"))
    with_function(tmp_path, main, one, network="none")


def test_instances_at_once_have_sandboxes_of_their_own(tmp_path: Path) -> None:
    async def main(runtime: Runtime, function: Function) -> None:
        for _ in range(2):
            stay = [await runtime.start(doing(function, "stay")) for _ in range(5)]
            sandboxes = {str((await look(instance))[0]) for instance in stay}
            assert len(sandboxes) == len({instance.address for instance in stay}) == 5
            for instance in stay:
                assert (await instance.stop()).signal == signal.SIGKILL

    with_function(tmp_path, main)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_sandbox_init_has_only_needed_capabilities(
    tmp_path: Path,
) -> None:
    """CHOWN, DAC_READ_SEARCH, KILL, SETGID, SETUID, SYS_ADMIN, SYS_RESOURCE."""
    few = sum(1 << number for number in (0, 2, 5, 6, 7, 21, 24))

    async def main(runtime: Runtime, function: Function) -> None:
        for _ in range(2):
            async with await runtime.start(doing(function, "stay")) as instance:
                await look(instance)
                keeper = status(int(status(instance.pid)["PPid"]))
                for name in ("CapPrm", "CapEff"):
                    assert int(keeper[name], 16) & ~few == 0, keeper
                    assert int(keeper[name], 16) & 1 << 21
                for name in ("CapInh", "CapBnd", "CapAmb"):
                    assert int(keeper[name], 16) == 0
                assert keeper["NoNewPrivs"] == "1"

    with_function(tmp_path, main)


def test_a_sandbox_without_a_network_is_used_again(tmp_path: Path) -> None:
    async def main(runtime: Runtime, function: Function) -> None:
        assert len({str(await run(runtime, function)) for _ in range(4)}) == 1

    with_function(tmp_path, main, network="none")


@pytest.mark.parametrize("reuse", ["network", "sandbox"])
def test_oom_is_charged_to_its_own_instance(tmp_path: Path, reuse: str) -> None:
    """The one before ended by itself: only its child was killed. Its cgroup serves the next, unless
    the pool gives it up between the two.
    """
    command = ("/usr/bin/python3", "-c", f"import os; exec(os.environ.get('ACT', {EAT!r}))")

    async def main(runtime: Runtime, function: Function) -> None:
        before, cgroup = "", ""
        while not before or cgroup != before:
            for act in (EAT, "print('[', flush=True); import time; time.sleep(600)"):
                before = cgroup
                async with await runtime.start(doing(function, act)) as instance:
                    cgroup = Path(f"/proc/{instance.pid}/cgroup").read_text()
                    if act != EAT:
                        assert instance.stdout
                        await instance.stdout.until(b"[")
                        os.kill(instance.pid, signal.SIGKILL)
                    ended = await instance.wait()
                    assert not ended.out_of_memory
                    assert (ended.status, ended.signal) in ((0, None), (None, signal.SIGKILL))

    first = PoolSize(low=0, high=0)
    with_function(
        tmp_path, main, Pools(cgroup=first), memory=64 << 20, command=command, reuse=reuse
    )


FREEZER = Path("/sys/fs/cgroup/freezer")


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Processes that cannot be killed: the freezer of version 2 would let them end."""
    group = FREEZER / f"firstlight-test-{os.getpid()}"
    group.mkdir()
    try:
        for pid in pids:
            (group / "tasks").write_text(str(pid))
        state = group / "freezer.state"
        state.write_text("FROZEN")
        until = time.monotonic() + 60
        while state.read_text() != "FROZEN\n":
            assert time.monotonic() < until, state.read_text()
            time.sleep(0.01)
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        until = time.monotonic() + 60
        while (group / "tasks").read_text() and time.monotonic() < until:
            time.sleep(0.01)
        group.rmdir()


@pytest.mark.skipif(not FREEZER.is_dir(), reason=f"needs the freezer of cgroup v1 at {FREEZER}")
def test_end_is_reported_when_renewal_fails(tmp_path: Path) -> None:
    async def main(runtime: Runtime, function: Function) -> None:
        async with await runtime.start(doing(function, "stay")) as instance:
            await look(instance)
            words = ["nsenter", "-t", str(instance.pid), "-p", "sleep", "600"]
            entered = await asyncio.create_subprocess_exec(*words)
            pids = Path(f"/proc/{instance.pid}/ns/pid").readlink()
            keeper = int(status(instance.pid)["PPid"])
            while not (left := set(processes_in(pids)) - {instance.pid, keeper}):
                await asyncio.sleep(0.01)
            with frozen(*left):
                instance.kill()
                ended = await asyncio.wait_for(instance.wait(), 60)
                assert ended.signal == signal.SIGKILL
                await run(runtime, function)
            await asyncio.wait_for(entered.wait(), 60)

    with_function(tmp_path, main)
