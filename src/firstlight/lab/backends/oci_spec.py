"""The OCI configuration of a measured container, from the defaults of ``runc spec`` and Docker."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit
from typing import Any

BULK_FILES, BULK_BYTES = 64, 65536
_MEMORY_BYTES = 1 << 30
_CPU_PERIOD_US = 100_000
_MOST_FILES = 1024
_LIMITS = {
    "devices": [{"allow": False, "access": "rwm"}],
    "memory": {"limit": _MEMORY_BYTES},
    "cpu": {"quota": _CPU_PERIOD_US, "period": _CPU_PERIOD_US},
}
_CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip
_MASKED = [
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
]  # fmt: skip
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
# The system calls that Docker's default profile blocks, by its documentation.
_BLOCKED = [
    "acct", "add_key", "bpf", "clock_adjtime", "clock_settime", "create_module", "delete_module",
    "finit_module", "get_kernel_syms", "get_mempolicy", "init_module", "ioperm", "iopl", "kcmp",
    "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mbind", "mount", "move_pages",
    "nfsservctl", "open_by_handle_at", "perf_event_open", "pivot_root", "process_vm_readv",
    "process_vm_writev", "ptrace", "query_module", "quotactl", "reboot", "request_key",
    "set_mempolicy", "setns", "settimeofday", "swapon", "swapoff", "sysfs", "_sysctl", "umount",
    "umount2", "unshare", "uselib", "userfaultfd", "ustat", "vm86", "vm86old",
]  # fmt: skip


def _mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


_MOUNTS = [
    _mount("/proc", "proc", "proc"),
    _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666"),
    _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),  # noqa: S108
    _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
    _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
]


@dataclass(frozen=True)
class Process:
    """Pid 1 of a container."""

    args: tuple[str, ...] = ("/bin/payload", "ready")
    cwd: str = "/"


PAYLOAD = Process()


def make(
    process: Process,
    root: Path,
    environment: Mapping[str, str],
    *,
    cgroup: str | None = None,
    network: Path | None = None,
) -> dict[str, Any]:
    """The contents of ``config.json``.

    Without a cgroup path the process has no limits. It joins the network namespace at
    ``network``, or gets its own.
    """
    files = _MOST_FILES if (most := getrlimit(RLIMIT_NOFILE)[1]) < 0 else min(most, _MOST_FILES)
    joined = {"network": {"path": str(network)}} if network else {}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(process.args),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": process.cwd,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": files, "soft": files}],
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "firstlight",
        "mounts": _MOUNTS,
        "linux": {
            **({"cgroupsPath": cgroup, "resources": _LIMITS} if cgroup else {}),
            "namespaces": [
                {"type": kind, **joined.get(kind, {})}
                for kind in ("pid", "network", "ipc", "uts", "mount")
            ],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
                "syscalls": [{"names": _BLOCKED, "action": "SCMP_ACT_ERRNO"}],
            },
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
        },
    }
