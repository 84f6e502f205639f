#!/bin/bash
# The long measured runs behind the promises in the README, optimised, one at a time: the replayer's measured runs
# (its ignored tests), and the tests on real servers with the numbers of the bars. About an hour.
# bars.sh [NAME]   runs only those whose name holds NAME.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

scripts/needs.sh build servers python
export TAPEDECK_PYTHON=$cache/venv-test/bin/python TAPEDECK_SPARK_JARS=$cache/spark-jars SPARK_LOCAL_IP=127.0.0.1
export TAPEDECK_READERS_WITHOUT=$(cat "$cache/venv-test/.without" 2>/dev/null)
export PATH=$PATH:$cache/venv-go/bin
export TAPEDECK_KILLS=100 TAPEDECK_EVENTS=2000000 TAPEDECK_EXACT_EVENTS=2000000 TAPEDECK_AWAY_SECONDS=180
export TAPEDECK_CIRCLE_EVENTS=2000000 TAPEDECK_CIRCLE_KILLS=20 TAPEDECK_READERS_EVENTS=2000000
export TAPEDECK_SHUTDOWNS=100 TAPEDECK_STORM_SECONDS=300
code=0
cargo test --workspace --release --locked --no-fail-fast --test real -- --ignored --nocapture --test-threads=1 "$@" || code=$?
cargo test --workspace --release --locked --no-fail-fast --test crash --test exactness --test memory --test store_away --test circle \
  --test readers --test shutdown --test chaos \
  -- --nocapture --test-threads=1 "$@" || code=$?
exit $code
