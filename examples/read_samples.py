#!/usr/bin/env python3
"""Print the median latency of each point from a run's own files; docs/schema.md describes them.

Usage: read_samples.py RUN
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median


def main() -> None:
    """Read the run named on the command line and print one line per point."""
    latencies: dict[str, list[int]] = defaultdict(list)
    for line in (Path(sys.argv[1]) / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        stamps = sample["stamps"]
        if sample["ending"] == "ready" and not sample["traced"]:
            setting = ", ".join(f"{axis}={value}" for axis, value in sample["point"].items())
            latencies[setting].append(stamps["ready"] - stamps["intended"])
    for setting, values in latencies.items():
        print(f"{setting}: {median(values) / 1e6:.2f} ms, {len(values)} starts")


main()
