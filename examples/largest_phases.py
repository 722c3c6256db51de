#!/usr/bin/env python3
"""Print the three largest phases of each point.

Usage: firstlight report RUN... --json | largest_phases.py
"""

import json
import sys


def main() -> None:
    """Read a report's JSON from stdin and print one line per point."""
    for run in json.load(sys.stdin)["runs"]:
        print(run["experiment"])
        for point in run["points"]:
            phases = sorted(point["phases"], key=lambda row: -row["share"]["value"])
            largest = ", ".join(f"{row['phase']} {row['share']['value']:.0%}" for row in phases[:3])
            print(f"  {point['series']} × {point['instances']}: {largest or 'not traced'}")


main()
