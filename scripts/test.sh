#!/bin/bash
# All tests: what `make test` and CI run. Ends with one line, "N passed, N failed".
#
# Gets what it needs (needs.sh), then format, lints, docs, licences and walls, unit tests and integration tests on real servers,
# deploy checks. A step that fails counts as one failure and the others still run; a missing server fails. Only stores,
# RabbitMQ, query engines and limits of memory that a machine cannot hold (Ceph without root, for example) are left out, and then the
# end names them.
set -uo pipefail
. "$(dirname "$0")/lib.sh"

passed=0 failed=0
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# step NAME COMMAND...: a step is one pass or one failure; its output is shown when it fails.
step() {
  local name=$1 began=$SECONDS
  shift
  if "$@" >"$logs/step" 2>&1; then
    passed=$((passed + 1)); printf 'ok    %-40s %4d s\n' "$name" $((SECONDS - began))
  else
    failed=$((failed + 1)); printf 'FAIL  %-40s %4d s\n' "$name" $((SECONDS - began))
    tail -100 "$logs/step"
  fi
}

# perhaps NAME GROUP VARIABLE: a server, or something else that not every machine gives, got by needs.sh. Where the machine cannot hold
# it, its tests are told by the variable, and the end says so.
untested=()
perhaps() {
  local name=$1 group=$2 variable=$3 code=0 began=$SECONDS
  scripts/needs.sh "$group" >"$logs/step" 2>&1 || code=$?
  case $code in
  0) passed=$((passed + 1)); printf 'ok    %-40s %4d s\n' "$name" $((SECONDS - began)) ;;
  3)
    untested+=("$name: $(tail -1 "$logs/step")")
    export "$variable=${!variable:-} $group"
    printf 'note  %-40s %4d s\n' "$name cannot be had here" $((SECONDS - began)) ;;
  *)
    failed=$((failed + 1)); printf 'FAIL  %-40s %4d s\n' "$name" $((SECONDS - began))
    tail -100 "$logs/step" ;;
  esac
}

# counted NAME COMMAND...: the command's own tests are counted, from lines like "test result: ok. 3 passed; 0 failed" or "3 passed, 0 failed".
counted() {
  local name=$1 began=$SECONDS code sums
  shift
  "$@" 2>&1 | tee "$logs/counted" | grep --line-buffered -vE '^(test .* \.\.\. ok|running [0-9]+ tests?|)$'
  code=${PIPESTATUS[0]}
  sums=$(sed -nE 's/^(test result: .*\. )?([0-9]+) passed[;,] ([0-9]+) failed.*/\2 \3/p' "$logs/counted" |
    awk '{ passed += $1; failed += $2 } END { print passed + 0, failed + 0 }')
  set -- $sums
  passed=$((passed + $1)) failed=$((failed + $2))
  # It may fail without a failed test, when it does not build for example.
  if [ "$code" != 0 ] && [ "$2" = 0 ]; then failed=$((failed + 1)); fi
  printf '%-5s %-40s %4d s\n' "$([ "$code" = 0 ] && echo ok || echo FAIL)" "$name: $1 passed, $2 failed" $((SECONDS - began))
}

# Advisories live on a site that not every builder reaches; then that is said, and the rest still counts.
advisories() {
  local code=0
  timeout 120 "$cache/bin/cargo-deny" --locked check advisories >"$logs/advisories" 2>&1 || code=$?
  if [ "$code" = 0 ]; then
    passed=$((passed + 1)); printf 'ok    %s\n' advisories
  elif [ "$code" = 124 ] || grep -q 'failed to fetch advisory database' "$logs/advisories"; then
    printf 'note  the advisory database is out of reach: advisories were not checked\n'
  else
    failed=$((failed + 1)); printf 'FAIL  %s\n' advisories
    cat "$logs/advisories"
  fi
}

export TAPEDECK_PYTHON=$cache/venv-test/bin/python TAPEDECK_SPARK_JARS=$cache/spark-jars SPARK_LOCAL_IP=127.0.0.1
# An error shows its text, not the way it took through the test.
export RUST_LIB_BACKTRACE=0
export PATH=$PATH:$cache/venv-go/bin

say "what the tests need"
step "build tools" scripts/needs.sh build
step "Kafka and S3 servers" scripts/needs.sh servers
perhaps "Azurite" azurite TAPEDECK_STORES_WITHOUT
perhaps "Ceph" ceph TAPEDECK_STORES_WITHOUT
perhaps "RabbitMQ" rabbitmq TAPEDECK_BUSES_WITHOUT
perhaps "Limits of memory" cgroup TAPEDECK_STORES_WITHOUT
step "query engines" scripts/needs.sh python
export TAPEDECK_READERS_WITHOUT=$(cat "$cache/venv-test/.without" 2>/dev/null)
for engine in $TAPEDECK_READERS_WITHOUT; do untested+=("$engine: pip could not install it"); done
step "cargo-deny" scripts/needs.sh deny

say "the code"
step "format" cargo fmt --all -- --check
step "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
step "docs" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
step "licences, sources, walls" "$cache/bin/cargo-deny" --locked check bans licenses sources
advisories

say "the tests"
counted "cargo test" scripts/tests.sh
[ ! -x deploy/test/run.sh ] || counted "deploy" env TAPEDECK_BIN="$target/debug" deploy/test/run.sh

say "all in all, in $((SECONDS / 60)) min $((SECONDS % 60)) s"
[ ${#untested[@]} = 0 ] || printf 'not tested here: %s\n' "${untested[@]}"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
