"""Facts of the machine, and the doctor's checks as a list of functions.

To add a check, write a function that returns a ``Check`` and name it in ``CHECKS``. A check tries
the real thing where that leaves nothing behind, and otherwise reads what the kernel says.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firstlight.backends import accel, firecracker_probe, rootfs, vm
from firstlight.cgroups import hierarchies, is_unified
from firstlight.errors import Failed, Unsupported
from firstlight.tracers import bpf

Fact = str | int | float | bool | list[str]

_GIB = 2**30
_SYS = Path("/sys")
_PROC = Path("/proc")
_BTF = _SYS / "kernel/btf/vmlinux"
_VERSION = re.compile(r"\d+\.[\w.+~-]*\w")
_STEAL_SECONDS = 0.3
_SUDO = "run it with sudo"
_CAPABILITIES = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
"""What the lab uses. CAP_SYS_RESOURCE is not among them: nothing here raises a limit."""

_TRACEPOINTS = (
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
    "sched_waking",
    "sched_switch",
    "sys_enter",
    "sys_exit",
    "contention_begin",
    "contention_end",
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``ok`` is None for a warning; ``hint`` says what to do."""

    name: str
    ok: bool | None
    fact: str
    hint: str | None = None


def facts() -> dict[str, Fact]:
    """What a run must carry to be compared: the machine, its kernel, its set-up, its runtimes."""
    memory = _memory()
    return {
        "machine": _machine(),
        "cpu": _cpu(),
        "cores": _cores(),
        "memory": _gib(memory["MemTotal"]),
        "swap": _gib(memory["SwapTotal"]),
        "virtualisation": _virtualisation(),
        "kernel": platform.release(),
        "kernel build": platform.version(),
        "architecture": platform.machine(),
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "cgroups": _cgroups(),
        "clock source": _read(_SYS / "devices/system/clocksource/clocksource0/current_clocksource"),
        "frequency governor": ", ".join(_governors()) or "not visible",
        "huge pages": _huge_pages(),
        "mitigations": _mitigations(),
        **{
            program: version
            for program, option in (
                ("runc", "--version"),
                ("crun", "--version"),
                ("runsc", "--version"),
                ("ip", "-V"),
                ("qemu-system-x86_64", "--version"),
                ("firecracker", "--version"),
            )
            if (version := _version(program, option))
        },
        **({"accelerators": names} if (names := accel.in_use()) else {}),
    }


def doctor() -> list[Check]:
    """The answers of all ``CHECKS``, in their order; takes about a second."""
    return [check() for check in CHECKS]


def root() -> Check:
    """Namespaces, mounts, cgroups and eBPF need root."""
    if os.geteuid() == 0:
        return Check("root", True, "running as root")
    return Check("root", False, f"running as user {os.geteuid()}", _SUDO)


def capabilities() -> Check:
    """Root in a container may lack what root on the host has."""
    found = re.search(r"CapEff:\s*(\w+)", (_PROC / "self/status").read_text())
    held = int(found[1], 16) if found else 0
    missing = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if not missing:
        return Check("capabilities", True, f"all {len(_CAPABILITIES)} that the lab uses")
    return Check(
        "capabilities",
        False,
        f"missing {', '.join(missing)}",
        "run it as root on the host, or in a container with --privileged",
    )


def types() -> Check:
    """The eBPF programs are relocated by the kernel's own type information."""
    if _BTF.exists():
        return Check("kernel types (BTF)", True, f"{_BTF} is there")
    return Check(
        "kernel types (BTF)",
        False,
        f"{_BTF} is missing",
        "boot a kernel with CONFIG_DEBUG_INFO_BTF=y, as Debian's linux-image-amd64 has",
    )


