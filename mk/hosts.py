"""Boot other hosts under QEMU and try firstlight on each; writes docs/hosts.md.

A host is a Debian root with one of its stock kernels, made by mmdebstrap and kept in
~/.cache/firstlight/hosts, with firstlight's wheel installed and no compiler. It is booted by QEMU's
emulation (TCG), because KVM within a virtual machine hangs on some. So it is 10 to 20 times
slower than this machine, and has so much longer deadlines. Some hosts are containers of Podman
with this machine's kernel and such a root.

    python mk/hosts.py                      all hosts
    python mk/hosts.py NAME…                these, and the document keeps the others' rows
    python mk/hosts.py NAME:STEP,STEP…      only these steps, and the row keeps its others

When this is terminated, what a host reached is kept, and nothing that it started goes on.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import arm64
import contained
from contained import terminated

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "firstlight/hosts"
CHECK = Path("tests/hosts/check.py")
DOCUMENT = Path("docs/hosts.md")
MIRROR = "http://deb.debian.org/debian"
PACKAGES = (
    "ca-certificates,python3,python3-venv,iproute2,runc,crun,nftables,iptables,procps,kmod,"
    "containernetworking-plugins,squashfs-tools,erofs-utils,busybox-static,initramfs-tools,zstd,sudo"
)
SLOWER = 20
SECONDS = 3600
STEPS = {
    "doctor": "doctor", "main_job": "main job", "untraced": "without tracer", "trace": "trace",
    "runtime": "runtime", "limits": "limits", "many": "100 traced, 100 at once", "clean": "clean",
}  # fmt: skip
MARKS = {"ok": "✓", "refused": "refused", "failed": "✗", "partial": "in part"}
EMULATOR = "trixie"
"""The root whose QEMU boots all: Debian 12's emulates an AVX2 instruction wrongly."""
SETUP = {
    "v2": "mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup",
    "v1": "mount -t tmpfs tmpfs /sys/fs/cgroup\n"
    "for c in cpu,cpuacct cpuset memory pids devices freezer blkio; do\n"
    "  mkdir /sys/fs/cgroup/$c; mount -t cgroup -o $c cgroup /sys/fs/cgroup/$c\ndone",
    "hybrid": "mount -t tmpfs tmpfs /sys/fs/cgroup; mkdir /sys/fs/cgroup/unified\n"
    "mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup/unified\n"
    "for c in cpu,cpuacct cpuset memory pids devices freezer blkio; do\n"
    "  mkdir /sys/fs/cgroup/$c; mount -t cgroup -o $c cgroup /sys/fs/cgroup/$c\ndone",
}


MACHINES = {
    "x86_64": ("-cpu", "max", "-machine", "q35", "-device", "virtio-blk-pci,drive=disk",
               "-device", "virtio-rng-pci"),
    "aarch64": ("-cpu", "max,pauth-impdef=on", "-machine", "virt",
                "-device", "virtio-blk-device,drive=disk", "-device", "virtio-rng-device"),
}  # fmt: skip
CONSOLES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}
OWN = "of this machine"


@dataclass(frozen=True)
class Host:
    """A host to boot: ``kernel`` is a pattern of its image below /boot, ``words`` are added to its
    command line, ``before`` is a shell command run before the check, and ``check`` runs that. With
    ``podman``, the words for its container, no kernel is booted. ``many`` adds a step in which the
    tracer has much to do, and ``chosen`` are the steps to run, if not all.
    """

    name: str
    suite: str
    kernel: str
    packages: str
    cgroups: str = "v2"
    words: str = ""
    before: str = ":"
    check: str = "/opt/firstlight/bin/python /opt/firstlight/check.py"
    podman: tuple[str, ...] = ()
    machine: str = "x86_64"
    many: bool = False
    chosen: tuple[str, ...] = ()

    @property
    def steps(self) -> list[str]:
        """The steps of its check."""
        return [step for step in self.chosen or STEPS if step != "many" or self.many]


