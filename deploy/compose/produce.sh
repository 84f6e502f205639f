#!/bin/bash
# Publishes sample orders and clicks, EVENTS_PER_SECOND of each, until it is stopped (or for SECONDS_MAX seconds).
# A line is key, tab, value: the console producer's own form.
set -euo pipefail
PATH=$PATH:/opt/kafka/bin
broker=${BROKER:-kafka:9092} rate=${EVENTS_PER_SECOND:-100} seconds=${SECONDS_MAX:-0}

orders() {
  awk -v n="$rate" -v from="$1" -v at="$2" 'BEGIN { for (i = from * n; i < (from + 1) * n; i++)
    printf "customer-%d\t{\"order\":%d,\"customer\":%d,\"amount_cents\":%d,\"currency\":\"EUR\",\"at\":\"%s\"}\n", i % 500, i, i % 500, 100 + i * 7919 % 50000, at }'
}

clicks() {
  awk -v n="$rate" -v from="$1" -v at="$2" 'BEGIN { for (i = from * n; i < (from + 1) * n; i++)
    printf "session-%d\t{\"session\":%d,\"page\":\"/item/%d\",\"at\":\"%s\"}\n", i % 2000, i % 2000, i * 31 % 900, at }'
}

each_second() {
  local second
  for ((second = 0; seconds == 0 || second < seconds; second++)); do
    "$1" "$second" "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
    sleep 1
  done
}

publish() {
  kafka-console-producer.sh --bootstrap-server "$broker" --topic "$1" --reader-property parse.key=true
}

# Whichever producer ends first ends the script with its code.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT TERM INT
each_second orders | publish orders &
each_second clicks | publish clicks &
wait -n
[ "$seconds" = 0 ] || wait
