#!/bin/bash
# The paired benches: each prints what it measured against what, the ratio with its bar and goal, and the command to repeat it.
#
#   bench.sh                      all of them, 9 rounds each (about half an hour)
#   bench.sh encode A --rounds 3  one of them, its rows that hold "A"
#   bench.sh quick                all of them, 3 rounds on a quarter of the work: to see that they run, not for figures
#
# Run it on a machine that does nothing else. Mock brokers need no Java; the product on a real Kafka is scripts/bars-speed.sh.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

benches=(consume encode archive_e2e read_scan read_range plan produce replay_e2e)
scripts/needs.sh build
options=()
case ${1:-} in
'') ;;
quick) options=(--rounds 3 --scale 0.25) ;;
-*) options=("$@") ;;
*) benches=("$1") options=("${@:2}") ;;
esac
for bench in "${benches[@]}"; do
  cargo bench -q --locked -p tapedeck-benches --bench "$bench" -- "${options[@]}"
done