CAPABILITIES = (
    "CHOWN,DAC_OVERRIDE,FOWNER,FSETID,KILL,SETGID,SETUID,SETPCAP,NET_BIND_SERVICE,NET_ADMIN,"
    "NET_RAW,SYS_CHROOT,SYS_PTRACE,SYS_ADMIN,MKNOD,AUDIT_WRITE,SETFCAP,SYSLOG,PERFMON,BPF"
)
LEAST = ("--cap-drop=all", f"--cap-add={CAPABILITIES}", "--security-opt=unmask=ALL",
         "--volume=/sys/fs/cgroup:/sys/fs/cgroup")  # fmt: skip
HARDENED = (
    "kernel.yama.ptrace_scope=3 kernel.unprivileged_bpf_disabled=2 kernel.perf_event_paranoid=4 "
    "kernel.kptr_restrict=2 kernel.dmesg_restrict=1 net.core.bpf_jit_harden=2 "
    "vm.overcommit_memory=2 user.max_user_namespaces=0"
)
HOSTS = (
    Host("debian-12", "bookworm", "vmlinuz-6.1.*[0-9]-amd64", "linux-image-amd64"),
    Host("debian-12-v1", "bookworm", "vmlinuz-6.1.*[0-9]-amd64", "linux-image-amd64", "v1"),
    Host("debian-12-hybrid", "bookworm", "vmlinuz-6.1.*[0-9]-amd64", "linux-image-amd64", "hybrid"),
    Host("debian-12-rt", "bookworm", "vmlinuz-6.1.*-rt-amd64", "linux-image-rt-amd64"),
    Host("debian-12-integrity", "bookworm", "vmlinuz-6.1.*[0-9]-amd64", "linux-image-amd64",
         words="lockdown=integrity"),
    Host("debian-12-confidentiality", "bookworm", "vmlinuz-6.1.*[0-9]-amd64", "linux-image-amd64",
         words="lockdown=confidentiality"),
    Host("debian-12-no-ipv6", "bookworm", "vmlinuz-6.1.*[0-9]-amd64", "linux-image-amd64",
         words="ipv6.disable=1"),
    Host("debian-12-umask", "bookworm", "vmlinuz-6.1.*[0-9]-amd64", "linux-image-amd64",
         before="umask 077; mount -o remount,noexec /tmp"),
    Host("debian-13", "trixie", "vmlinuz-6.12*-amd64", "linux-image-amd64"),
    Host("debian-13-hardened", "trixie", "vmlinuz-6.12*-amd64", "linux-image-amd64",
         words="maxcpus=1 mem=1G", before=f"sysctl -q -w {HARDENED}"),
    Host("debian-13-backports", "trixie", "vmlinuz-[7-9].*-amd64", "linux-image-amd64/backports",
         many=True),
    Host("debian-12-arm64", "bookworm", "vmlinuz-*-arm64", "linux-image-arm64",
         machine="aarch64"),
    Host("podman", "bookworm", "", "linux-image-amd64", OWN, podman=("--privileged",)),
    Host("podman-least", "bookworm", "", "linux-image-amd64", OWN, podman=LEAST),
    Host("sudo", "bookworm", "", "linux-image-amd64", OWN, podman=("--privileged",),
         before="useradd -m person; echo 'person ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/person",
         check="runuser -u person -- env SUDO=1 /opt/firstlight/bin/python "
         "/opt/firstlight/check.py"),
)  # fmt: skip


