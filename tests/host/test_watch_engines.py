"""``firstlight watch``, and sandboxes by the CRI, with engines that others wrote, each really run.

Each engine has namespaces, storage and a network of its own, and ends with them.
"""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.pod_host import CONFIG, PLUGIN
from tests.support.watch_host import FIRSTLIGHT, SECONDS, watching

from firstlight import store
from firstlight.agile.pods import daemon
from firstlight.host import cgroups
from firstlight.native import native

pytestmark = pytest.mark.usefixtures("can_trace")

LIBEXEC = Path(".venv/libexec").absolute()
ENGINES = LIBEXEC / "engines"
ALONE = ("timeout", "--kill-after=5", "240", "unshare", "--mount", "--net", "--pid", "--fork",
         "--kill-child", "--mount-proc", "bash", "-euc")  # fmt: skip
RUN = "mount -t tmpfs run /run; mkdir -p /run/netns /run/lock; ip link set lo up"

PODMAN_SCRIPT = f"""
{RUN}
podman() {{
  command podman --root "$D/storage" --runroot /run/storage --storage-driver vfs \\
    --cgroup-manager cgroupfs --runtime runc --events-backend none --tmpdir /run/libpod "$@"
}}
podman import --change 'CMD ["/bin/payload","once"]' "$D/image.tar" localhost/tiny:1 >&2
podman run --name "$NAME" --network none --cgroup-parent "/$GROUP" --log-driver none \\
  --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 localhost/tiny:1
echo started; read -r end
podman rm -f "$NAME" >&2
"""

DOCKER_SCRIPT = f"""
{RUN}
export DOCKER_HOST=unix:///run/docker.sock
dockerd --data-root "$D/storage" --exec-root /run/docker --pidfile /run/docker.pid \\
  --host "$DOCKER_HOST" --bridge none --iptables=false --ip6tables=false --storage-driver vfs \\
  --cgroup-parent "/$GROUP" > "$D/log" 2>&1 &
for wait in $(seq 300); do docker version > /dev/null 2>&1 && break; sleep 0.2; done
docker import --change 'CMD ["/bin/payload","once"]' "$D/image.tar" tiny:1 >&2
docker run --rm --name "$NAME" --network none tiny:1
echo started; read -r end
"""

CRIO_RUN = f"""
{RUN}
podman --root "$D/storage" --runroot /run/storage --storage-driver vfs --tmpdir /run/libpod \\
  --cgroup-manager cgroupfs import --change 'ENTRYPOINT ["/bin/payload"]' \\
  --change 'CMD ["ready"]' "$D/image.tar" localhost/tiny:1 >&2
cri() {{ crictl -r unix:///run/crio.sock -i unix:///run/crio.sock -t 60s "$@"; }}
start() {{
  crio --config "$D/crio.conf" --config-dir "" >> "$D/log" 2>&1 & crio=$!
  for wait in $(seq 300); do [ -S /run/crio.sock ] && break; sleep 0.2; done
}}
start
"""

CRIO_SCRIPT = f"""
{CRIO_RUN}
pod=$(cri runp "$D/pod.json")
container=$(cri create "$pod" "$D/container.json" "$D/pod.json")
cri start "$container"
echo started; read -r end
cri rmp -f "$pod" >&2
"""

CRIO_MEASURED = f"""
{CRIO_RUN}
"$FIRSTLIGHT" run cri-sandbox --cri unix:///run/crio.sock --image localhost/tiny:1 \\
  --instances 1 --repetitions 1 --no-trace --out "$D/run" >&2
cri pods -q > "$D/left"
echo started; read -r end
"""

