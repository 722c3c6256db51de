"""Kills whatever the agile runtime is made of, at random and under load, and counts what is left.

    python -m bench.survival --kills 1000

Each kill is a SIGKILL for the manager, the node, the network helper, the log keeper, a zygote, a
WebAssembly worker, an instance or a client. After it a start must succeed. After every few kills
the load is stopped, and what the runtime holds is counted: it must not grow. At the end the runtime
is asked to end, and everything that it made must be gone.

Over 500 lines: random kills, one kill beside many instances and a row of managers share the runtime
that is attacked, and the count of what is left.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firstlight.agile import Config, Function
from firstlight.agile.client import Client
from firstlight.agile.node.process import pid_of
from firstlight.agile.parts import cgroups
from firstlight.errors import FirstlightError
from firstlight.host import workspace

CONFIG = Config(name=os.environ.get("SURVIVAL_NAME", "survive"))
NAME = CONFIG.name
CLIENTS = 4
RECOVERED_SECONDS = 60.0
ROUND = 20
"""Kills between two counts."""
HANDLER = "import secrets\ndef main(event): return [event, secrets.token_hex(4)]\n"
MODULE = '(module (func (export "main") (param i32) (result i32) local.get 0))'
WAITS = "[pools.sandbox]\nlow = 2\nhigh = 4\n"
FULL = "".join(f"[pools.{kind}]\nlow = 4\nhigh = 4\n" for kind in ("network", "cgroup"))
LASTS = ("/bin/sleep", "3600")
SETTLES = 3
"""Managers that are killed before the first count."""
SLACK = 16
"""Descriptors of a fork that waits or not, and of a part that is being looked at."""
LOAD = """
import json, os, random, sys
import msgspec
from pathlib import Path
from firstlight.agile import Function
from firstlight.agile.client import Client
from firstlight.errors import FirstlightError

functions = msgspec.json.decode(sys.argv[2], type=list[Function])
chance = random.Random(os.getpid())
null = os.open(os.devnull, os.O_RDWR)
while True:
    try:
        with Client(Path(sys.argv[1])) as client:
            while True:
                function = chance.choice(functions)
                if function.kind != "command":
                    client.invoke(function, [7] if function.kind == "wasm" else 7)
                    continue
                detached = chance.random() < 0.1
                started = client.start(function, (null, null, null), detached, logged=detached)
                if detached:
                    list(client.logs(started.id))
                elif chance.random() < 0.2:
                    client.execute(started.id, ("/bin/true",), {}, "/", (null, null, null))
                if chance.random() < 0.5:
                    client.stop(started.id)
                client.wait(started.id)
    except (FirstlightError, OSError):
        pass
"""


@dataclass
class Left:
    """What a runtime holds, or what it left; numbers of each."""

    processes: int
    cgroups: int
    links: int
    tables: int
    mounts: int
    namespaces: int
    files: int
    descriptors: int

    def __sub__(self, other: "Left") -> dict[str, int]:
        return {name: value - vars(other)[name] for name, value in vars(self).items()}


MOST = Left(
    processes=40, cgroups=600, links=250, tables=4, mounts=80, namespaces=600, files=8,
    descriptors=1200,
)  # fmt: skip
"""What full pools hold, and twice that; a thousand kills that left one each would exceed it."""


@dataclass
class Outcome:
    """The kills by victim, how long each took to recover from in s, and what was counted."""

    kills: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    counts: list[Left] = field(default_factory=list)
    left: Left | None = None


def read(path: str) -> str:
    """A file of /proc, or nothing if its process has ended."""
    try:
        return Path(path).read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def pids() -> list[int]:
    """All processes of the host."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208


def below(pid: int) -> list[int]:
    """A process's descendants."""
    result: list[int] = []
    for child in read(f"/proc/{pid}/task/{pid}/children").split():
        result += [int(child), *below(int(child))]
    return result


def ours() -> list[int]:
    """The processes of this runtime, by their words or their cgroups."""
    marks = str(CONFIG.directory), f"firstlight.agile.{NAME}"
    return [
        pid for pid in pids() if pid != os.getpid() and any(
            mark in read(f"/proc/{pid}/{file}") for mark in marks for file in ("cmdline", "cgroup")
        )
    ]  # fmt: skip


