"""Watched starts as the live page and the metrics take them."""

from typing import Any

from firstlight.report.live.watched_start import Stretch, WatchedStart

MS = 1_000_000


def start(index: int = 0, latency: int | None = 30 * MS, **changes: Any) -> WatchedStart:
    fields: dict[str, Any] = {
        "id": f"c{index}", "time": "2026-11-29T02:00:00+00:00", "name": f"web/shop-{index}/nginx",
        "labels": {"id": f"c{index}", "runtime": "runc", "cni": "bridge"},
        "point": {"runtime": "runc", "engine": "containerd", "namespace": "web", "instances": 1},
        "began": 1_000, "latency": latency, "lost": 0, "error": None if latency else "not executed",
    }  # fmt: skip
    if latency:
        fields |= {
            "phases": {"mount": latency // 3, "security": latency - latency // 3},
            "causes": {"on CPU": latency // 2, "RCU: synchronize_rcu (x)": latency - latency // 2},
            "stretches": (Stretch("mount", "on CPU", 0, latency),),
        }
    return WatchedStart(**fields | changes)