# Two pods with the CNI plugin's networks, and CRI-O restarted; what is seen goes to the directory.
CRIO_PODS = f"""
mount -t tmpfs var /var/lib
{CRIO_RUN.replace(RUN, RUN + "; mount --make-shared /run; sysctl -qw net.ipv4.ip_forward=1")}
ip addr add 192.0.2.1/32 dev lo
"$PYTHON" -P "$AGENT" "$D/pods.toml" > "$D/agent" 2>&1 &
agent=/run/firstlight-agile/pods
for wait in $(seq 300); do [ -S $agent/socket ] && break; sleep 0.1; done
mounts() {{ grep -c ' net:' /proc/self/mountinfo || :; }}
inside() {{ cri exec -s "$1" /bin/busybox "${{@:2}}"; }}
for n in 1 2; do
  pod[n]=$(cri runp "$D/pod$n.json")
  ip[n]=$(cri inspectp -o go-template --template '{{{{.status.network.ip}}}}' "${{pod[n]}}")
  container[n]=$(cri create "${{pod[n]}}" "$D/container.json" "$D/pod$n.json")
  cri start "${{container[n]}}" > /dev/null
done
mounts > "$D/mounts"; echo "${{ip[@]}}" > "$D/addresses"; cp $agent/leases "$D/leases"
inside "${{container[1]}}" ip -4 -o addr show eth0 > "$D/address"
inside "${{container[1]}}" cat /proc/sys/net/core/somaxconn \
  /proc/sys/net/ipv4/ip_unprivileged_port_start > "$D/sysctls"
inside "${{container[1]}}" wget -q -O - "http://${{ip[2]}}/name" > "$D/reached"
busybox wget -q -O - http://192.0.2.1:8080/name >> "$D/reached"
inside "${{container[2]}}" wget -q -O - http://192.0.2.1:8080/name >> "$D/reached"
kill "$crio"; wait "$crio" || :
ip netns add lost
CNI_COMMAND=ADD CNI_CONTAINERID=lost CNI_NETNS=/run/netns/lost CNI_IFNAME=eth0 "$PLUGIN" \
  <<< '{{"cniVersion": "1.1.0", "name": "pods", "type": "firstlight"}}' >&2
rm -f /run/crio.sock; start
for wait in $(seq 100); do grep -q '"-"' $agent/leases && break; sleep 0.1; done
inside "${{container[2]}}" wget -q -O - "http://${{ip[1]}}/name" >> "$D/reached"
cp $agent/leases "$D/leases-collected"; umount /run/netns/lost; ip netns del lost
cri stop -t 0 "${{container[@]}}" >&2
cri stopp "${{pod[@]}}" >&2; cri rmp "${{pod[@]}}" >&2
{{ mounts; ls -A /run/namespaces/netns; ls -A /var/lib/cni/results; }} > "$D/left"
cp $agent/leases "$D/leases-left"
echo started; read -r end
"""

CRIO_CONFIG = """
[crio]
root = "{d}/storage"
runroot = "/run/storage"
storage_driver = "vfs"
version_file = "/run/version"
clean_shutdown_file = "/run/clean"
[crio.api]
listen = "/run/crio.sock"
[crio.runtime]
conmon_cgroup = "pod"
cgroup_manager = "cgroupfs"
default_runtime = "runc"
pinns_path = "{pinns}"
container_exits_dir = "/run/exits"
container_attach_socket_dir = "/run/attach"
namespaces_dir = "/run/namespaces"
log_dir = "{d}/logs"
hooks_dir = ["{d}/cni"]
apparmor_profile = "unconfined"
default_ulimits = []
[crio.runtime.runtimes.runc]
runtime_path = "{runc}"
runtime_root = "/run/runc"
monitor_path = "{conmon}"
[crio.image]
pause_image = "localhost/tiny:1"
signature_policy = "{d}/policy.json"
[crio.network]
network_dir = "{d}/cni"
plugin_dirs = ["{plugins}"]
"""