def lines(*command: str) -> list[str]:
    """What a command writes."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def count(*holders: int) -> Left:
    """What there is; descriptors and namespaces are those of ``holders``."""
    tops = Path("/sys/fs/cgroup").glob(f"*/firstlight.agile.{NAME}")
    opened = [link for pid in holders for link in links(pid)]
    return Left(
        processes=len(ours()), cgroups=sum(1 for top in tops for _ in os.walk(top)),
        links=len(lines("ip", "-o", "link")), tables=len(lines("nft", "list", "tables")),
        mounts=sum(len(read(f"/proc/{pid}/mountinfo").splitlines()) for pid in holders[:1]),
        namespaces=len({link for link in opened if link.startswith(("net:", "mnt:", "user:"))}),
        files=len([path for path in CONFIG.directory.glob("**/*") if path.suffix != ".log"]),
        descriptors=len(opened),
    )  # fmt: skip


def links(pid: int) -> list[str]:
    """What a process has open."""
    result = []
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                result.append(str(path.readlink()))
    return result


class Runtime:
    """The runtime under attack, and its load."""

    def __init__(
        self, directory: Path, functions: list[Function], seed: int, pools: str = WAITS
    ) -> None:  # fmt: skip
        self._pools, self._directory, self._functions = pools, directory, functions
        self.chance = random.Random(seed)  # noqa: S311
        self._clients: list[subprocess.Popen[bytes]] = []
        self._log = (directory / "log").open("wb")
        self.manager = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        program = str(Path(sys.executable).with_name("firstlight"))
        config = self._directory / "config.toml"
        config.write_text(f'name = "{NAME}"\ninstances = 4000\n{self._pools}')
        return subprocess.Popen(
            [program, "agile", "up", "--config", str(config)],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def load(self) -> None:
        """Bring the clients up to their number."""
        import msgspec

        self._clients = [client for client in self._clients if client.poll() is None]
        words = msgspec.json.encode(self._functions).decode()
        while len(self._clients) < CLIENTS:
            argv = [sys.executable, "-c", LOAD, str(CONFIG.socket), words]
            self._clients.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL))

    def quiet(self) -> None:
        """End the load, and wait until no instance runs."""
        for each in self._clients:
            each.kill()
        for each in self._clients:
            each.wait()
        until = time.monotonic() + RECOVERED_SECONDS
        with Client(CONFIG.socket) as client:
            while running := client.running():
                for instance in running:
                    with suppress(FirstlightError):
                        client.stop(instance.id)
                assert time.monotonic() < until, f"{len(running)} instances do not end"

    def victims(self) -> dict[str, list[int]]:
        """Those that can be killed, by kind."""
        node = pid_of(CONFIG)
        inside = below(node) if node > 0 else []
        helpers = below(self.manager.pid)
        names = {pid: read(f"/proc/{pid}/comm").strip() for pid in (*inside, *helpers)}
        logs = [pid for pid in ours() if read(f"/proc/{pid}/comm").startswith("firstlight-log")]
        zygotes = [pid for pid in inside if names[pid] == "python3" or "zygote" in names[pid]]
        workers = [pid for pid in inside if names[pid] == "worker"]
        return {
            "manager": [self.manager.pid],
            "node": [node] if node > 0 else [],
            "helper": [pid for pid in helpers if pid not in logs],
            "log keeper": logs,
            "zygote": zygotes,
            "worker": workers,
            "instance": [pid for pid in inside if pid not in (*zygotes, *workers, *logs)],
            "client": [client.pid for client in self._clients],
        }

    def kill(self) -> str:
        """Kill one; returns its kind."""
        result = {kind: pids for kind, pids in self.victims().items() if pids}
        kind = self.chance.choice(sorted(result))
        with suppress(ProcessLookupError):
            os.kill(self.chance.choice(result[kind]), signal.SIGKILL)
        if kind == "manager":
            self.manager.wait()
        return kind

    def recovered(self) -> float:
        """How long it takes until a start succeeds, in s."""
        began = time.monotonic()
        error: Exception | None = None
        while time.monotonic() - began < RECOVERED_SECONDS:
            if self.manager.poll() is not None:
                self.manager = self._started()
            try:
                self._probe()
            except FirstlightError as failed:
                error = failed
                time.sleep(0.02)
            else:
                return time.monotonic() - began
        raise AssertionError(f"no start succeeds in {RECOVERED_SECONDS} s: {error}\n{self.log()}")

    def up(self) -> None:
        """Start the manager if it does not run, and wait until it serves."""
        if self.manager.poll() is not None:
            self.manager = self._started()
        until = time.monotonic() + RECOVERED_SECONDS
        while time.monotonic() < until:
            with suppress(FirstlightError), Client(CONFIG.socket) as client:
                client._manager.settimeout(RECOVERED_SECONDS / 4)
                client.running()
                return
            time.sleep(0.02)
        raise AssertionError("the manager does not serve")

    def _probe(self) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        try:
            with Client(CONFIG.socket) as client:
                client._manager.settimeout(RECOVERED_SECONDS / 4)
                ended = client.wait(client.start(self._functions[0], (null, null, null)).id)
                assert ended.status == 0 or ended.signal == signal.SIGKILL, ended
        finally:
            os.close(null)

    def log(self) -> str:
        """The end of the manager's log."""
        return (self._directory / "log").read_text()[-3000:]

    def abandon(self) -> None:
        """Kill what is ours, after a failure."""
        self.manager.kill()
        for pid in [*(client.pid for client in self._clients), pid_of(CONFIG), *ours()]:
            with suppress(ProcessLookupError):
                if pid > 0:
                    os.kill(pid, signal.SIGKILL)
        for top in Path("/sys/fs/cgroup").glob(f"*/firstlight.agile.{NAME}"):
            cgroups.remove_tree(top)

    def close(self) -> None:
        """End it in order."""
        self.manager.terminate()
        assert self.manager.wait(60) == 0, self.log()
        self._log.close()


