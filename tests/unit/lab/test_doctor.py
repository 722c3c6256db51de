import os
from pathlib import Path

import pytest

from firstlight.errors import WITH_ADMIN, Unsupported
from firstlight.host import facts
from firstlight.lab import doctor
from firstlight.lab.backends.network import NetworkSetup
from firstlight.lab.backends.oci import Oci
from firstlight.lab.experiments import catalogue
from firstlight.model import Availability, Check, Missing
from firstlight.trace import bpf


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_facts_are_this_machines() -> None:
    known = facts.collect()
    assert known["kernel"] == os.uname().release
    assert known["cores"] == len(os.sched_getaffinity(0))
    assert str(known["memory"]).endswith(" GiB")
    assert all(isinstance(each, str) for each in known["mitigations"])  # type: ignore[union-attr]
    assert known == facts.collect()


def test_the_machine_is_named_but_its_id_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    named = facts.collect()["machine"]
    for secret in ("0123456789abcdef0123456789abcdef", "another"):
        monkeypatch.setattr(facts, "read_line", lambda _, secret=secret: secret)
        assert facts._machine() not in {named, secret}


def test_a_distribution_without_its_file_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> dict[str, str]:
        raise FileNotFoundError("/etc/os-release")

    monkeypatch.setattr("platform.freedesktop_os_release", read)
    assert facts.collect()["distribution"] == "unknown"


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1\nspec: 1.0.2-dev", "1.1.5+ds1"),
        ("crun version 1.8.1\ncommit: f8a096be060b22ccd3d5f3ebe44108517fbf6c30", "1.8.1"),
        ("runsc version release-20221219.0\nspec: 1.0.2", "20221219.0"),
        ("ip utility, iproute2-6.1.0, libbpf 1.1.0", "6.1.0"),
    ],
)
def test_versions_are_read_from_what_programs_say(
    tmp_path: Path, output: str, version: str
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ncat <<'end'\n{output}\nend\n")
    program.chmod(0o755)
    assert facts.version(str(program), "--version") == version


def test_missing_or_silent_program_has_no_version() -> None:
    assert facts.version("/nonexistent/runc", "--version") is None
    assert facts.version("true", "--version") is not None
    assert facts.version("false", "") is None


def test_every_check_answers_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Oci, "try_start", lambda _: None)  # real starts: tests/host
    checks = doctor.run()
    assert len(checks) == len(doctor.CHECKS)
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert check.fact
        assert check.ok or check.hint


def test_doctor_hints_on_empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = {check.name: check for check in doctor.run()}
    for name, package in (("runc", "runc"), ("crun", "crun"), ("ip", "iproute2")):
        assert checks[name].hint == f"apt-get install {package}"
    assert checks["network namespace and veth"].ok is False
    assert "runc" not in facts.collect()


def test_right_that_is_missing_is_not_blamed_on_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root of a container without CAP_SYS_ADMIN."""
    for name in ("unshare", "ip"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho 'Operation not permitted' >&2; exit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert doctor.veth().hint == WITH_ADMIN
    with pytest.raises(Unsupported) as refused:
        NetworkSetup().probe()
    assert refused.value.hint == WITH_ADMIN


def test_the_veth_check_leaves_nothing() -> None:
    def left() -> tuple[set[str], set[str]]:
        named = Path("/run/netns")
        return {each.name for each in Path("/sys/class/net").iterdir()}, {
            each.name for each in named.iterdir()
        } if named.exists() else set()

    before = left()
    doctor.veth()
    assert left() == before


@pytest.mark.parametrize(
    ("user", "hint"), [(65534, "run firstlight with sudo"), (0, "the checks above")]
)
def test_doctor_hint_for_tracer_is_not_doctor(
    user: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise Unsupported("cannot trace: Operation not permitted", "see firstlight doctor")

    monkeypatch.setattr(bpf, "probe", refused)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    result = doctor.tracer()
    assert result.hint
    assert result.hint.startswith(hint)


def test_the_first_hint_for_a_user_is_that_tracing_needs_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(Unsupported, match="tracing needs root"):
        bpf.probe()


def test_missing_capabilities_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but CAP_BPF (39), and without CAP_SYS_RESOURCE (24), which is not asked for."""
    held = (1 << 41) - 1 & ~(1 << 39) & ~(1 << 24)
    tree(tmp_path, {"self/status": f"CapInh:\t0\nCapEff:\t{held:016x}\n"})
    monkeypatch.setattr(facts, "PROC", tmp_path)
    assert (doctor.capabilities().ok, doctor.capabilities().fact) == (False, "missing CAP_BPF")


def test_missing_tracepoints_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [each for each in doctor._TRACEPOINTS if not each.startswith("contention")]
    types = b"\0" + b"".join(f"btf_trace_{name}\0".encode() for name in names)
    (tmp_path / "vmlinux").write_bytes(types)
    monkeypatch.setattr(doctor, "_BTF", tmp_path / "vmlinux")
    assert doctor.tracepoints().fact == "missing contention_begin, contention_end"
    assert doctor.types().ok
    monkeypatch.setattr(doctor, "_BTF", tmp_path / "absent")
    assert (doctor.types().ok, doctor.tracepoints().ok) == (False, False)


