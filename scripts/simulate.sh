#!/bin/bash
# The commit protocol under so many simulated worlds, optimised: simulate.sh [SEEDS], ten million by default.
# The last lines are what was seen; a violation prints the seed that shows it again (SIM_SEED=n).
set -euo pipefail
. "$(dirname "$0")/lib.sh"

export SIM_SEEDS=${1:-10000000}
fast='profile.dev.package.tapedeck-storage.opt-level=3'
words='profile.dev.package.tapedeck-common.opt-level=3'
cargo test --config "$fast" --config "$words" --locked --workspace --test protocol_sim -- no_seed --nocapture