def need(*programs: str, path: str = "") -> str:
    """The search path on which these programs are; skips and names what is missing."""
    search = os.pathsep.join(filter(None, (path, os.environ["PATH"], "/usr/sbin")))
    missing = [program for program in programs if not shutil.which(program, path=search)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make engines, make kubernetes)")
    return search


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """One with an image as a tar file: the payload alone."""
    (tmp_path / "root/bin").mkdir(parents=True)
    shutil.copy(native("payload"), tmp_path / "root/bin/payload")
    (tmp_path / "root/bin/payload").chmod(0o755)
    image = tmp_path / "image.tar"
    subprocess.run(["tar", "-C", tmp_path / "root", "-cf", image, "."], check=True, timeout=SECONDS)
    return tmp_path


@contextmanager
def engine(script: str, directory: Path, name: str, path: str) -> Iterator[None]:
    """Run the script until it has started its container, and to its end afterwards."""
    group = f"{cgroups.PREFIX}{name}"
    with (directory / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [*ALONE, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            env={**os.environ, "PATH": path, "D": str(directory), "NAME": name, "GROUP": group,
                 "FIRSTLIGHT": str(FIRSTLIGHT), "PYTHON": sys.executable,
                 "AGENT": daemon.__file__, "PLUGIN": str(PLUGIN)},
        )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"")
        assert b"started\n" in lines, (directory / "errors").read_text()
        yield
        process.communicate(b"end\n", timeout=SECONDS)
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)
        cgroups.remove(group)


def labels_of(record: dict[str, object]) -> dict[str, str]:
    assert record["error"] is None
    assert record["lost_events"] == 0
    phases, labels = record["phases_ns"], record["labels"]
    assert isinstance(phases, dict)
    assert isinstance(labels, dict)
    assert sum(phases.values()) == record["latency_ns"]
    return labels


def test_podman(directory: Path) -> None:
    path = need("podman", "conmon", "runc")
    name = f"web{uuid.uuid4().hex[:8]}"
    with watching("--sample", 1) as watch, engine(PODMAN_SCRIPT, directory, name, path):
        labels = labels_of(watch.start_of(name))
    assert (labels["engine"], labels["runtime"]) == ("podman", "runc")
    assert labels["image"] == "localhost/tiny:1"


def test_docker(directory: Path) -> None:
    path = need("dockerd", "docker", "containerd", "runc",
                path=f"{ENGINES}/usr/bin:{ENGINES}/usr/sbin")  # fmt: skip
    name = f"web{uuid.uuid4().hex[:8]}"
    with watching("--sample", 1) as watch, engine(DOCKER_SCRIPT, directory, name, path):
        labels = labels_of(watch.start_of(name))
    assert (labels["engine"], labels["runtime"]) == ("docker", "runc")
    assert labels["image"] == "tiny:1"


@pytest.fixture
def crio(directory: Path) -> tuple[str, str]:
    """The name of a container that CRI-O, as configured in the directory, can start; its PATH."""
    path = need(
        "crio",
        "pinns",
        "crictl",
        "conmon",
        "runc",
        "podman",
        path=f"{ENGINES}:{LIBEXEC}/kubernetes",
    )
    plugins = Path("/usr/lib/cni")
    if not (plugins / "ptp").exists():
        pytest.skip("not installed: containernetworking-plugins (make setup)")
    name = f"web{uuid.uuid4().hex[:8]}"
    (directory / "cni").mkdir()
    ipam = {"type": "host-local", "subnet": "10.99.0.0/24", "dataDir": "/run/ipam"}
    write(directory / "cni/10-pods.conflist", {
        "cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": ipam}],
    })  # fmt: skip
    # Without CAP_SYS_RESOURCE no pause container: its score for the OOM killer is refused.
    own = {"security_context": {"namespace_options": {"pid": 1}}}
    write(directory / "policy.json", {"default": [{"type": "insecureAcceptAnything"}]})
    write(directory / "pod.json", {
        "metadata": {"name": "shop-1", "namespace": "web", "uid": "1", "attempt": 0},
        "log_directory": str(directory / "logs"),
        "linux": {"cgroup_parent": f"/{cgroups.PREFIX}{name}", **own},
    })  # fmt: skip
    write(directory / "container.json", {
        "metadata": {"name": name}, "image": {"image": "localhost/tiny:1"},
        "command": ["/bin/payload", "once"], "log_path": "log", "linux": own,
    })  # fmt: skip
    (directory / "crio.conf").write_text(
        CRIO_CONFIG.format(
            d=directory, pinns=shutil.which("pinns", path=path), plugins=plugins,
            runc=shutil.which("runc", path=path), conmon=shutil.which("conmon", path=path),
        )
    )  # fmt: skip
    return name, path


