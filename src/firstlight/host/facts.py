"""Facts about this machine, its kernel and its runtimes. A run stores them for comparison."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from firstlight.errors import Unsupported, longer
from firstlight.host.cgroups import is_unified

Fact = str | int | float | bool | list[str]

GIB = 2**30
SYS = Path("/sys")
PROC = Path("/proc")
CLOCK_SOURCE = "devices/system/clocksource/clocksource0/current_clocksource"
_SIZES = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
_VERSION = re.compile(r"\d+\.[\w.+~-]*\w")


def collect() -> dict[str, Fact]:
    """The facts that a run stores: machine, kernel, configuration, runtimes."""
    sizes = memory()
    return {
        "machine": _machine(),
        "cpu": _cpu(),
        "cores": cores(),
        "memory": gib(sizes["MemTotal"]),
        "swap": gib(sizes["SwapTotal"]),
        "virtualisation": _virtualisation(),
        "kernel": platform.release(),
        "kernel build": platform.version(),
        "architecture": platform.machine(),
        "distribution": _distribution(),
        "cgroups": cgroup_mode(),
        "clock source": read_line(SYS / CLOCK_SOURCE),
        "frequency governor": ", ".join(governors()) or "not visible",
        "huge pages": huge_pages(),
        "mitigations": _mitigations(),
        **{
            program: text
            for program, option in (
                ("runc", "--version"),
                ("crun", "--version"),
                ("runsc", "--version"),
                ("ip", "-V"),
                ("qemu-system-x86_64", "--version"),
                ("firecracker", "--version"),
            )
            if (text := version(program, option))
        },
    }


def _machine() -> str:
    """A hash of the machine's id, which itself is confidential (machine-id(5))."""
    identity = read_line(Path("/etc/machine-id")) or platform.node()
    return hashlib.sha256(f"firstlight {identity}".encode()).hexdigest()[:12]


def _cpu() -> str:
    model = re.search(r"model name\s*: (.*)", (PROC / "cpuinfo").read_text())
    return model[1] if model else platform.processor() or platform.machine()


def _distribution() -> str:
    """Its name, or "unknown" where no os-release(5) is, as in an image without a distribution."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def cores() -> int:
    """The number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def _virtualisation() -> str:
    """The hypervisor's name, "none", or "unknown hypervisor"."""
    if shutil.which("systemd-detect-virt"):
        done = subprocess.run(["systemd-detect-virt", "--vm"], capture_output=True, text=True)
        return done.stdout.strip()
    guest = re.search(r"^flags.*\bhypervisor\b", (PROC / "cpuinfo").read_text(), re.MULTILINE)
    return "unknown hypervisor" if guest else "none"


def cgroup_mode() -> str:
    """``v2``, ``v1``, ``hybrid`` or ``none``."""
    if is_unified():
        return "v2"
    kinds = {line.split()[2] for line in (PROC / "self/mounts").read_text().splitlines()}
    return {
        (True, True): "hybrid",
        (True, False): "v1",
        (False, True): "v2",
        (False, False): "none",
    }["cgroup" in kinds, "cgroup2" in kinds]


def governors() -> list[str]:
    """The CPU frequency governors in use; empty where the kernel shows no policy."""
    policies = (SYS / "devices/system/cpu/cpufreq").glob("policy*/scaling_governor")
    return sorted({read_line(policy) for policy in policies})


def huge_pages() -> str:
    """The mode of transparent huge pages."""
    chosen = re.search(r"\[(\w+)\]", read_line(SYS / "kernel/mm/transparent_hugepage/enabled"))
    return chosen[1] if chosen else "not in this kernel"


def _mitigations() -> list[str]:
    files = sorted((SYS / "devices/system/cpu/vulnerabilities").glob("*"))
    states = [(file.name, read_line(file)) for file in files]
    return [f"{name}: {state}" for name, state in states if state != "Not affected"]


def home() -> Path:
    """The user's directory, by HOME or the user database; else the root, as for login(1)."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def memory() -> dict[str, int]:
    """/proc/meminfo in bytes. Raises Unsupported."""
    lines = re.findall(r"(\w+):\s+(\d+) kB", (PROC / "meminfo").read_text())
    sizes = {name: int(kib) * 1024 for name, kib in lines}
    if missing := [name for name in _SIZES if name not in sizes]:
        raise Unsupported(f"{PROC}/meminfo has no {', '.join(missing)}", "mount -t proc proc /proc")
    return sizes


def gib(size: int) -> str:
    """A size in bytes as ``1.5 GiB``."""
    return f"{size / GIB:.1f} GiB"


def read_line(file: Path) -> str:
    """The content of a one-line kernel file; empty if it is missing."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def version(program: str, option: str) -> str | None:
    """The version that a program prints; None if it prints none or is not installed."""
    try:
        done = subprocess.run(
            [program, option], capture_output=True, text=True, errors="replace", timeout=longer(10)
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(done.stdout)
    return match[0] if match else None
