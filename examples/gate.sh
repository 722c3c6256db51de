#!/usr/bin/env bash
# A regression gate for the CI of a container runtime.
#
#   gate.sh RUNTIME BASELINE    the first call measures the baseline; later calls compare with it
#
# Exit status 1 if starts of RUNTIME are significantly slower than in the run BASELINE.
set -euo pipefail
runtime=$1 baseline=$2
measure() {
	firstlight run container-creation --runtime "$runtime" --instances "${INSTANCES:-1,10}" \
		--repetitions "${REPETITIONS:-10}" --no-trace --out "$1" >/dev/null
}
if [ ! -e "$baseline" ]; then
	measure "$baseline"
	exit
fi
now=$(mktemp -d)
trap 'rm -r "$now"' EXIT
measure "$now/run"
firstlight compare "$baseline" "$now/run"