def tracepoints() -> Check:
    """Those that the tracer attaches to, looked up where its loader does: in the types."""
    known = _BTF.read_bytes() if _BTF.exists() else b""
    missing = [name for name in _TRACEPOINTS if f"\0btf_trace_{name}\0".encode() not in known]
    if not missing:
        return Check("tracepoints", True, f"all {len(_TRACEPOINTS)} that the tracer uses")
    return Check(
        "tracepoints",
        False,
        f"missing {', '.join(missing)}",
        "boot Linux 5.19 or newer with CONFIG_FTRACE_SYSCALLS=y",
    )


def tracer() -> Check:
    """Loads and attaches the real programs."""
    try:
        bpf.probe()
    except (Failed, Unsupported) as error:
        hint = _SUDO if os.geteuid() else "the checks above say what the kernel or root lacks"
        return Check("eBPF tracer", False, error.message, hint)
    return Check("eBPF tracer", True, "its programs load and attach")


def veth() -> Check:
    """Makes a veth pair in a network namespace that ends with the command."""
    try:
        done = subprocess.run(
            ["unshare", "--net", "ip", "link", "add", "probe-a", "type", "veth", "peer", "probe-b"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        hint = "apt-get install util-linux iproute2"
        return Check("network namespace and veth", False, "unshare is not installed", hint)
    if done.returncode == 0:
        return Check("network namespace and veth", True, "both can be made")
    complaint = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
    return Check(
        "network namespace and veth",
        False,
        f"cannot be made: {complaint[0]}",
        _SUDO if os.geteuid() else
        "modprobe veth; the kernel needs CONFIG_NET_NS and CONFIG_VETH, and ip is in iproute2",
    )  # fmt: skip


def overlay() -> Check:
    """A root-fs technique."""
    return _technique("overlay")


def squashfs() -> Check:
    """A root-fs technique."""
    return _technique("squashfs")


def erofs() -> Check:
    """A root-fs technique."""
    return _technique("erofs")


def loop() -> Check:
    """Squashfs and erofs images are mounted from loop devices."""
    control = Path("/dev/loop-control")
    try:
        os.close(os.open(control, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Check(
            "loop devices", None, f"cannot open {control}: {error.strerror}", "modprobe loop"
        )
    return Check("loop devices", True, f"{control} opens")


def cgroup_versions() -> Check:
    """Runtimes need at least one hierarchy."""
    if hierarchies():
        return Check("cgroups", True, _cgroups())
    hint = "mount -t cgroup2 none /sys/fs/cgroup"
    return Check("cgroups", False, "no hierarchy is mounted", hint)


def runc() -> Check:
    """The runtime of the paper."""
    return _program("runc", "runc")


def crun() -> Check:
    """Refuses cgroup version 1 and hybrid hosts."""
    found = _program("crun", "crun")
    if not found.ok or is_unified():
        return found
    if "cgroup2" not in (_PROC / "filesystems").read_text().split():
        return Check("crun", False, f"{found.fact}, and needs cgroup2, which this kernel lacks")
    return Check(
        "crun",
        None,
        f"{found.fact}; on a {_cgroups()} host it runs without its cgroup work",
        "to measure that work too, boot with systemd.unified_cgroup_hierarchy=1",
    )


def runsc() -> Check:
    """GVisor's runtime."""
    return _program("runsc", "runsc")


def ip() -> Check:
    """The network set-up of the paper is made of its commands."""
    return _program("ip", "iproute2", "-V")


def qemu() -> Check:
    """The hypervisor of the paper."""
    return _program("qemu-system-x86_64", "qemu-system-x86")


def kvm() -> Check:
    """Runs a guest of a few bytes: that /dev/kvm opens says little."""
    program = shutil.which("qemu-system-x86_64")
    if not program:
        return Check(
            "KVM", None, "not tried: QEMU is not installed", "apt-get install qemu-system-x86"
        )
    try:
        chosen = accel.choose(program)
    except Unsupported as error:
        return Check("KVM", None, error.message, error.hint)
    if chosen.name == "kvm":
        return Check("KVM", True, chosen.reason)
    return Check(
        "KVM",
        None,
        f"{chosen.reason}; QEMU's guests run under TCG",
        "their times are TCG's and no processor's: measure on a machine with a KVM of its own",
    )


def firecracker() -> Check:
    """Runs a guest of a few bytes, as its backend does before a run."""
    try:
        program = firecracker_probe.find()
        pace = firecracker_probe.run_guest(program)
    except Unsupported as error:
        return Check("firecracker", None, error.message, error.hint)
    version = ".".join(map(str, firecracker_probe.version(program)))
    return Check("firecracker", True, f"{version} at {program}: {pace}")


def tun() -> Check:
    """A machine is on the lab's network by a tap."""
    try:
        vm.probe_taps()
    except Unsupported as error:
        return Check("taps", None, error.message, error.hint)
    return Check("taps", True, "can be made")


def cores() -> Check:
    """More starts at once than cores wait for each other, whatever the runtime does."""
    count, smt = _cores(), _read(_SYS / "devices/system/cpu/smt/active") == "1"
    fact = f"{count} cores{', of them half SMT siblings' if smt else ''}"
    if count >= 4:
        return Check("cores", True, fact)
    return Check(
        "cores",
        None,
        f"{fact}: with more starts at once, waiting for a CPU is much of the latency",
        "read the causes beside the latencies, or use a larger machine",
    )


def frequency() -> Check:
    """A governor that follows the load makes the first start of a burst slow."""
    governors = _governors()
    if not governors:
        return Check(
            "CPU frequency", True, "no policy is visible: the hypervisor or firmware has it"
        )
    if governors == ["performance"]:
        return Check("CPU frequency", True, "performance")
    return Check(
        "CPU frequency",
        None,
        f"the policy is {', '.join(governors)}",
        "cpupower frequency-set --governor performance (Debian: linux-cpupower)",
    )


def steal() -> Check:
    """Time that the hypervisor gave to others."""
    before = _cpu_ticks()
    time.sleep(_STEAL_SECONDS)
    spent = [after - earlier for after, earlier in zip(_cpu_ticks(), before, strict=True)]
    share = spent[7] / max(1, sum(spent[:8]))
    since_boot = before[7] / max(1, sum(before[:8]))
    fact = f"{share:.1%} in the last {_STEAL_SECONDS} s, {since_boot:.1%} since boot"
    if max(share, since_boot) < 0.01:
        return Check("stolen CPU time", True, fact)
    hint = "other guests share these CPUs: repeat more, or use a machine of its own"
    return Check("stolen CPU time", None, fact, hint)


def load() -> Check:
    """Other work on this machine."""
    average = os.getloadavg()[0]
    fact = f"load average {average:.2f} on {_cores()} cores"
    if average < 0.25 * _cores():
        return Check("load", True, fact)
    hint = "something else runs here: stop it (see top) and measure when it is quiet"
    return Check("load", None, fact, hint)


def swap() -> Check:
    """Memory that went to disk comes back during a start."""
    memory = _memory()
    used = memory["SwapTotal"] - memory["SwapFree"]
    if used == 0:
        return Check("swap", True, f"none used of {_gib(memory['SwapTotal'])}")
    return Check("swap", None, f"{_gib(used)} are swapped out", "swapoff -a while measuring")


def huge_pages() -> Check:
    """Zeroing 2 MB instead of 4 KB at a first touch makes starts of small programs vary."""
    if _huge_pages() != "always":
        return Check("transparent huge pages", True, _huge_pages())
    return Check(
        "transparent huge pages",
        None,
        "always",
        "to see starts without them: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )


def clock() -> Check:
    """Stamps come from CLOCK_MONOTONIC, which must not need a system call."""
    source = _read(_SYS / "devices/system/clocksource/clocksource0/current_clocksource")
    if source in {"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"}:
        return Check("clock", True, source)
    hint = "boot with clocksource=tsc if the CPU's is stable"
    return Check("clock", None, f"{source} is slow to read", hint)


def memory() -> Check:
    """A hundred runtimes at once take some 20 MB each, and root file systems live in memory."""
    free = _memory()["MemAvailable"]
    if free >= 3 * _GIB:
        return Check("memory", True, f"{_gib(free)} available")
    hint = "ask for fewer --instances, or free some: a hundred at once take about 3 GiB"
    return Check("memory", None, f"{_gib(free)} available", hint)


def disk() -> Check:
    """The spans of a traced run of a hundred at once take some hundred megabytes."""
    free = shutil.disk_usage(".").free
    if free >= _GIB:
        return Check("disk", True, f"{_gib(free)} free here")
    return Check("disk", None, f"{_gib(free)} free here", "name another directory with --out")


CHECKS: tuple[Callable[[], Check], ...] = (
    root,
    capabilities,
    types,
    tracepoints,
    tracer,
    veth,
    overlay,
    squashfs,
    erofs,
    loop,
    cgroup_versions,
    runc,
    crun,
    runsc,
    ip,
    qemu,
    kvm,
    firecracker,
    tun,
    cores,
    frequency,
    steal,
    load,
    swap,
    huge_pages,
    clock,
    memory,
    disk,
)


def _technique(name: str) -> Check:
    try:
        rootfs.probe(name)
    except Unsupported as error:
        return Check(f"root fs: {name}", None, error.message, error.hint)
    return Check(f"root fs: {name}", True, "can be mounted")


def _program(name: str, package: str, option: str = "--version") -> Check:
    path = shutil.which(name)
    if not path:
        return Check(name, None, "not installed", f"apt-get install {package}")
    return Check(name, True, f"{_version(name, option) or 'of unknown version'} at {path}")


def _version(program: str, option: str) -> str | None:
    try:
        said = subprocess.run([program, option], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(said.stdout)
    return found[0] if found else None


def _machine() -> str:
    """Names the machine without telling its id, which is confidential (machine-id(5))."""
    identity = _read(Path("/etc/machine-id")) or platform.node()
    return hashlib.sha256(f"firstlight {identity}".encode()).hexdigest()[:12]


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", (_PROC / "cpuinfo").read_text())
    return found[1] if found else platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _virtualisation() -> str:
    """The hypervisor's name, "none", or "unknown hypervisor"."""
    if shutil.which("systemd-detect-virt"):
        said = subprocess.run(["systemd-detect-virt", "--vm"], capture_output=True, text=True)
        return said.stdout.strip()
    guest = re.search(r"^flags.*\bhypervisor\b", (_PROC / "cpuinfo").read_text(), re.MULTILINE)
    return "unknown hypervisor" if guest else "none"


def _cgroups() -> str:
    if is_unified():
        return "v2"
    kinds = {line.split()[2] for line in (_PROC / "self/mounts").read_text().splitlines()}
    return {
        (True, True): "hybrid",
        (True, False): "v1",
        (False, True): "v2",
        (False, False): "none",
    }["cgroup" in kinds, "cgroup2" in kinds]


def _governors() -> list[str]:
    policies = (_SYS / "devices/system/cpu/cpufreq").glob("policy*/scaling_governor")
    return sorted({_read(policy) for policy in policies})


def _huge_pages() -> str:
    chosen = re.search(r"\[(\w+)\]", _read(_SYS / "kernel/mm/transparent_hugepage/enabled"))
    return chosen[1] if chosen else "not in this kernel"


def _mitigations() -> list[str]:
    files = sorted((_SYS / "devices/system/cpu/vulnerabilities").glob("*"))
    states = [(file.name, _read(file)) for file in files]
    return [f"{name}: {state}" for name, state in states if state != "Not affected"]


def _memory() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = re.findall(r"(\w+):\s+(\d+) kB", (_PROC / "meminfo").read_text())
    return {name: int(kib) * 1024 for name, kib in found}


def _cpu_ticks() -> list[int]:
    """The first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, …."""
    return [int(word) for word in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]]


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


def _read(file: Path) -> str:
    """A one-line file of the kernel's; empty where it is missing."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
