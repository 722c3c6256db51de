"""One scale for all deadlines: what does not follow it is an interval, or says why it does not."""

import re
from pathlib import Path

import pytest

import firstlight
from firstlight.errors import FirstlightError, longer

PACKAGE = Path(firstlight.__file__).parent

PAUSES = re.compile(
    "(ACCEPT|AGAIN|ALIVE|AWAY|BATCH|BUSY|CALM|EVENT|EXPORT|FASTEST|GLANCE|HURRY|LOOK|MOMENT|PATIENCE"
    "|POLL|QUARANTINE|QUIET|REAP|REST|RETRY|ROUTES|RULES|SETTLE|SHARED|STALE|SWEEP)_SECONDS"
)
"""How often is looked, or how long is rested: nothing fails at its end."""
FIXED = {
    "agile/client.py: _WAIT_SECONDS": "asked again at its end",
    "agile/runtime.py: _FOLLOW_SECONDS": "asked again at its end",
    "agile/apiserver.py: _WATCH_SECONDS": "the API server's, asked again at its end",
    "agile/functions/catalogue.py: _KEEP_SECONDS": "of idle connections",
    "agile/http/connection.py: SECONDS": "of clients elsewhere",
    "agile/http/connection.py: SLOW_SECONDS": "of clients elsewhere",
    "agile/http/metrics.py: SECONDS": "buckets",
    "agile/http/sigv4.py: _SKEW_SECONDS": "AWS's, of a clock",
    "agile/http/websockets.py: IDLE_SECONDS": "of idle clients",
    "agile/network/firewall.py: _WAIT_SECONDS": "the kernel's",
    "agile/serving/upstream.py: KEEP_SECONDS": "of idle connections",
    "agile/serving/web.py: _DRAIN_SECONDS": "the longest of users' requests",
    "agile/wasm/workers.py: IDLE_SECONDS": "of idle workers",
    "cli/plan.py: _STATUS_SECONDS": "the kubelet's",
    "cli/run.py: _FAST_SECONDS": "a budget that users know",
    "cli/watch.py: _STOP_SECONDS": "made longer where it is used",
    "lab/backends/accel.py: _FAIR_SECONDS": "a figure by which KVM is judged",
    "lab/backends/boto_caller.py: _READY_SECONDS": "runs without this package",
    "lab/backends/storm.py: _HELD_SECONDS": "a load that is made",
    "lab/backends/storm.py: _PAUSE_MILLISECONDS": "a load that is made",
    "lab/cni/agent.py: _EXPECTED_SECONDS": "a figure of Cilium's",
    "lab/doctor.py: _STEAL_SECONDS": "a time in which is counted",
    "lab/guests/linux.py: _LEAST_SECONDS": "a guest's figure",
    "lab/nodes/jobs.py: _LONGEST_SECONDS": "of what nobody follows any more",
    "lab/replay.py: _TOGETHER_SECONDS": "of a replayed trace",
    "lab/tracing.py: _FOREVER_SECONDS": "none",
    "lab/watch/keep.py: _DAY_SECONDS": "a day",
    "report/live/board.py: _HOUR_SECONDS": "an hour",
    "report/live/board.py: _MINUTE_SECONDS": "a minute",
    "report/live/metrics.py: _PART_SECONDS": "buckets",
    "report/live/metrics.py: _SECONDS": "buckets",
}


def fixed() -> set[str]:
    """The constants that do not follow, and are no pauses."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for line in re.findall(r"^[A-Z_, =]*SECONDS\b[A-Z_, =]* = .*", path.read_text(), re.M):
            names, values = re.split(r" = (?=[^=]*$)", line)
            split = values.split(", ") if ", " in names else [values]
            for name, value in zip(names.split(", "), split, strict=True):
                is_pause = PAUSES.search(name)
                if "SECONDS" in name and "longer(" not in value and not is_pause:
                    found.add(f"{path.relative_to(PACKAGE)}: {name}")
    return found


def test_deadlines_follow_scale_or_say_why_not() -> None:
    assert fixed() == FIXED.keys()


def test_scale_makes_deadlines_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIRSTLIGHT_SLOWER", raising=False)
    assert longer(10.0) == 10.0
    monkeypatch.setenv("FIRSTLIGHT_SLOWER", "2.5")
    assert longer(10.0) == 25.0


@pytest.mark.parametrize(
    "word", ["0.5", "nan", "inf", "1001", "-3", "x", "1e999", "1_0", " 2", "\u0662", "0x10"]
)
def test_wrong_scale_is_refused(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLIGHT_SLOWER", word)
    with pytest.raises(FirstlightError, match="not a number from 1 to 1000"):
        longer(1.0)
