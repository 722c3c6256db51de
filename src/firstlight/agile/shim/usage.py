"""A container's cgroup: its usage, its processes, its removal. Versions 1, 2 and hybrid."""

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from firstlight.agile.shim.ttrpc import Message, messages

_UNLIMITED = 2**63 - 1
_TEXT = 64 << 10  # longer than any of a cgroup's files
_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")


@cache
def _mounted() -> Mapping[str, Path]:
    """The mount point of each version 1 controller; "" stands for version 2."""
    mounted = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        at = Path(before.split()[4])
        if kind == "cgroup2":
            mounted[""] = at
        elif kind == "cgroup":
            mounted |= dict.fromkeys(options.removeprefix("rw,").split(","), at)
    return mounted


def _is_unified() -> bool:
    return set(_mounted()) == {""}


def of_process(pid: int) -> dict[str, str]:
    """The cgroup of a process in each hierarchy, by controller."""
    groups = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in _mounted():
                groups[controller] = str(_mounted()[controller]) + path
    return groups


def below(parent: str) -> dict[str, str]:
    """The directories of a cgroup's path, in each hierarchy that has it."""
    if parent.endswith(".slice") and "/" not in parent:
        parts = parent.removesuffix(".slice").split("-")
        slices = ("-".join(parts[: end + 1]) + ".slice" for end in range(len(parts)))
        parent = "/".join(slices)
    paths = {name: str(at / parent.lstrip("/")) for name, at in _mounted().items()}
    return {name: path for name, path in paths.items() if os.path.isdir(path)}  # noqa: PTH112


def _main(groups: Mapping[str, str]) -> Path | None:
    """The directory that lists the container's processes."""
    names = ("",) if _is_unified() else ("pids", "freezer", "devices", "memory", "")
    return next((Path(groups[name]) for name in names if name in groups), None)


def processes(groups: Mapping[str, str]) -> list[int]:
    """The pids of all processes in the cgroup."""
    pids: list[int] = []
    if top := _main(groups):
        for directory, _, _ in os.walk(top):
            with suppress(OSError):
                pids += map(int, Path(directory, "cgroup.procs").read_text().split())
    return pids


def kill(groups: Mapping[str, str], number: int = signal.SIGKILL) -> None:
    """Send a signal to all processes in the cgroup."""
    for pid in processes(groups):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def remove(groups: Iterable[str]) -> None:
    """Remove these directories and those below them, where they are empty."""
    for top in set(groups):
        for directory, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                os.rmdir(directory)  # noqa: PTH106 - of a walk


def oom_kills(groups: Mapping[str, str]) -> int:
    """How many of its processes the OOM killer has killed."""
    if "memory" in groups:
        return _table(groups["memory"], "memory.oom_control").get("oom_kill", 0)
    return _table(groups.get("", "/"), "memory.events").get("oom_kill", 0)


def metrics(groups: Mapping[str, str]) -> Message:
    """The cgroup's metrics, as an Any of io.containerd.cgroups.v1 or v2."""
    if _is_unified():
        return _any("io.containerd.cgroups.v2.Metrics", _metrics2(groups[""]))
    return _any("io.containerd.cgroups.v1.Metrics", _metrics1(groups))


def _any(name: str, message: Message) -> Message:
    return messages.Any(type_url=name, value=message.SerializeToString())


def _metrics1(groups: Mapping[str, str]) -> Message:
    made = messages.Metrics1()
    if path := groups.get("pids"):
        made.pids.current, made.pids.limit = _number(path, "pids.current"), _limit(path, "pids.max")
    if path := groups.get("cpuacct"):
        ticks = _table(path, "cpuacct.stat")
        made.cpu.usage.total = _number(path, "cpuacct.usage")
        made.cpu.usage.user = ticks.get("user", 0) * _TICK_NS
        made.cpu.usage.kernel = ticks.get("system", 0) * _TICK_NS
        made.cpu.usage.per_cpu.extend(map(int, _text(path, "cpuacct.usage_percpu").split()))
    if path := groups.get("cpu"):
        throttled = _table(path, "cpu.stat")
        made.cpu.throttling.periods = throttled.get("nr_periods", 0)
        made.cpu.throttling.throttled_periods = throttled.get("nr_throttled", 0)
        made.cpu.throttling.throttled_time = throttled.get("throttled_time", 0)
    if path := groups.get("memory"):
        _fill(made.memory, _v1_names(_table(path, "memory.stat")))
        for entry, name in ((made.memory.usage, "memory"), (made.memory.swap, "memory.memsw"),
                            (made.memory.kernel, "memory.kmem")):  # fmt: skip
            entry.usage = _number(path, f"{name}.usage_in_bytes")
            entry.limit = _number(path, f"{name}.limit_in_bytes")
            entry.max = _number(path, f"{name}.max_usage_in_bytes")
            entry.failcnt = _number(path, f"{name}.failcnt")
        _fill(made.memory_oom_control, _table(path, "memory.oom_control"))
    return made


def _v1_names(table: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    for name, value in table.items():
        words = name.replace("pgpgin", "pg_pg_in").replace("pgpgout", "pg_pg_out")
        yield words.replace("pgfault", "pg_fault").replace("pgmajfault", "pg_maj_fault"), value


def _metrics2(path: str) -> Message:
    made = messages.Metrics2()
    made.pids.current = _number(path, "pids.current")
    made.pids.limit = _limit(path, "pids.max")
    _fill(made.cpu, _table(path, "cpu.stat"))
    _fill(made.memory, _table(path, "memory.stat"))
    made.memory.usage = _number(path, "memory.current")
    made.memory.usage_limit = _limit(path, "memory.max")
    made.memory.swap_usage = _number(path, "memory.swap.current")
    made.memory.swap_limit = _limit(path, "memory.swap.max")
    _fill(made.memory_events, _table(path, "memory.events"))
    return made


def _fill(message: Message, values: Mapping[str, int] | Iterator[tuple[str, int]]) -> None:
    names = message.DESCRIPTOR.fields_by_name
    for name, value in dict(values).items():
        if name in names and names[name].message_type is None:
            setattr(message, name, value)


def _text(path: str, name: str) -> str:
    try:
        file = os.open(f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(file, _TEXT).decode()
    except OSError:  # the cgroup is removed
        return ""
    finally:
        os.close(file)


def _number(path: str, name: str) -> int:
    return int(_text(path, name).strip() or 0)


def _limit(path: str, name: str) -> int:
    """A limit. For "max", containerd expects 0 for pids, and elsewhere a large number."""
    text = _text(path, name).strip()
    if text.isdigit():
        return int(text)
    return 0 if name == "pids.max" else _UNLIMITED


def _table(path: str, name: str) -> dict[str, int]:
    pairs = (line.split() for line in _text(path, name).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
