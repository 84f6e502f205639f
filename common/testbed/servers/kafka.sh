#!/bin/bash
# A real Apache Kafka on loopback: one KRaft process (broker and controller), out of Maven artifacts. Needs mvn and Java 17.
#
#   kafka.sh fetch|start|stop|kill9|status|wipe|run CLASS [ARGS]
#
#   TAPEDECK_CACHE  where the jars stay             (default ~/.cache/tapedeck)
#   KAFKA_PORT      broker; the controller has +1   (default 21092; keep below 32768, the kernel hands out those above)
#   KAFKA_DIR       data, log and pid of this one   (default CACHE/data/kafka-PORT)
#   KAFKA_HEAP      Java heap                       (default 512m)
#   KAFKA_DOOR      one more listener, as LISTENS:ADVERTISED, two ports of this machine; what is between them is not our business
#   KAFKA_EXTRA     more server properties, one "key=value" a line
#
# Starting twice is the same as once. `start` returns when the broker answers; `kill9` is the power cut of the tests.
set -euo pipefail
version=4.3.1 log4j=2.25.4
port=${KAFKA_PORT:-21092} cache=${TAPEDECK_CACHE:-$HOME/.cache/tapedeck}
dir=${KAFKA_DIR:-$cache/data/kafka-$port} heap=${KAFKA_HEAP:-512m} libs=$cache/kafka-$version
pidfile=$dir/pid log=$dir/kafka.log
here=$(cd "$(dirname "$0")" && pwd)

# The pid of our broker; the command line is compared too, since pids come round again.
pid() {
  local p
  p=$(cat "$pidfile" 2>/dev/null) && [ -n "$p" ] || return 1
  tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | grep -qF "kafka.Kafka $dir/" && echo "$p"
}

fetch() {
  [ -e "$libs/.complete" ] && return
  mkdir -p "$cache"
  exec 9>"$cache/kafka.lock"
  flock 9
  if [ ! -e "$libs/.complete" ]; then
    command -v mvn >/dev/null || { echo "kafka.sh: mvn is missing (Debian: apt-get install maven openjdk-17-jre-headless)" >&2; exit 1; }
    local pom=$cache/kafka-pom
    mkdir -p "$libs" "$pom"
    sed -e "s/@KAFKA@/$version/" -e "s/@LOG4J@/$log4j/" "$here/kafka-pom.xml" >"$pom/pom.xml"
    # Three tries: a registry drops a connection now and then.
    for _ in 1 2 3; do
      mvn -B -q -f "$pom/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$libs" >&2 && { touch "$libs/.complete"; break; }
    done
    [ -e "$libs/.complete" ] || { echo "kafka.sh: the Kafka jars could not be fetched" >&2; exit 1; }
    record_classes || echo "kafka.sh: no class archive; each start will take a little longer" >&2
  fi
  exec 9>&-
}

# One start and stop on trial leaves the JVM an archive of parsed classes. Each later start then costs half the CPU;
# without the archive, or with one of another Java, it is merely slower.
record_classes() (
  dir=$(mktemp -d) log=$dir/kafka.log
  trap 'rm -rf "$dir"' EXIT
  configure
  format
  java_options="-Xmx512m -XX:ArchiveClassesAtExit=$libs/new.jsa" java_run kafka.Kafka "$dir/server.properties" >"$log" 2>&1 </dev/null &
  for _ in $(seq 1200); do
    grep -q 'Kafka Server started' "$log" && break
    kill -0 $! 2>/dev/null || exit 1
    sleep 0.05
  done
  kill -TERM $!
  wait $! || true
  mv "$libs/new.jsa" "$libs/kafka.jsa"
)

format() {
  (java_options="-Xmx128m -XX:TieredStopAtLevel=1" java_run kafka.tools.StorageTool format --ignore-formatted \
    -t AAAAAAAAAAAAAAAAAAAAAQ -c "$dir/server.properties") >"$dir/format.log" 2>&1 || { cat "$dir/format.log" >&2; exit 1; }
}

configure() {
  cat >"$dir/server.properties" <<P
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))${KAFKA_DOOR:+,DOOR://127.0.0.1:${KAFKA_DOOR%:*}}
advertised.listeners=PLAINTEXT://127.0.0.1:$port${KAFKA_DOOR:+,DOOR://127.0.0.1:${KAFKA_DOOR#*:}}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT${KAFKA_DOOR:+,DOOR:PLAINTEXT}
controller.listener.names=CONTROLLER
log.dirs=$dir/data
auto.create.topics.enable=false
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=300
log.segment.bytes=268435456
log.retention.ms=-1
log.cleaner.dedupe.buffer.size=4194304
P
  printf '%s\n' "${KAFKA_EXTRA:-}" >>"$dir/server.properties"
  cat >"$dir/log4j2.xml" <<'P'
<Configuration status="warn"><Appenders><Console name="c"><PatternLayout pattern="%d{HH:mm:ss.SSS} %p %c{1} %m%n"/></Console></Appenders>
<Loggers><Logger name="kafka.server.KafkaRaftServer" level="info"/><Root level="warn"><AppenderRef ref="c"/></Root></Loggers></Configuration>
P
}

java_run() { exec java $java_options "-Dlog4j2.configurationFile=$dir/log4j2.xml" -cp "$libs/*" "$@"; }

start() {
  pid >/dev/null && { echo "kafka already on 127.0.0.1:$port"; return; }
  fetch
  mkdir -p "$dir"
  configure
  # Formatting costs a JVM (two seconds), so only the first time.
  [ -e "$dir/data/meta.properties" ] || format
  : >"$log"
  setsid java "-Xms$heap" "-Xmx$heap" -XX:+UseG1GC -XX:+ExitOnOutOfMemoryError "-XX:SharedArchiveFile=$libs/kafka.jsa" \
    "-Dlog4j2.configurationFile=$dir/log4j2.xml" -cp "$libs/*" kafka.Kafka "$dir/server.properties" </dev/null >"$log" 2>&1 &
  local p=$!
  echo "$p" >"$pidfile"
  for _ in $(seq 1200); do
    grep -q 'Kafka Server started' "$log" && { echo "kafka $version on 127.0.0.1:$port"; return; }
    kill -0 "$p" 2>/dev/null || break
    sleep 0.05
  done
  tail -30 "$log" >&2
  kill -KILL "$p" 2>/dev/null || true
  rm -f "$pidfile"
  exit 1
}

stop() {
  local p
  p=$(pid) || { rm -f "$pidfile"; echo "kafka not running"; return; }
  kill -TERM "$p"
  for _ in $(seq 600); do [ -d "/proc/$p" ] || break; sleep 0.05; done
  [ -d "/proc/$p" ] && kill -KILL "$p"
  rm -f "$pidfile"
  echo "kafka stopped"
}

case ${1:-} in
fetch) fetch ;;
start) start ;;
stop) stop ;;
kill9)
  p=$(pid) || exit 0
  kill -KILL "$p"
  while [ -d "/proc/$p" ]; do sleep 0.01; done
  rm -f "$pidfile" ;;
status) if p=$(pid); then echo "kafka up on 127.0.0.1:$port (pid $p)"; else echo "kafka down"; exit 1; fi ;;
wipe) stop; rm -rf "$dir" ;;
run) shift; fetch; mkdir -p "$dir"; [ -e "$dir/log4j2.xml" ] || configure; java_options=-Xmx256m java_run "$@" ;;
*) sed -n "2,/^set/p" "$0" | grep "^#" >&2; exit 2 ;;
esac
