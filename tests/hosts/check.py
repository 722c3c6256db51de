"""What of firstlight works on this host: one line of JSON for each step.

Runs inside a host of ``mk/hosts.py``, with the firstlight that is installed beside the interpreter.
A step is ``ok``, ``refused`` (firstlight says what it lacks) or ``failed``. A slow host is no
failure: it gets ``SCALE`` times the usual deadlines.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SCALE = float(os.environ.get("SCALE", "1"))
FIRSTLIGHT = Path(sys.executable).parent / "firstlight"
WORK = Path(tempfile.mkdtemp(prefix="check."))
Outcome = tuple[str, str]


def firstlight(*words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    return subprocess.run(
        [FIRSTLIGHT, *words], capture_output=True, text=True, cwd=WORK,
        timeout=seconds * SCALE, errors="replace",
    )  # fmt: skip


def last(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def refused(done: subprocess.CompletedProcess[str]) -> Outcome:
    """A message in words is a refusal; a traceback or silence is a failure."""
    words = [
        line for line in done.stderr.splitlines() if line.startswith(("error", "Hint", "hint"))
    ]
    if "Traceback" in done.stderr or not done.stderr.strip():
        return "failed", last(done.stderr)
    return "refused", " ".join(words)[:300] or last(done.stderr)


def doctor() -> Outcome:
    """The main job can run."""
    done = firstlight("doctor", "--json")
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return "failed", last(done.stderr)
    broken = [f"{each['name']}: {each['fact']}" for each in found["checks"] if each["ok"] is False]
    return ("ok" if found["ready"] else "refused"), "; ".join(broken)


def main_job(*more: str) -> Outcome:
    """Starts of runc are measured, and nothing is lost."""
    out = WORK / f"run{len(more)}"
    done = firstlight(
        "run", "container-creation", "--runtime", "runc", "--instances", "1", "--repetitions", "1",
        "--deadline", str(60 * SCALE), "--out", str(out), "--json", *more, seconds=300,
    )  # fmt: skip
    if not out.exists():
        return refused(done)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    ready = sum(each["ending"] == "ready" for each in samples)
    lost = sum(each.get("lost", 0) for each in samples)
    errors = {each["error"] for each in samples if each.get("error")}
    words = f"{ready} of {len(samples)} ready, {lost} events lost {' '.join(errors)}".strip()
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


def runtime() -> Outcome:
    """The runtime starts an instance in a root that is this host's, and ends in order."""
    root = WORK / "root"
    (root / "bin").mkdir(parents=True)
    for directory in (WORK, root, root / "bin"):
        directory.chmod(0o755)  # whatever the umask
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    config = WORK / "agile.toml"
    config.write_text('name = "check"\n')
    server = subprocess.Popen(
        [FIRSTLIGHT, "agile", "up", "--config", config], stderr=subprocess.PIPE, text=True, cwd=WORK
    )
    try:
        end = time.monotonic() + 60 * SCALE
        while firstlight("agile", "ps", "--config", str(config)).returncode:
            if server.poll() is not None:
                assert server.stderr is not None
                words = server.stderr.read()
                return ("failed" if "Traceback" in words else "refused"), last(words)
            if time.monotonic() > end:
                return "failed", "the runtime does not answer"
        done = firstlight(
            "agile", "start", "--config", str(config), "--rootfs", str(root), "--",
            "/bin/busybox", "sh", "-c", "/bin/busybox id -u; exit 7",
        )  # fmt: skip
        if done.returncode != 7:
            return "failed", f"exit status {done.returncode}: {last(done.stderr)}"
        if done.stdout.strip() in ("", "0"):
            return "failed", f"its user is {done.stdout.strip()!r}"
    finally:
        server.terminate()
        try:
            status: int | None = server.wait(60 * SCALE)
        except subprocess.TimeoutExpired:
            server.kill()
            status = None
    return ("ok", "") if status == 0 else ("failed", f"it ended with {status}")


def clean() -> Outcome:
    """Nothing is left."""
    done = firstlight("clean", "--dry-run")
    left = [line for line in (done.stdout + done.stderr).splitlines() if "would remove" in line]
    return ("failed" if left else "ok"), "; ".join(left)


STEPS: tuple[Callable[[], Outcome], ...] = (doctor, main_job, untraced, trace, runtime, clean)

for step in STEPS:
    begun = time.monotonic()
    try:
        outcome, words = step()
    except subprocess.TimeoutExpired as error:
        outcome, words = "failed", f"not done after {error.timeout:.0f} s"
    except Exception as error:  # the next steps are of interest all the same
        outcome, words = "failed", f"{type(error).__name__}: {error}"
    record = {"step": step.__name__, "outcome": outcome, "words": words,
              "seconds": round(time.monotonic() - begun, 1)}  # fmt: skip
    print(f"RESULT {json.dumps(record)}", flush=True)  # noqa: T201 - its output
