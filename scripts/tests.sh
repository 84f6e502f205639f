#!/bin/bash
# Cargo's tests, several test programs side by side: most of them wait for servers most of the time.
#
#   tests.sh          one more at once than there are cores, but three at least
#   tests.sh 1        one after the other
#
# Builds all of them first. A program's output appears as a whole when it ended; fails if one of them does.
set -uo pipefail
. "$(dirname "$0")/lib.sh"

cores=$(nproc)
side_by_side=${1:-$((cores > 2 ? cores + 1 : 3))}

built=$(cargo test --workspace --locked --no-run 2>&1) || { echo "$built"; exit 1; }

# These take longest, so they begin first; every other test program follows, then the tests within the crates and the documentation.
longest=(chaos kafka exactness circle real readers crash stores memory store_away clock truncated limited rabbit_server protocol_sim)
programs() {
  local found
  found=$(sed -nE 's,^ *Executable tests/([a-z0-9_]+)(/main)?\.rs .*,\1,p' <<<"$built" | sort -u)
  printf '%s\n' "${longest[@]}" | grep -Fx "$found"
  printf '%s\n' "${longest[@]}" | grep -vFx -f - <(echo "$found")
}

one() {
  local log code=0
  log=$(mktemp)
  cargo test --workspace --locked --no-fail-fast "$@" >"$log" 2>&1 || code=$?
  # Whole, so that programs that end together do not mix.
  flock "$outputs" cat "$log"
  rm -f "$log"
  return "$code"
}
export -f one
outputs=$(mktemp)
trap 'rm -f "$outputs"' EXIT
export outputs

{
  programs | sed 's/^/--test /'
  printf '%s\n' --lib --bins --doc
} | xargs -P "$side_by_side" -L 1 bash -c 'one "$@"' _