def functions(directory: Path) -> list[Function]:
    """What the load starts, of each kind that this host can run."""
    root = directory / "root"
    for name in ("usr", "srv", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "srv/app.py").write_text(HANDLER)
    subprocess.run(["mount", "--bind", "/usr", root / "usr"], check=True)
    result = [
        Function(rootfs=str(root), command=("/bin/true",), network="none"),
        Function(rootfs=str(root), command=("/bin/sleep", "0.2")),
        Function(rootfs=str(root), command=("/bin/sleep", "60"), network="internal"),
        Function(rootfs=str(root), kind="python", handler="app:main", directory="/srv"),
    ]
    with suppress(ImportError):
        from wasmtime import wat2wasm

        (directory / "f.wasm").write_bytes(wat2wasm(MODULE))
        result.append(Function(rootfs=str(directory / "f.wasm"), kind="wasm", handler="main"))
    return result


@contextmanager
def place() -> Iterator[Path]:
    """A directory in network and mount namespaces of our own."""
    with workspace.sandbox(f"survival-{os.getpid()}") as sandbox, ExitStack() as last:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"], check=True)
        last.callback(subprocess.run, ["umount", "-l", "/run"], check=True)
        yield sandbox.directory


def a_round(runtime: Runtime, outcome: Outcome, kills: int) -> None:
    """Kill ``kills`` times under load, and count what is held once it is quiet."""
    for _ in range(kills):
        runtime.load()
        time.sleep(runtime.chance.random() * 0.3)
        outcome.kills[runtime.kill()] += 1
        outcome.seconds.append(runtime.recovered())
    runtime.quiet()
    outcome.counts.append(count(pid_of(CONFIG), runtime.manager.pid))
    beyond = {name: value for name, value in (outcome.counts[-1] - MOST).items() if value > 0}
    assert not beyond, f"too much is held, by so much: {beyond}"


