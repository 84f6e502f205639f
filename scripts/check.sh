#!/bin/bash
# The quick inner loop: format, lints, unit tests. Needs no server and no network.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

cargo fmt --all -- --check
cargo clippy --workspace --all-targets --locked -- -D warnings
cargo test --workspace --lib --bins --locked -q