def main(names: list[str]) -> int:
    """Try the hosts; 0 if each step is ok or refused with a reason."""
    contained.listen()
    chosen = _chosen(names)
    for program in ("mmdebstrap", "mkfs.ext4", "podman"):
        if not shutil.which(program):
            sys.exit(f"{program} is not installed: apt-get install mmdebstrap e2fsprogs podman")
    if any(host.machine == "aarch64" for host in chosen):
        arm64.check()
    [wheel] = Path("dist").glob("firstlight-*manylinux*x86_64.whl")
    CACHE.mkdir(parents=True, exist_ok=True)
    results = _documented(DOCUMENT.read_text())
    failed = False
    for host in chosen:
        if terminated.is_set():
            return 1
        if host.machine == "aarch64":
            root = arm64.root()
            arm64.install(arm64.wheel())
        else:
            root = _root(host.suite)
            _install(root, wheel)
        shutil.copy(CHECK, root / "opt/firstlight/check.py")
        rows = _contain(host, root) if host.podman else _boot(host, root)
        for step, (outcome, words, seconds) in rows.items():
            print(f"{host.name:26} {step:10} {outcome:8} {seconds:6.1f} s  {words}", flush=True)
        outcomes = {rows.get(step, ("failed", "", 0))[0] for step in host.steps}
        failed |= not outcomes <= {"ok", "refused"}
        is_part = host.chosen or terminated.is_set()
        results[host.name] = {**results.get(host.name, {}), **rows} if is_part else rows
        DOCUMENT.write_text(_document(results))
    return int(failed)


def _chosen(names: list[str]) -> list[Host]:
    """The hosts that are named, or all, with the steps to run on each."""
    wanted = {name: words.split(",") if words else [] for name, _, words in
              (each.partition(":") for each in names)}  # fmt: skip
    if unknown := set(wanted) - {host.name for host in HOSTS}:
        sys.exit(f"no such host: {_listed(unknown)}; there are {_listed(h.name for h in HOSTS)}")
    if unknown := {step for steps in wanted.values() for step in steps} - STEPS.keys():
        sys.exit(f"no such step: {_listed(unknown)}; there are {_listed(STEPS)}")
    chosen = [
        replace(host, chosen=tuple(wanted.get(host.name, ())))
        for host in HOSTS
        if not wanted or host.name in wanted
    ]
    if without := {host.name for host in chosen if not host.steps}:
        sys.exit(f"the step many is not for {_listed(without)}")
    return chosen


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _root(suite: str) -> Path:
    """A Debian root with all kernels that its hosts boot."""
    root = CACHE / suite
    if (root / "complete").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    wanted = _kernels(suite)
    extra = ",qemu-system-x86,qemu-system-arm" if suite == EMULATOR else ""
    plain = ",".join(sorted(name for name in wanted if "/" not in name))
    print(f"making {root} (once, 2 to 5 minutes)", flush=True)
    log = CACHE / f"{suite}.log"
    with log.open("w") as output:
        words = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}{extra},{plain}", suite,
                 str(root), MIRROR]  # fmt: skip
        done = contained.run(words, output)
    if done.returncode:
        sys.exit(f"cannot make {root}: see {log}")
    for name in sorted(wanted):
        if "/" in name:
            package, _, pocket = name.partition("/")
            source = f"deb {MIRROR} {suite}-{pocket} main\n"
            (root / f"etc/apt/sources.list.d/{pocket}.list").write_text(source)
            target = f"{suite}-{pocket}"
            _inside(root, f"apt-get -qq update && apt-get -qq -y install -t {target} {package}")
    (root / "complete").touch()
    return root


def _kernels(suite: str) -> set[str]:
    """The packages of the kernels that a root's hosts boot; arm64 has a root of its own."""
    return {
        each.packages for each in HOSTS if each.suite == suite and each.machine == "x86_64"
    }  # fmt: skip


def _inside(root: Path, script: str) -> None:
    """Run a script in a root, with this host's network and the certificates that it trusts."""
    for name in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):
        if (Path("/") / name).exists():
            shutil.copy(Path("/") / name, root / name)
    done = contained.run(
        contained.in_root(root, "/bin/sh", "-c", script),
        environment={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive",
            "HOME": "/root", **{k: v for k, v in os.environ.items() if k.startswith("PIP_")},
        },
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"in {root}: {script}\n{done.stdout[-4000:]}")


