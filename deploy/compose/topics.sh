#!/bin/bash
# Makes the sample topics. Doing it again changes nothing.
set -euo pipefail
PATH=$PATH:/opt/kafka/bin
for topic in orders clicks; do
  kafka-topics.sh --bootstrap-server "${BROKER:-kafka:9092}" --create --if-not-exists --topic "$topic" --partitions 4 --replication-factor 1
done
