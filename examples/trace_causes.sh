#!/usr/bin/env bash
# Print what the start of a command spends its time on, largest first.
#
#   trace_causes.sh COMMAND [ARGUMENT ...]
set -euo pipefail
firstlight trace --json -- "$@" | python3 -c '
import collections, json, sys
causes = collections.Counter()
for row in json.load(sys.stdin)["breakdown"]:
    causes[row["cause"]] += row["wall"]
for cause, ns in causes.most_common(10):
    print(f"{ns / 1e6:8.2f} ms  {cause}")
'