def _install(root: Path, wheel: Path) -> None:
    """Install firstlight in the root by pip, unless this wheel is there."""
    mark = root / "opt/firstlight/wheel"
    identity = f"{wheel.name} {wheel.stat().st_mtime_ns}"
    if mark.exists() and mark.read_text() == identity:
        return
    shutil.copy(wheel, root / "root" / wheel.name)
    _inside(
        root,
        "test -x /opt/firstlight/bin/pip || python3 -m venv /opt/firstlight; "
        f"/opt/firstlight/bin/pip install -q --force-reinstall /root/{wheel.name}",
    )
    mark.write_text(identity)


def _boot(host: Host, root: Path) -> dict[str, tuple[str, str, float]]:
    """Boot a host and collect its check's results."""
    kernels = sorted((root / "boot").glob(host.kernel))
    if not kernels:
        return {"doctor": ("failed", f"no kernel {host.kernel} in {root}/boot", 0.0)}
    kernel = kernels[-1]
    release = kernel.name.removeprefix("vmlinuz-")
    init = root / "opt/firstlight/init"
    init.write_text(_init(host))
    init.chmod(0o755)
    emulator = _root(EMULATOR)
    boot = emulator / "host"
    shutil.rmtree(boot, ignore_errors=True)  # or the disk would hold the one before it
    image = CACHE / "disk.img"
    image.unlink(missing_ok=True)
    done = contained.run(["mkfs.ext4", "-q", "-d", root, "-O", "^has_journal", image, "6G"])
    if done.returncode:
        sys.exit(f"cannot make {image}: {done.stdout}")
    boot.mkdir()
    initrd = boot / f"initrd.img-{release}"
    if host.machine == "aarch64":
        arm64.initrd(initrd)
    else:
        shutil.copy(root / "boot" / initrd.name, initrd)
    shutil.copy(kernel, boot / kernel.name)
    image.replace(boot / "disk.img")
    command = contained.in_root(
        emulator, f"qemu-system-{host.machine}", *MACHINES[host.machine],
        "-accel", "tcg,thread=multi,tb-size=512", "-smp", "2", "-m", "4G",
        "-kernel", f"/host/{kernel.name}", "-initrd", f"/host/{initrd.name}",
        "-append", f"root=/dev/vda rw console={CONSOLES[host.machine]} net.ifnames=0 "
        f"mitigations=off quiet panic=-1 init=/opt/firstlight/init {host.words}",
        "-drive", "file=/host/disk.img,if=none,id=disk,format=raw,cache=unsafe", "-nic", "none",
        "-display", "none", "-serial", "stdio", "-no-reboot",
    )  # fmt: skip
    with _log(host).open("w") as log, contained.started(command, log) as emulation:
        _wait(emulation)
    return _results(host, release)


def _contain(host: Host, root: Path) -> dict[str, tuple[str, str, float]]:
    """Run a host's check in a container, and collect its results. The root is not written to."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    name = f"firstlight-{host.name}"
    command = [
        "podman", "run", "--rm", f"--name={name}", "--runtime=runc", "--network=none",
        "--pid=private", "--cgroupns=private", "--tmpfs=/tmp:exec", f"--ulimit=nofile=1024:{most}",
        "--ulimit=nproc=4000:4000", f"--env=FIRSTLIGHT_SLOWER={SLOWER}",
        f"--env=STEPS={' '.join(host.steps)}", *host.podman, "--rootfs", f"{root}:O",
        "/bin/sh", "-c", f"{host.before}; exec {host.check}",
    ]  # fmt: skip
    with _log(host).open("w") as log, _removed(name), subprocess.Popen(
        command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, text=True
    ) as container:  # fmt: skip
        _wait(container)
        container.kill()
    return _results(host, os.uname().release)


@contextmanager
def _removed(name: str) -> Iterator[None]:
    """Without a container of that name, before and after."""
    words = ("podman", "rm", "--force", "--ignore", "--time=0", name)
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    try:
        yield
    finally:
        subprocess.run(words, check=True, capture_output=True, timeout=120)


def _log(host: Host) -> Path:
    return CACHE / f"{host.name}.log"


def _wait(process: "subprocess.Popen[str]") -> None:
    """Wait until it ends, SECONDS have passed or this program is terminated."""
    end = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < end and not terminated.is_set():
        terminated.wait(1)


def _results(host: Host, release: str) -> dict[str, tuple[str, str, float]]:
    """What a host's check has printed, by its steps."""
    text = _log(host).read_text(errors="replace")
    records = [json.loads(record) for record in re.findall(r"^RESULT (\{.*\})\r?$", text, re.M)]
    rows = {each["step"]: (each["outcome"], each["words"], each["seconds"]) for each in records}
    for step in host.steps if not terminated.is_set() else ():
        rows.setdefault(step, ("failed", "not reached: see the host's log", 0.0))
    rows["kernel"] = ("ok", release, 0.0)
    return rows


