#!/bin/bash
# The RabbitMQ tests on older brokers too: 4.0 of Debian trixie, 3.10 of bookworm. `make test` has the newest.
#
#   compat.sh [SUITE...]
#
# Runs every test program whose name begins with `rabbit`. Code 3 means that this machine cannot hold a RabbitMQ.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || set -- trixie bookworm
code=0
for suite; do
  say "RabbitMQ of Debian $suite"
  export RABBITMQ_SUITE=$suite
  scripts/needs.sh rabbitmq
  cargo test --workspace --locked --no-fail-fast --test 'rabbit*' || code=1
done
exit "$code"
