#!/bin/bash
# The product's speed on a real Kafka: archiver and replayer beside the fetch + zstd floor and scripts somebody would write instead.
# bars-speed.sh [OPTIONS]   options of the program `product`, for example --pairs 1 --count 200000
# Run it on a machine that does nothing else; only ratios of one run mean something.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

scripts/needs.sh build servers python
cargo build --release --locked --workspace --bins
export TAPEDECK_PYTHON=$cache/venv-test/bin/python
exec "$target/release/product" "$@"
