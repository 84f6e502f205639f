#!/bin/bash
# Faults at random on a real Kafka and a real S3 server, judged by an oracle: archiver/tests/chaos.
# MINUTES=n is how long it goes on (default 10), SEED=n draws the same rounds again. A line for each round, a sum at the end,
# then how often each fault really struck. Exit code 1 if anything was lost, doubled, invented, changed, stuck or kept silent.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

scripts/needs.sh build servers
export MINUTES=${MINUTES:-10}
[ -n "${SEED:-}" ] || unset SEED
cargo test --workspace --locked --test chaos -- --ignored --exact --nocapture faults_at_random || exit 1
