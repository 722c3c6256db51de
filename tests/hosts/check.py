"""What of firstlight works on this host: one line of JSON for each step.

Runs inside a host of ``mk/hosts.py``, with the firstlight that is installed beside the interpreter.
A step is ``ok``, ``refused`` (firstlight says what it lacks), ``failed``, or ``partial`` where the
host's time ends before the step does. A slow host is no failure: all deadlines, here and in
firstlight, are ``FIRSTLIGHT_SLOWER`` times the usual. With ``SUDO`` firstlight is run by sudo.
``STEPS`` names the steps to run, if not all.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

SLOWER = float(os.environ.get("FIRSTLIGHT_SLOWER", "1"))
SUDO = ("sudo", "-n", "--preserve-env=FIRSTLIGHT_SLOWER") if os.environ.get("SUDO") else ()
FIRSTLIGHT = (*SUDO, str(Path(sys.executable).parent / "firstlight"))
WORK = Path(tempfile.mkdtemp(prefix="check."))
Outcome = tuple[str, str]


def firstlight(*words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    return subprocess.run(
        [*FIRSTLIGHT, *words], capture_output=True, text=True, cwd=WORK,
        timeout=seconds * SLOWER, errors="replace",
    )  # fmt: skip


def last(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def refused(done: subprocess.CompletedProcess[str]) -> Outcome:
    """A message in words is a refusal; a traceback or silence is a failure."""
    words = [line for line in done.stderr.splitlines() if line.startswith("firstlight: ")]
    if "Traceback" in done.stderr or not done.stderr.strip():
        return "failed", last(done.stderr)
    return "refused", " ".join(words)[:300] or last(done.stderr)


def doctor() -> Outcome:
    """The main job can run."""
    done = firstlight("doctor", "--json")
    try:
        document = json.loads(done.stdout)
    except ValueError:
        return "failed", last(done.stderr)
    broken = [
        f"{each['name']}: {each['fact']}" for each in document["checks"] if each["ok"] is False
    ]
    return ("ok" if document["ready"] else "refused"), "; ".join(broken)


def main_job(*more: str) -> Outcome:
    """Starts of runc are measured, and nothing is lost."""
    out = WORK / f"run{len(more)}"
    done = firstlight(
        "run", "container-creation", "--runtime", "runc", "--instances", "1", "--repetitions", "1",
        "--out", str(out), "--json", *more, seconds=300,
    )  # fmt: skip
    if not out.exists():
        return refused(done)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    ready = sum(each["ending"] == "ready" for each in samples)
    lost = sum(each.get("lost", 0) for each in samples)
    errors = [f"{each['error']}: {last(each['output'])}" for each in samples if each.get("error")]
    words = f"{ready} of {len(samples)} ready, {lost} events lost {''.join(errors[:1])}".strip()
    return ("ok" if samples and ready == len(samples) and not lost else "failed"), words


def untraced() -> Outcome:
    """The same without the tracer."""
    return main_job("--no-trace")


def trace() -> Outcome:
    """A command with children is traced, and nothing is lost."""
    out = WORK / "traced"
    done = firstlight(
        "trace", "--out", str(out), "--", "/bin/sh", "-c", "for i in 1 2 3; do /bin/true; done"
    )
    if done.returncode:
        return refused(done)
    [sample] = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    lost = sample.get("lost", 0)
    return ("failed" if lost else "ok"), f"{lost} events lost"


PARTS = ((100, False), (20, True), (50, True), (100, True))
"""How many starts of runc, and whether at once. What takes longest comes last."""


def many() -> Iterator[Outcome]:
    """A hundred traced starts, and a hundred at once, lose less than 0.01 % of their events.

    Each part gives what was reached so far, so that a host whose time is over has a result.
    """
    with ThreadPoolExecutor(1) as thread:  # which stays in the workspace's namespaces
        parts = thread.submit(traced_parts).result()
        while outcome := thread.submit(next, parts, None).result():
            yield outcome


def traced_parts() -> Iterator[Outcome]:
    """The parts, in a workspace of their own.

    A small host has no memory for these modules beside a run's own.
    """
    from firstlight.host.workspace import sandbox
    from firstlight.lab.backends.oci import Oci
    from firstlight.lab.load import BURST, Generator, Sequence
    from firstlight.trace import bpf

    alone, lost, seen = 0, 0, 0
    at_once: list[str] = []
    losses: list[str] = []
    with (
        sandbox("check-many") as place,
        Generator() as generator,
        bpf.Tracer(generator.pid, place.directory) as tracer,
    ):
        for batch, (count, together) in enumerate(PARTS):
            begun = time.monotonic()
            with Oci("runc").prepared(count, place) as prepared:
                commands = list(prepared.commands)
                tracer.start()
                shape = BURST if together else Sequence()
                started = generator.run(batch, commands, shape, deadline=60 * SLOWER)
                lost += tracer.stop()
                generator.stop(batch, deadline=60 * SLOWER)
            seen += sum(file.stat().st_size for file in place.directory.rglob("batch.events"))
            ready = sum(each.reply.ready is not None for each in started)
            if together:
                at_once.append(f"{ready} at once")
            else:
                alone += ready
            events = seen // bpf.EVENT.itemsize + lost
            losses += [tracer.losses] if tracer.losses else []
            words = f"{', '.join([f'{alone} alone', *at_once])}: {lost} of {events} events lost"
            words += f" ({'; '.join(losses)})" if losses else ""
            if ready < count:
                yield "failed", f"{words}; {ready} of {count} ready"
                return
            outcome = "failed" if lost >= events / 10_000 else "ok"
            if outcome == "ok" and batch < len(PARTS) - 1:
                outcome = "partial"
            yield outcome, f"{words} ({time.monotonic() - begun:.0f} s)"


class NotUp(Exception):
    """The runtime does not serve: an outcome."""


@contextmanager
def up(ended: list[int | None]) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """A runtime; gives what starts an instance in a root of this host's own. Raises NotUp.

    ``ended`` gets its exit status, None if it did not end in time.
    """
    root, config = WORK / "root", WORK / "agile.toml"
    (root / "bin").mkdir(parents=True, exist_ok=True)
    for directory in (WORK, root, root / "bin"):
        directory.chmod(0o755)  # whatever the umask
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    config.write_text('name = "check"\n')
    server = subprocess.Popen(
        [*FIRSTLIGHT, "agile", "up", "--config", config],
        stderr=subprocess.PIPE,
        text=True,
        cwd=WORK,
    )
    try:
        end = time.monotonic() + 60 * SLOWER
        while firstlight("agile", "ps", "--config", str(config)).returncode:
            if server.poll() is not None:
                assert server.stderr is not None
                words = server.stderr.read()
                words = " ".join(words.split())  # it is a line of a document
                raise NotUp("failed" if "Traceback" in words else "refused", words[-300:])
            if time.monotonic() > end:
                raise NotUp("failed", "the runtime does not answer")
        yield lambda *words: firstlight(
            "agile", "start", "--config", str(config), "--rootfs", str(root), *words
        )
    finally:
        end_process(server.pid, "TERM")
        try:
            ended.append(server.wait(60 * SLOWER))
        except subprocess.TimeoutExpired:
            end_process(server.pid, "KILL")
            ended.append(None)


def end_process(pid: int, signal: str) -> None:
    """Send a signal to a process, which is root's under sudo."""
    subprocess.run([*SUDO, "kill", f"-{signal}", str(pid)], check=False, timeout=60 * SLOWER)


