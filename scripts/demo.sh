#!/bin/bash
# The whole story in two minutes, nothing to install: events on a bus, archived, looked at, replayed at a rate, proved.
#
#   demo.sh             a mock broker inside a small program of ours: no Java, but no transactions and about 5 MiB a partition
#   BUS=kafka demo.sh   the same on a real Apache Kafka (fetched into the cache; needs Java and Maven)
#
# Everything lies under target/demo and stays there to be looked at; every process is stopped at the end.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

bus=${BUS:-playground}
place=$target/demo
events=40000 rate=2000
pids=()

stop_all() {
  local pid
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  [ "$bus" != kafka ] || KAFKA_DIR=$place/kafka KAFKA_PORT=$port common/testbed/servers/kafka.sh kill9 || true
}
trap stop_all EXIT

# show COMMAND...: prints a command as one would type it, then does it.
show() { printf '%s$ %s%s\n' "$dim" "$*" "$plain"; "$@"; }

# patience SECONDS WHAT COMMAND...: until the command succeeds.
patience() {
  local left=$(($1 * 5)) what=$2
  shift 2
  until "$@"; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || { tail -n 20 "$place"/*.log >&2; fail "waited in vain for $what"; }
    sleep 0.2
  done
}

free_port() {
  local port=$1
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 2)); done
  echo "$port"
}

archived() {
  local sum
  sum=$(archiver status "$archive" --json 2>/dev/null | sed -n 's/^ *"events": *\([0-9]*\).*/\1/p' | awk '{ sum += $1 } END { print sum + 0 }')
  [ "$sum" -ge "$events" ]
}

duckdb_python() {
  local python
  for python in "$cache/venv-test/bin/python" python3; do
    "$python" -c 'import duckdb' 2>/dev/null && { echo "$python"; return; }
  done
  return 1
}

say "Building (the first time takes some minutes)"
scripts/needs.sh build
# All programs at once: with some of them alone, cargo would choose other features and build the libraries once more.
cargo build --release --locked -q --workspace --bins
export PATH=$target/release:$PATH
began=$SECONDS
rm -rf "$place"
mkdir -p "$place"
archive=file://$place/archive

case $bus in
playground)
  say "A bus with $events events of the last six hours: JSON, Protobuf, Avro, tombstones"
  playground --events "$events" --side-topics orders.replay.demo,clicks.replay.demo --address-file "$place/broker" >"$place/playground.log" 2>&1 &
  pids+=($!)
  patience 60 "the broker" test -s "$place/broker"
  broker=$(cat "$place/broker")
  cat "$place/playground.log" ;;
kafka)
  say "A real Kafka with $events events of the last six hours: JSON, Protobuf, Avro, tombstones"
  port=$(free_port 21392)
  scripts/needs.sh servers
  KAFKA_DIR=$place/kafka KAFKA_PORT=$port common/testbed/servers/kafka.sh start
  broker=127.0.0.1:$port
  playground --events "$events" --into "$broker" ;;
*) fail "BUS=$bus? playground or kafka" ;;
esac

cat >"$place/archiver.yaml" <<Y
archive: { url: "$archive" }
sources:
  - name: shop
    kafka:
      brokers: ["$broker"]
      group: tapedeck-demo
      topics: [orders, clicks, payments-proto, inventory-avro]
seal: { max_age: 2s }
admin: { listen: "127.0.0.1:$(free_port 29464)" }
Y
say "Archive it"
cat "$place/archiver.yaml"
printf '%s$ archiver run -c archiver.yaml &%s\n' "$dim" "$plain"
archiver --log-format text run -c "$place/archiver.yaml" >"$place/archiver.log" 2>&1 &
archiver_pid=$!
pids+=("$archiver_pid")
patience 60 "$events events in the archive" archived

say "What is there now"
show archiver status "$archive"

say "Is it whole?"
show archiver verify "$archive" --deep

say "Ordinary Parquet under a Delta log: ask it anything"
if python=$(duckdb_python); then
  archiver sql "$archive" --engine duckdb --table orders --files >"$place/orders.files"
  query="select hour, count(*) as events, round(sum((decode(value)::json->'order'->>'total')::double)) as turnover
from read_parquet(\$files) where value is not null group by hour order by hour"
  echo "$query"
  "$python" - "$place/orders.files" "$query" <<'P'
import sys, duckdb
files = [line.strip().removeprefix("file://") for line in open(sys.argv[1])]
duckdb.sql(sys.argv[2], params={"files": files}).show()
P
else
  echo "(DuckDB is not here; pip install duckdb, or see docs/querying.md for Polars and Spark)"
fi

say "Replay the last three hours of orders and clicks to side topics, at $rate events a second"
show replayer plan --archive "$archive" --topic orders --topic clicks --from -3h --to "kafka://$broker" --rate "$rate/s" -o "$place/plan.json"
show replayer run "$place/plan.json" --job demo --yes

say "Did everything arrive, once, in order?"
show replayer verify demo --archive "$archive"

kill -TERM "$archiver_pid"
wait "$archiver_pid" || true
say "Done in $((SECONDS - began)) s after the build. Everything lies in ${place#"$root"/}. To try next:"
cat <<T
  export PATH=$target/release:\$PATH
  archiver sql $archive --engine polars
  replayer cat --archive $archive --topic orders --from -1h | head -3
  replayer list --archive $archive
  BUS=kafka make demo        the same on a real Kafka
  docs/querying.md           DuckDB, Polars, Spark
T
