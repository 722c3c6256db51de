import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.support import synthetic
from typer.testing import CliRunner, Result

from firstlight.cli import main as cli
from firstlight.cli import memory, report
from firstlight.cli import options as cli_options
from firstlight.cli.agile import _quoted
from firstlight.errors import FirstlightError, Unsupported
from firstlight.lab import runner
from firstlight.lab.backends.oci import Oci
from firstlight.lab.cni import known
from firstlight.lab.experiments import Case, Experiment, Options, catalogue
from firstlight.model import EndPoint

POOL = "POLARS_MAX_THREADS"


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words))


def refusal(*words: str) -> FirstlightError:
    error = invoke(*words).exception
    assert isinstance(error, FirstlightError), error
    return error


def firstlight(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command itself, in a process."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "firstlight", *words],
        capture_output=True, text=True, timeout=300, **options,
    )  # fmt: skip


def test_a_removed_working_directory_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = firstlight("run", "floor", "--fast", cwd=gone, preexec_fn=gone.rmdir)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "firstlight: the working directory has been removed"


@pytest.mark.parametrize(
    ("path", "verb", "searched"),
    [("/bin:/usr/sbin", "list", "/bin:/usr/sbin:/usr/local/sbin:/sbin"),
     ("", "list", f"{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin"),
     (None, "list", f"{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin"),
     ("/bin", "trace", "/bin"), ("/bin", "agile", "/bin")],
)  # fmt: skip
def test_programs_of_the_system_are_found_whatever_path_has(
    path: str | None, verb: str, searched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except for what others get: a traced command, an instance."""
    monkeypatch.setenv("PATH", path or "")
    if path is None:
        monkeypatch.delenv("PATH")
    invoke(verb, "none")
    assert os.environ["PATH"] == searched


def test_too_little_virtual_memory_is_named(tmp_path: Path) -> None:
    limits = (1 << 30, resource.RLIM_INFINITY)
    done = firstlight(
        "report", str(tmp_path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits),
    )  # fmt: skip
    assert done.returncode == 2
    assert "virtual memory is limited to 1024 MiB" in done.stderr
    assert "ulimit -v" in done.stderr


def test_pictures_need_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without, the JavaScript engine aborts."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 30, resource.RLIM_INFINITY))
    with pytest.raises(FirstlightError, match="limited to 8192 MiB: pictures take 72 GiB"):
        report._draw([], Path("none"))


def test_report_bounds_virtual_memory() -> None:
    """For each of these CPUs the libraries would reserve memory; measured commands are not told."""
    limits = (1600 << 20, resource.RLIM_INFINITY)
    many = {**os.environ, "POLARS_MAX_THREADS": "64"}
    run = Path(__file__).parents[2] / "data" / "schema-1"
    done = firstlight(
        "report", str(run), env=many,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    help_ = firstlight(
        "run", "--help", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2)
    )
    assert help_.returncode == 0


@pytest.mark.parametrize("most", [3, 14, 1000])
def test_a_run_is_read_with_few_threads(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = threading.active_count(), threading.Thread.start

    def start_some(thread: threading.Thread) -> None:
        if threading.active_count() - before >= most:
            raise RuntimeError("can't start new thread")
        start(thread)

    told: list[str | None] = []
    monkeypatch.setattr(threading.Thread, "start", start_some)
    monkeypatch.setattr("polars.thread_pool_size", lambda: told.append(os.environ.get(POOL)))
    monkeypatch.delenv(POOL, raising=False)
    if most < 12:
        with pytest.raises(FirstlightError, match="12 threads cannot be started") as error:
            memory.fit()
        assert "ulimit -u" in (error.value.hint or "")
    else:
        memory.fit()
    assert told == ([] if most < 12 else ["1"])
    assert POOL not in os.environ


def test_a_terminal_of_unknown_size_has_lines() -> None:
    done = firstlight("list", env={**os.environ, "COLUMNS": "0"})
    assert "container-creation" in done.stdout


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    header = synthetic.container_creation(tmp_path / "run").header
    with pytest.raises(FirstlightError, match="to continue"):
        runner._earlier(tmp_path / "none", header)


@pytest.mark.parametrize("group", [(), ("agile",), ("agile", "function"), ("guest",), ("cluster",)])
def test_the_list_of_verbs_cuts_no_sentence(group: tuple[str, ...]) -> None:
    text = CliRunner().invoke(cli.app, [*group, "--help"], terminal_width=78).stdout
    assert "..." not in text.partition("Commands:")[2].partition("Examples:")[0]


def commands(app: typer.Typer = cli.app) -> dict[str, typer.core.TyperCommand]:
    """Every verb by the words that call it."""
    result = {}

    def walk(command: Any, words: str) -> None:
        if hasattr(command, "commands"):
            for name, below in command.commands.items():
                walk(below, f"{words} {name}")
        else:
            result[words.strip()] = command

    walk(typer.main.get_command(app), "")
    return result


def test_the_verbs() -> None:
    assert sorted(commands()) == sorted(
        [
            "agile agent",
            "agile down",
            "agile events",
            "agile exec",
            "agile logs",
            *(
                f"agile function {verb}"
                for verb in (
                    "add",
                    "alias",
                    "call",
                    "concurrency",
                    "follow",
                    "list",
                    "remove",
                    "show",
                    "update",
                )
            ),
            "agile invoke",
            "agile plan",
            "agile plugin",
            "agile pools",
            "agile ps",
            "agile shim",
            "agile start",
            "agile stop",
            "agile up",
            "claims",
            "clean",
            "cluster down",
            "cluster load",
            "cluster status",
            "cluster up",
            "compare",
            "doctor",
            "gate",
            "guest add",
            "guest list",
            "guest remove",
            "list",
            "report",
            "run",
            "trace",
            "watch",
        ]
    )


@pytest.mark.parametrize("verb", sorted(commands()))
def test_help_explains_options_with_examples(verb: str) -> None:
    command = commands()[verb]
    assert command.help
    assert f"firstlight {verb}" in str(command.epilog)
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), parameter.name


def test_the_version_is_that_of_the_package() -> None:
    assert invoke("--version").stdout == f"firstlight {version('firstlight')}\n"


def test_ctrl_c_before_the_command_line_is_imported_just_ends_it(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "-m", "firstlight", "list"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


HEAVY = ("asyncio", "rich", "pydantic", "polars", "firstlight.lab", "firstlight.agile.runtime")


class _Finalized:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def _while_finalizing() -> None:
    _Finalized()
    signal.sigtimedwait((), 60)


def _while_failing() -> None:
    raise FirstlightError("a", "b")


@pytest.mark.parametrize("verb", [_while_finalizing, _while_failing])
def test_interrupt_ends_in_words_wherever_it_comes(
    verb: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a finalizer, where Python drops it, and while an error is told."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(cli, "_run_verb", verb)
    monkeypatch.setattr(cli, "say", lambda _: signal.raise_signal(signal.SIGTERM))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capfd.readouterr() == ("", "")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_agile_verbs_import_no_lab_runtime_or_rich() -> None:
    script = (
        "import sys\n"
        "from firstlight.cli.main import app\n"
        "from firstlight.errors import Failed\n"
        "try: app(['agile', *sys.argv[1:]])\n"
        "except Failed: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    for words in (("ps",), ("start", "--rootfs", "/", "--", "/bin/true")):
        done = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True
        )
        assert done.stdout == "[]\n", done.stderr


def test_attaching_imports_no_event_loop() -> None:
    script = (
        "import sys\n"
        "from types import SimpleNamespace as Fake\n"
        "from firstlight.cli.attach import attach\n"
        "ended = Fake(signal=0, status=7)\n"
        "client = Fake(wait=lambda _: ended, close=lambda: None)\n"
        "print(attach(client, lambda _: Fake(id='1', pid=1), terminal=False, interactive=False))\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "7\n[]\n", done.stderr


def test_a_unit_is_that_of_the_package_with_this_programs_path() -> None:
    shipped = (Path(__file__).parents[3] / "deploy/systemd/firstlight.service").read_text()
    unit = invoke("agile", "up", "--unit", "--config", "/etc/mine.toml").stdout
    [line] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert re.fullmatch(r"ExecStart=/\S+ agile up --keep --config /etc/mine.toml", line)
    assert unit.replace(line, "") == re.sub(r"(?m)^ExecStart=.*$", "", shipped)


def test_words_of_a_unit_are_quoted() -> None:
    assert _quoted("/etc/mine.toml") == "/etc/mine.toml"
    assert _quoted('/a %f$x"\\;') == r'"/a %%f$$x\"\\;"'


def test_a_call_without_a_handler_is_refused() -> None:
    assert refusal("agile", "invoke", "--rootfs", "/srv").message == "there is no handler to call"


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("firstlight run cni-b", [name for name in catalogue.ALL if name.startswith("cni-b")]),
        ("firstlight run pod --cni bri", [n for n in known.names() if n.startswith("bri")]),
        ("firstlight run unikernel-boot --guest pr", ["probe", "probe-verbose"]),
        ("firstlight agile po", ["pools"]),
        ("firstlight agile start --network in", ["internal"]),
        ("firstlight report --export p", ["perfetto", "parquet"]),
        ("firstlight guest remove mi", []),
    ],
)
def test_a_shell_completes_verbs_and_names(line: str, completed: list[str], tmp_path: Path) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    words |= {"_FIRSTLIGHT_COMPLETE": "complete_bash", "FIRSTLIGHT_GUESTS": str(tmp_path)}
    done = CliRunner().invoke(cli.app, [], env=words, prog_name="firstlight")
    assert done.stdout.split() == completed


@pytest.mark.parametrize(
    ("experiment", "option"),
    [("container-creation", ("--cni", "bridge")), ("floor", ("--accel", "tcg")),
     ("agile", ("--icount",)), ("network-setup", ("--guest", "probe"))],
)  # fmt: skip
def test_an_option_without_effect_on_an_experiment_is_refused(
    experiment: str, option: tuple[str, ...], tmp_path: Path
) -> None:
    error = refusal("run", experiment, *option, "--out", str(tmp_path / "run"))
    assert error.message == f"{option[0]} has no effect on {experiment}"
    assert not (tmp_path / "run").exists()


def test_a_context_without_its_kubeconfig_is_refused(tmp_path: Path) -> None:
    error = refusal("run", "kubernetes-pods", "--context", "mine", "--out", str(tmp_path / "run"))
    assert error.message == "--context needs a kubeconfig"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["[1, 2]", "root:x:0:0:root:/root:/bin/bash", "contexts: 5"])
def test_what_is_no_kubeconfig_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    words = ("run", "kubernetes-pods", "--kubeconfig", str(tmp_path / "file"), "--context", "mine")
    error = refusal(*words, "--out", str(tmp_path / "run"))
    assert f"cannot use the kubeconfig {tmp_path / 'file'}: it is not a kubeconfig" in error.message
    assert error.hint == "give another with --kubeconfig or --context"


@pytest.mark.parametrize(
    ("prefix", "name", "fact"),
    [("", "none", "does not exist"), ("unix://", "none", "does not exist"),
     ("unix://", "file", "is not a socket")],
)  # fmt: skip
def test_what_is_not_a_runtimes_socket_is_named(
    tmp_path: Path, prefix: str, name: str, fact: str
) -> None:
    (tmp_path / "file").touch()
    words = ("run", "cri-sandbox", "--out", str(tmp_path / "run"), "--runtime", "their-handler")
    error = refusal(*words, "--cri", f"{prefix}{tmp_path / name}")
    assert f"the CRI socket {tmp_path / name} {fact}" in error.message


@pytest.mark.parametrize("option", ["--instances", "--runtime"])
@pytest.mark.parametrize("empty", ["", ","])
def test_a_list_that_names_nothing_is_refused(tmp_path: Path, option: str, empty: str) -> None:
    error = refusal("run", "container-creation", option, empty, "--out", str(tmp_path / "run"))
    assert error.message.startswith(f"{option} {empty!r} ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("counts", ["0", "1,-1", "1e9", "1-5", "5000000", "9" * 20])
def test_what_is_no_number_of_starts_is_refused(counts: str) -> None:
    with pytest.raises(FirstlightError, match="not a list of counts"):
        cli_options.instances(counts)


def test_an_option_that_names_the_default_is_taken() -> None:
    cli_options.check_use(catalogue.find("agile"), Options((1,), runtimes=("runc", "crun")))


def test_a_run_that_cannot_begin_leaves_no_directory(tmp_path: Path) -> None:
    cli_options.check_space(tmp_path / "a/run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("refused", "message", "hint"),
    [
        ("abc", "a and 2 more: it needs root", "run it with sudo"),
        ("abx", "a and 1 more: it needs root (run it with sudo); x: it needs x (get x)",
         "firstlight doctor shows what else is missing"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_reported_once_per_reason(refused: str, message: str, hint: str) -> None:
    """A remedy of all is the hint: the doctor knows nothing of a user's own configuration."""

    class Rootless:
        note = None
        end_point = EndPoint.FIRST_INSTRUCTION

        def __init__(self, name: str) -> None:
            self.name = name

        def probe(self) -> None:
            if self.name == "x":
                raise Unsupported("it needs x", "get x")
            raise Unsupported("it needs root", "run it with sudo")

    def cases(_: Options) -> list[Case]:
        return [
            Case({"what": name, "instances": 1}, Rootless(name))  # type: ignore[arg-type]
            for name in refused
        ]

    experiment = Experiment("bare", "?", "", ("what", "instances"), cases)
    plan = runner.Plan(experiment, Options((1,)), 1, 1, traced=False)
    with pytest.raises(Unsupported) as caught:
        runner.run(plan, Path("/nonexistent"))
    assert caught.value.message == f"bare cannot run here: {message}"
    assert caught.value.hint == hint


def test_a_directory_of_runs_is_no_run(tmp_path: Path) -> None:
    synthetic.container_creation(tmp_path / "one")
    result = refusal("report", str(tmp_path))
    assert result.hint == f"give the runs in it: {tmp_path}/*"


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = str(synthetic.container_creation(tmp_path / "one").path)
    for option in (("--html", f"{run}/header.json/page"), ("--pictures", f"{run}/header.json"),
                   ("--export", "csv", "--out", f"{run}/header.json")):  # fmt: skip
        with synthetic.known_phases():
            error = refusal("report", run, *option)
        assert re.match(rf"cannot write {run}/header\.json", error.message)
        assert error.hint == f"give {option[-2]} another path"


def test_exports_of_runs_of_one_name_lie_apart(tmp_path: Path) -> None:
    made = (synthetic.container_creation, synthetic.network_setup)
    runs = [make(tmp_path / make.__name__ / "run") for make in made]
    done = invoke("report", *(str(run.path) for run in runs),
                "--export", "csv", "--out", str(tmp_path / "out"))  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert {path.name for path in (tmp_path / "out").iterdir()} == {run.header.run for run in runs}


def test_a_command_needs_no_dashes_before_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[list[str]] = []

    def traced(argv: list[str], *_: object) -> None:
        requests.append(argv)
        raise Unsupported("enough", "")

    monkeypatch.setattr("firstlight.lab.tracing.traced", traced)
    refusal("trace", "ls", "-l", "--all")
    refusal("trace", "--", "ls", "-l", "--all")
    assert requests == [["ls", "-l", "--all"]] * 2


@pytest.mark.parametrize(
    ("option", "fact", "hint"),
    [
        (("--network", "mars"), "unknown network 'mars'", "valid: outbound, internal, none"),
        (("--reuse", "all"), "unknown reuse 'all'", "valid: none, network, sandbox"),
        (("--port", "80"), "--port '80' is malformed", "write it as HOST:INSTANCE"),
        (
            ("--port", "80:1", "--port", "080:2"),
            "--port publishes the host's port 80 twice",
            "give it once, or another port of the host",
        ),
        (("--env", "X"), "--env 'X' is malformed", "write it as NAME=VALUE"),
        (
            ("--secret", "a=x", "--secret", "a=y"),
            "--secret gives a twice",
            "give each a name of its own",
        ),
        (
            ("--memory", "1Q"),
            "--memory '1Q' is not a size",
            "bytes, or with K, M, G or T, such as 64M or 1G",
        ),
    ],
)
def test_a_start_with_a_malformed_option_names_the_form(
    option: tuple[str, ...], fact: str, hint: str
) -> None:
    error = refusal("agile", "start", "--rootfs", "/", *option, "--", "/bin/true")
    assert (error.message, error.hint) == (fact, hint)


def test_an_event_without_end_is_refused() -> None:
    error = refusal("agile", "function", "call", "hello", "@/dev/zero")
    assert error.message == "the event of /dev/zero is longer than 16777216 bytes"


@pytest.mark.parametrize(
    "words",
    [
        "run floor --deadline", "watch --max-age", "watch --budget", "watch --duration",
        "gate a b --threshold", "compare a b --threshold", "agile plan a --rate",
        "agile plan a --every", "agile plan a --leaving",
    ],
)  # fmt: skip
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_number_that_is_none_is_refused(words: str, number: str) -> None:
    done = invoke(*words.split(), number)
    assert done.exit_code == 2
    assert f"Invalid value for '{words.split()[-1]}'" in done.stderr


def test_a_runtimes_path_may_have_a_comma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Oci, "probe", lambda _: None)
    odd = tmp_path / "a,b"
    odd.write_text("#!/bin/sh\n")
    odd.chmod(0o755)
    assert cli_options.runtimes([str(odd), "runc, crun"]) == (str(odd), "runc", "crun")
    assert cli_options.runtimes([str(odd)], installed=False) == (str(tmp_path / "a"), "b")
    assert cli_options.runtimes(()) == ()