def runtime() -> Outcome:
    """The runtime starts an instance in a root that is this host's, and ends in order."""
    ended: list[int | None] = []
    with up(ended) as start:
        done = start("--", "/bin/busybox", "sh", "-c", "/bin/busybox id -u; exit 7")
    if done.returncode != 7:
        return "failed", f"exit status {done.returncode}: {last(done.stderr)}"
    if done.stdout.strip() in ("", "0"):
        return "failed", f"its user is {done.stdout.strip()!r}"
    return ("ok", "") if ended == [0] else ("failed", f"it ended with {ended[0]}")


EATS = ("--network", "none", "--", "/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null",
        "bs=200M", "count=1")  # fmt: skip
FORKS = ("--network", "none", "--", "/bin/busybox", "sh", "-c",
         "for i in $(/bin/busybox seq 30); do /bin/busybox sleep 3 & done; wait")  # fmt: skip
SPINS = ("--network", "none", "--detach", "--", "/bin/busybox", "sh", "-c", "while :; do :; done")


def limits() -> Outcome:
    """Limits of memory, processes and CPU time hold, and want of memory is named as such.

    Each is tried with a limit that is enough, too: what ends the instance is the limit.
    """
    ended: list[int | None] = []
    with up(ended) as start:
        wrong = [*too_large(start), *too_many(start), *too_busy(start)]
    return ("failed", "; ".join(wrong)) if wrong else ("ok", "")