def attack(
    kills: int, seed: int, every: int = ROUND, tell: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Kill so many, one after another. Raises AssertionError if something stays or grows."""
    outcome = Outcome()
    with place() as directory:
        before = count()
        runtime = Runtime(directory, functions(directory), seed)
        try:
            runtime.recovered()
            while outcome.kills.total() < kills:
                a_round(runtime, outcome, min(every, kills - outcome.kills.total()))
                tell(f"{outcome.kills.total()} kills, {outcome.counts[-1]}")
            runtime.close()
        except BaseException:
            runtime.abandon()
            raise
        outcome.left = count()
        left = {name: value for name, value in (outcome.left - before).items() if value}
        assert not left, f"left: {left}, {ours()}"
    return outcome


def outlive(instances: int) -> dict[str, float]:
    """Kill the manager beside so many instances. Raises AssertionError if one ends or is lost."""
    null = os.open(os.devnull, os.O_RDWR)
    with place() as directory:
        before = count()
        root = functions(directory)[0].rootfs
        last = "read line; exit 7"
        hold = Function(rootfs=root, command=("/bin/sh", "-c", last), memory=8 << 20, pids=4)
        runtime = Runtime(directory, [hold], seed=1)
        try:
            runtime.up()
            waits, begins = os.pipe()
            with Client(CONFIG.socket) as client:
                began = time.monotonic()
                ids = {client.start(hold, (waits, null, null)).id for _ in range(instances)}
                started = time.monotonic() - began
                os.close(waits)
                node = pid_of(CONFIG)
                runtime.manager.kill()
                runtime.manager.wait()
                began = time.monotonic()
                runtime.up()
                taken = time.monotonic() - began
                with Client(CONFIG.socket) as other:
                    lost = ids - {each.id for each in other.running()}
                    assert not lost, (
                        f"{len(lost)} of {instances} are not in ps; the node was {node} and is "
                        f"{pid_of(CONFIG)}\n{runtime.log()}"
                    )
                os.close(begins)  # each ends by itself now, with a status of its own
                ends = Counter(client.wait(id).status for id in ids)
                assert ends == {7: instances}, f"they ended so: {ends}"
            runtime.close()
        except BaseException:
            runtime.abandon()
            raise
        left = {name: value for name, value in (count() - before).items() if value}
        assert not left, f"left: {left}, {ours()}"
    return {"instances": instances, "started_s": started, "taken_over_s": taken}


def memory(pid: int) -> int:
    """A process's own memory, in bytes."""
    result = [line for line in read(f"/proc/{pid}/status").splitlines() if "RssAnon" in line]
    return int(result[0].split()[1]) << 10


def busy(runtime: Runtime, functions: list[Function]) -> None:
    """Use each function once, and wait until the shelves are as full as at first."""
    null = os.open(os.devnull, os.O_RDWR)
    until = time.monotonic() + RECOVERED_SECONDS
    with Client(CONFIG.socket) as client:
        for function in functions:
            if function.kind != "command":
                client.invoke(function, [7] if function.kind == "wasm" else 7)
            elif function.command != LASTS:
                client.wait(client.start(function, (null, null, null)).id)
        os.close(null)
        while any(pool.ready < pool.high for pool in client.pools() if "fork" not in pool.name
                  and "place" not in pool.name):  # fmt: skip
            assert time.monotonic() < until, f"{client.pools()}\n{runtime.log()}"
            time.sleep(0.02)


def flat(managers: int, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Kill so many managers of a node that has one of each kind, and count what it holds.

    Raises AssertionError if that grows.
    """
    with place() as directory:
        before = count()
        kinds = functions(directory)
        root = kinds[0].rootfs
        lasts = Function(rootfs=root, command=LASTS, network="none")
        used = [kinds[0], *(kind for kind in kinds if kind.kind != "command")]
        runtime = Runtime(directory, [*used, lasts], seed=1, pools=FULL)
        held: list[tuple[int, int]] = []
        try:
            runtime.up()
            null = os.open(os.devnull, os.O_RDWR)
            with Client(CONFIG.socket) as client:
                lasting = client.start(lasts, (null, null, null), detached=True).id
            os.close(null)
            node = pid_of(CONFIG)
            for number in range(managers + SETTLES):
                busy(runtime, used)
                held.append((len(links(node)), memory(node)))
                tell(f"{number} managers were killed; the node holds {held[-1]}")
                runtime.manager.kill()
                runtime.manager.wait()
                runtime.up()
            assert pid_of(CONFIG) == node
            first, *rest = held[SETTLES - 1 :]
            most = max(descriptors for descriptors, _ in rest)
            assert most <= first[0] + SLACK, f"it holds {most} descriptors: {links(node)}"
            grown = max(memory for _, memory in rest) - first[1]
            assert grown < first[1] // 50 + (64 << 10), f"memory grew by {grown} bytes: {held}"
            with Client(CONFIG.socket) as client:
                assert lasting in [each.id for each in client.running()]
                client.stop(lasting)
            runtime.close()
        except BaseException:
            runtime.abandon()
            raise
        left = {name: value for name, value in (count() - before).items() if value}
        assert not left, f"left: {left}, {ours()}"
    return {"managers": managers, "descriptors": rest[-1][0], "bytes": rest[-1][1], "grew": grown}


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(prog="python -m bench.survival")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=ROUND, help="kills between two counts")
    parser.add_argument("--instances", type=int, default=0, help="kill the manager beside so many")
    parser.add_argument("--managers", type=int, default=0, help="kill so many managers of a node")
    request = parser.parse_args()
    if request.managers:
        say(json.dumps(flat(request.managers, say), indent=1))
        return
    if request.instances:
        say(json.dumps(outlive(request.instances), indent=1))
        return
    outcome = attack(request.kills, request.seed, request.every, say)
    ordered = sorted(outcome.seconds)
    say(json.dumps({
        "kills": dict(outcome.kills), "recovered_median_s": ordered[len(ordered) // 2],
        "recovered_worst_s": ordered[-1], "left": "nothing",
    }, indent=1))  # fmt: skip


def say(text: str) -> None:
    """Write a line at once: a run takes a while."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