def _init(host: Host) -> str:
    return f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export FIRSTLIGHT_SLOWER={SLOWER} STEPS="{" ".join(host.steps)}"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2> /dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tracefs tracefs /sys/kernel/tracing 2> /dev/null
mount -t securityfs securityfs /sys/kernel/security 2> /dev/null
mount -t bpf bpf /sys/fs/bpf
{SETUP[host.cgroups]}
ip link set lo up
for m in overlay loop squashfs erofs veth bridge tun; do modprobe $m 2> /dev/null; done
{host.before}
{host.check}
echo o > /proc/sysrq-trigger
sleep 60
"""


def _documented(text: str) -> dict[str, dict[str, tuple[str, str, float]]]:
    """What the document says of each host."""
    outcomes = {mark: outcome for outcome, mark in MARKS.items()}
    words = dict(re.findall(r"^- (\S+, [^:]+): (.*)$", text, re.M))
    results = {}
    for name, kernel, cells in re.findall(r"^\| (\S+) \| (\S+) \| [^|]+ \| (.*) \|$", text, re.M):
        rows = {
            step: (outcomes[cell], words.get(f"{name}, {STEPS[step]}", ""), 0.0)
            for step, cell in zip(STEPS, cells.split(" | "), strict=True)
            if cell in outcomes
        }
        if rows:
            results[name] = rows | {"kernel": ("ok", kernel, 0.0)}
    return results


def _document(results: dict[str, dict[str, tuple[str, str, float]]]) -> str:
    lines = [
        "# Other hosts",
        "",
        "Written by `make test-hosts`, which boots stock kernels of Debian under QEMU's own "
        "emulation (without KVM), each with a root in which firstlight's wheel is installed and no "
        "compiler, and tries the main steps there. *refused*: firstlight says what the host lacks. "
        "*in part*: no more was reached in the host's time. –: not tried. "
        "`podman` is a privileged container with this machine's kernel and namespaces of its own; "
        "`podman-least` has no more than suffices: "
        f"`{' '.join(LEAST)}`. `sudo` is a user in a privileged container who may run sudo. "
        f"`debian-13-hardened` has one CPU, 1 GiB of memory, no swap, and `{HARDENED}`. "
        f"`FIRSTLIGHT_SLOWER={SLOWER}` makes all deadlines {SLOWER} times as long there, so that "
        "slowness is no failure, and does so with any number from 1 to 1000 on a slow machine of "
        "yours. Deadlines that you give stay, as do those of the HTTP server's clients and the "
        "10 s in which a container's packet is answered.",
        "",
        f"| host | kernel | cgroups | {' | '.join(STEPS.values())} |",
        f"|---|---|---|{'---|' * len(STEPS)}",
    ]
    notes = []
    for host in HOSTS:
        rows = results.get(host.name, {})
        cells = [MARKS[rows[step][0]] if step in rows else "–" for step in STEPS]
        kernel = rows.get("kernel", ("", "–", 0))[1]
        lines.append(f"| {host.name} | {kernel} | {host.cgroups} | {' | '.join(cells)} |")
        notes += [
            f"- {host.name}, {STEPS[step]}: {rows[step][1]}"
            for step in STEPS
            if step in rows and (rows[step][0] != "ok" or step == "many")
        ]
    lines += ["", *notes] if notes else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