def too_large(start: Callable[..., subprocess.CompletedProcess[str]]) -> Iterator[str]:
    """What is wrong with the limit of memory."""
    for _ in range(2):  # the second in a cgroup that was used
        done = start("--memory", "64M", *EATS)
        if done.returncode != 137 or "memory" not in done.stderr:
            yield f"200 MiB of 64: exit status {done.returncode}: {last(done.stderr)}"
        done = start("--memory", "400M", *EATS)
        if done.returncode:
            yield f"200 MiB of 400: exit status {done.returncode}: {last(done.stderr)}"


def too_many(start: Callable[..., subprocess.CompletedProcess[str]]) -> Iterator[str]:
    """What is wrong with the limit of processes."""
    done = start("--pids", "8", *FORKS)
    if not done.returncode or "fork" not in done.stderr:
        yield f"30 processes of 8: exit status {done.returncode}: {last(done.stderr)}"
    done = start("--pids", "64", *FORKS)
    if done.returncode:
        yield f"30 processes of 64: exit status {done.returncode}: {last(done.stderr)}"


def too_busy(start: Callable[..., subprocess.CompletedProcess[str]]) -> Iterator[str]:
    """What is wrong with the limit of CPU time."""
    others = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    for cpus, least, most in ((0.2, 0.0, 0.3), (2.0, 0.4 / others, 2.0)):
        done = start("--cpus", str(cpus), *SPINS)
        if done.returncode:
            yield f"{cpus} CPUs: exit status {done.returncode}: {last(done.stderr)}"
            continue
        identity = done.stdout.strip()
        words = ("--config", str(WORK / "agile.toml"))
        listed = json.loads(firstlight("agile", "ps", "--json", *words).stdout)
        [pid] = [each["pid"] for each in listed if str(each["id"]) == identity]
        before, began = cpu(pid), time.monotonic()
        time.sleep(5)
        share = (cpu(pid) - before) / (time.monotonic() - began)
        if not least <= share <= most:
            yield f"{cpus} CPUs: {share:.2f} were used"
        firstlight("agile", "stop", *words, identity)


def cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def clean() -> Outcome:
    """Nothing is left."""
    done = firstlight("clean", "--dry-run")
    left = [line for line in (done.stdout + done.stderr).splitlines() if "would remove" in line]
    return ("failed" if left else "ok"), "; ".join(left)


STEPS: tuple[Callable[[], Outcome | Iterator[Outcome]], ...] = (
    doctor, main_job, untraced, trace, runtime, limits, many, clean,
)  # fmt: skip
CHOSEN = os.environ.get("STEPS", "").split() or [step.__name__ for step in STEPS]


def outcomes(step: Callable[[], Outcome | Iterator[Outcome]]) -> Iterator[Outcome]:
    """What a step comes to; the last counts."""
    try:
        outcome = step()
        yield from [outcome] if isinstance(outcome, tuple) else outcome
    except NotUp as error:
        yield error.args
    except subprocess.TimeoutExpired as error:
        yield "failed", f"not done after {error.timeout:.0f} s"
    except Exception as error:  # the next steps are of interest all the same
        yield "failed", f"{type(error).__name__}: {error}"


for step in STEPS:
    if step.__name__ not in CHOSEN:
        continue
    begun = time.monotonic()
    for outcome, words in outcomes(step):
        record = {"step": step.__name__, "outcome": outcome, "words": words,
                  "seconds": round(time.monotonic() - begun, 1)}  # fmt: skip
        print(f"RESULT {json.dumps(record)}", flush=True)  # noqa: T201 - its output