def test_crio(directory: Path, crio: tuple[str, str]) -> None:
    with watching("--sample", 1) as watch, engine(CRIO_SCRIPT, directory, *crio):
        labels = labels_of(watch.start_of(crio[0]))
    assert (labels["engine"], labels["runtime"]) == ("cri-o", "runc")
    assert (labels["pod"], labels["namespace"]) == ("shop-1", "web")
    assert labels["image"] == "localhost/tiny:1"


def test_crio_is_measured_by_its_socket(directory: Path, crio: tuple[str, str]) -> None:
    with engine(CRIO_MEASURED, directory, *crio):
        samples = store.read(directory / "run").samples
    assert [sample.error for sample in samples] == [None] * 3
    assert not (directory / "left").read_text()


def test_crios_pods_get_the_pools_networks(directory: Path, crio: tuple[str, str]) -> None:
    need("busybox")
    shutil.copy("/bin/busybox", directory / "root/bin/busybox")
    subprocess.run(
        ["tar", "-C", directory / "root", "-cf", directory / "image.tar", "."],
        check=True, timeout=SECONDS,
    )  # fmt: skip
    configuration = directory / "crio.conf"
    configuration.write_text(configuration.read_text().replace("/usr/lib/cni", str(PLUGIN.parent)))
    write(directory / "cni/10-pods.conflist", {
        "cniVersion": "1.1.0", "name": "pods",
        "plugins": [{"type": "firstlight", "namespace": "replace"}],
    })  # fmt: skip
    (directory / "pods.toml").write_text(CONFIG.format(more="", pool=4, dry="build"))
    pod = json.loads((directory / "pod.json").read_text())
    pod["linux"]["sysctls"] = {
        "net.core.somaxconn": "77", "net.ipv4.ip_unprivileged_port_start": "7",
    }  # fmt: skip
    for number, ports in (1, [{"host_port": 8080, "container_port": 80}]), (2, []):
        pod["metadata"] |= {"name": f"shop-{number}", "uid": str(number)}
        pod |= {"hostname": f"shop-{number}", "port_mappings": ports}
        write(directory / f"pod{number}.json", pod)
    container = json.loads((directory / "container.json").read_text())
    serve = "/bin/busybox hostname > /name; exec /bin/busybox httpd -f -p 80 -h /"
    write(
        directory / "container.json", container | {"command": ["/bin/busybox", "sh", "-c", serve]}
    )
    with engine(CRIO_PODS, directory, *crio):
        pass
    seen = {
        name: (directory / name).read_text().split()
        for name in ("mounts", "addresses", "address", "sysctls", "reached", "left")
    }
    assert seen["mounts"] == ["4"]  # two a pod
    assert seen["addresses"] == [f"10.244.0.{number}" for number in leases(directory / "leases")]
    assert f"{seen['addresses'][0]}/32" in seen["address"]
    assert seen["sysctls"] == ["77", "7"]
    assert seen["reached"] == ["shop-2", "shop-1", "shop-1", "shop-1"]
    assert leases(directory / "leases-collected") == leases(directory / "leases")
    assert (seen["left"], leases(directory / "leases-left")) == (["0"], {})


def leases(file: Path) -> dict[int, str]:
    live: dict[int, str] = {}
    for event, number, *rest in map(json.loads, file.read_text().splitlines()):
        live.pop(number, None)
        if event == "+":
            live[number] = rest[1]
    return live


def write(file: Path, document: object) -> None:
    file.write_text(json.dumps(document))