@pytest.mark.parametrize("verb", [("report",), ("compare",), ("gate",)])
def test_a_run_without_starts_is_said_to_have_none(verb: tuple[str], tmp_path: Path) -> None:
    """As a kill before the first leaves it. Claims are judged by what others have."""
    run = synthetic.nothing_ready(tmp_path / "run").path
    (run / "footer.json").unlink(missing_ok=True)
    (run / "samples.jsonl").write_bytes(b'{"foreign": 1}')
    error = refusal(*verb, str(run), *([str(run)] if verb == ("compare",) else []))
    assert error.message == f"{run} has no starts"
    assert invoke("claims", str(run)).exit_code == 0


def test_zsh_completes_at_the_first_tab(tmp_path: Path) -> None:
    """It reads the file of a command then, as the body of a function of the file's name."""
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    words = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    program = tmp_path / "bin" / "firstlight"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom firstlight.__main__ import main\nmain()\n")
    program.chmod(0o755)
    words["PATH"] = f"{program.parent}:{words['PATH']}"
    shown = subprocess.run(
        ["firstlight", "--show-completion", "zsh"], env=words, capture_output=True, text=True
    )
    (tmp_path / "_firstlight").write_text(shown.stdout)
    script = (
        f"fpath=({tmp_path}); autoload -Uz _firstlight; compdef() {{ print -r compdef $@ }}\n"
        "_arguments() { print -r -- $@ }; words=(firstlight doc); CURRENT=2\n"
        "_firstlight; _firstlight_completion"
    )
    done = subprocess.run(["zsh", "-fc", script], env=words, capture_output=True, text=True)
    registered, *completed = done.stdout.splitlines()
    assert registered == "compdef _firstlight_completion firstlight", done
    assert len(completed) == 2
    assert all('"doctor":' in each for each in completed)


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (("kubernetes-pods", "--kubeconfig", "x", "--cni", "ptp"), "--cni has no effect with --k"),
        (("cri-sandbox", "--cri", "x", "--cni", "ptp"), "--cni has no effect with --cri"),
        (("kubernetes-pods", "--image", "x"), "--image needs --kubeconfig"),
        (("cri-sandbox", "--image", "x"), "--image needs --cri"),
        (("unikernel-boot", "--icount", "--accel", "kvm"), "--icount excludes --accel kvm"),
        (("cri-sandbox", "--nodes", "all", "--cri", "x"), "--nodes excludes --cri"),
    ],
)
def test_options_that_contradict_each_other_are_refused(words: tuple[str, ...], fact: str) -> None:
    assert refusal("run", *words).message.startswith(fact)