@pytest.mark.parametrize(
    ("mounts", "version"),
    [
        ("c /sys/fs/cgroup/cpu cgroup rw 0 0\nu /sys/fs/cgroup/unified cgroup2 rw 0 0", "hybrid"),
        ("c /sys/fs/cgroup/cpu cgroup rw 0 0", "v1"),
        ("c /sys/fs/cgroup cgroup2 rw 0 0", "v2"),
        ("tmpfs /tmp tmpfs rw 0 0", "none"),
    ],
)
def test_cgroup_versions_are_distinguished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, version: str
) -> None:
    monkeypatch.setattr(facts, "is_unified", lambda: False)
    monkeypatch.setattr(facts, "PROC", tree(tmp_path, {"self/mounts": mounts + "\n"}))
    assert facts.cgroup_mode() == version


def test_a_governor_that_follows_the_load_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = "devices/system/cpu/cpufreq/policy{}/scaling_governor"
    monkeypatch.setattr(facts, "SYS", tmp_path)
    assert "no policy" in doctor.frequency().fact
    tree(tmp_path, {policies.format(each): "performance\n" for each in (0, 1)})
    assert doctor.frequency().ok
    tree(tmp_path, {policies.format(1): "powersave\n"})
    assert (doctor.frequency().ok, doctor.frequency().fact) == (
        None,
        "the policy is performance, powersave",
    )


@pytest.mark.parametrize(("stolen", "ok"), [(0, True), (50, None)])
def test_stolen_time_is_a_share_of_the_interval(
    monkeypatch: pytest.MonkeyPatch, stolen: int, ok: bool | None
) -> None:
    ticks = iter([[0] * 10, [100, 0, 50, 800, 0, 0, 0, stolen, 0, 0]])
    monkeypatch.setattr(doctor, "_cpu_ticks", lambda: next(ticks))
    monkeypatch.setattr(doctor, "_STEAL_SECONDS", 0)
    result = doctor.steal()
    assert result.ok is ok
    assert f"{stolen / (950 + stolen):.1%} in the last" in result.fact


def test_noise_is_a_warning_and_not_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "getloadavg", lambda: (cores * 3.0, 0.0, 0.0))
    names = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    sizes = zip(names, (4, 1, 2, 1), strict=True)
    meminfo = "".join(f"{name}: {gib * 2**20} kB\n" for name, gib in sizes)
    monkeypatch.setattr(facts, "PROC", tree(tmp_path, {"meminfo": meminfo}))
    for check in (doctor.load(), doctor.swap(), doctor.memory()):
        assert check.ok is None
        assert check.hint
    assert doctor.swap().fact == "1.0 GiB are swapped out"


@pytest.mark.parametrize(
    ("policy", "fact"),
    [("0", "8.0 GiB available"), ("2", "1.0 GiB left to commit: vm.overcommit_memory is 2")],
)
def test_memory_is_what_may_be_committed_where_that_is_limited(
    policy: str, fact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"MemTotal": 9, "MemAvailable": 8, "SwapTotal": 0, "SwapFree": 0, "CommitLimit": 4,
             "Committed_AS": 3}  # fmt: skip
    meminfo = "".join(f"{name}: {gib * 2**20} kB\n" for name, gib in sizes.items())
    files = {"meminfo": meminfo, "sys/vm/overcommit_memory": f"{policy}\n"}
    monkeypatch.setattr(facts, "PROC", tree(tmp_path, files))
    assert doctor.memory().fact == fact


def verdict(*, root: bool = True, tracer: bool = True, can_run: tuple[str, ...] = ("runc",)) -> str:
    checks = [
        Check("root", root, "", "run firstlight with sudo"),
        Check(doctor.TRACER, tracer, ""),
    ]
    lack = Missing(("crun",), "runtime 'crun' is not installed", "apt-get install crun")
    experiments = {
        doctor.MAIN: Availability(can_run, (lack,)),
        "density": Availability(("agile",), ()),
        "image": Availability((), (lack,)),
    }
    return doctor.verdict(checks, experiments)


def test_the_verdict_names_what_can_be_done_now() -> None:
    assert verdict() == (
        "Now: firstlight run container-creation --fast measures runc. "
        "Of 3 experiments 1 can run in full and 1 in part."
    )
    assert "--fast --no-trace measures runc" in verdict(tracer=False)


def test_no_experiment_is_whole_without_the_tracer() -> None:
    whole = {"floor": Availability(("process",), ()), "image": Availability((), ())}
    for loads, lacks in (True, ()), (False, ("phases and causes",)):
        found = doctor.with_tracer([Check(doctor.TRACER, loads, "")], whole)
        assert [each.parts for each in found["floor"].missing] == [*filter(None, [lacks])]
        assert found["floor"].can_run == ("process",)
        assert found["image"].missing == ()


def test_root_of_a_user_namespace_cannot_run_the_agile_runtime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> None:
        raise Unsupported("this is root of a user namespace", "run it as the host's root")

    monkeypatch.setattr("firstlight.agile.rights.check", refused)
    answers = catalogue.probe()
    for name in ("agile", "ablation", "churn", "density", "functions", "trace-replay"):
        assert not any("agile" in each for each in answers[name].can_run), name
        assert "root of a user namespace" in " ".join(m.fact for m in answers[name].missing), name


def test_the_verdict_names_what_must_be_done_first() -> None:
    assert verdict(can_run=()) == "Nothing can be measured yet. First: apt-get install crun."
    assert "First: run firstlight with sudo" in verdict(root=False)
