#!/bin/bash
# A real RabbitMQ on loopback: AMQP, streams and management, each with and without TLS. From Debian's packages, in a root of their own.
#
#   rabbitmq.sh fetch|start|stop|kill9|status|wipe|ctl ARGUMENTS
#
#   RABBITMQ_SUITE  the Debian suite: sid (4.3, default), trixie (4.0) or bookworm (3.10)
#   TAPEDECK_CACHE  where the packages are unpacked   (default ~/.cache/tapedeck)
#   RABBITMQ_PORT   AMQP; seven more ports follow it  (default 21672; keep below 32768, the kernel hands out those above)
#   RABBITMQ_DIR    data, log, pid and certificates   (default CACHE/data/rabbitmq-PORT)
#   RABBITMQ_CONF   more lines of rabbitmq.conf
#
# User guest / guest. `ctl` is rabbitmqctl: a second Erlang VM and a second of time, so only for what management cannot do.
# In DIR/tls lie ca.pem, server.pem and client.pem with their keys; a client certificate logs in as the user `client`, if there is
# one, by EXTERNAL. `kill9` is the power cut of the tests. Needs root: it mounts, in a mount namespace that goes with the server.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
suite=${RABBITMQ_SUITE:-sid}
port=${RABBITMQ_PORT:-21672} cache=${TAPEDECK_CACHE:-$HOME/.cache/tapedeck}
dir=${RABBITMQ_DIR:-$cache/data/rabbitmq-$port} root=$cache/rabbitmq-$suite
stream=$((port + 1)) management=$((port + 2)) metrics=$((port + 3)) distribution=$((port + 4)) epmd=$((port + 5))
tls=$((port + 6)) stream_tls=$((port + 7))
pidfile=$dir/pid node=rabbit-$port@localhost

# The process that is first in the namespace: with it goes everything. When it began is compared too, since pids come round again.
pid() {
  local p began stat
  read -r p began <"$pidfile" && read -r -a stat <"/proc/$p/stat" && [ "${stat[21]}" = "$began" ] && echo "$p"
} 2>/dev/null

# One question to the management API, without a client and without a second Erlang VM.
healthy() {
  local answer
  exec 8<>"/dev/tcp/127.0.0.1/$management" || return 1
  printf 'GET /api/health/checks/%s HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\r\n' "$1" >&8
  read -r -t 5 answer <&8 || answer=
  exec 8>&-
  [[ $answer == HTTP/1.*\ 200* ]]
} 2>/dev/null

ready() { healthy "port-listener/$port" && healthy "port-listener/$stream" && healthy virtual-hosts; }

# One lock for each suite: brokers share the unpacked root.
fetch() {
  mkdir -p "$cache"
  exec 9>"$cache/rabbitmq-$suite.lock"
  flock 9
  "$here/debroot.sh" "$suite" "$root" rabbitmq-server dash coreutils sed grep >&2
  exec 9>&-
}

version() { basename "$root"/usr/lib/rabbitmq/lib/rabbitmq_server-* | sed 's/.*-//'; }

certificates() {
  local make='openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30'
  local signed='-CA ca.pem -CAkey ca.key -addext basicConstraints=critical,CA:FALSE'
  mkdir -p "$dir/tls"
  (
    cd "$dir/tls"
    $make -keyout ca.key -out ca.pem -subj '/CN=tapedeck tests'
    $make $signed -keyout server.key -out server.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1
    $make $signed -keyout client.key -out client.pem -subj /CN=client
    touch .complete
  ) 2>"$dir/log/openssl" || { cat "$dir/log/openssl" >&2; exit 1; }
}

configuration() {
  cat <<C
listeners.tcp.local = 127.0.0.1:$port
listeners.ssl.local = 127.0.0.1:$tls
ssl_options.cacertfile = /data/tls/ca.pem
ssl_options.certfile = /data/tls/server.pem
ssl_options.keyfile = /data/tls/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
stream.listeners.tcp.local = 127.0.0.1:$stream
stream.listeners.ssl.local = 127.0.0.1:$stream_tls
stream.advertised_host = 127.0.0.1
stream.advertised_port = $stream
stream.advertised_tls_port = $stream_tls
management.tcp.ip = 127.0.0.1
management.tcp.port = $management
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = $metrics
collect_statistics_interval = 1000
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 1GB
raft.wal_max_size_bytes = 67108864
log.console = true
log.file = false
C
  printf '%s\n' "${RABBITMQ_CONF:-}"
}

# What the broker and rabbitmqctl must agree on.
surroundings() {
  printf '%s\n' PATH=/usr/bin:/bin HOME=/data LANG=C.UTF-8 ERL_EPMD_PORT="$epmd" ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_NODENAME="$node" \
    RABBITMQ_DIST_PORT="$distribution" RABBITMQ_CONFIG_FILE=/data/rabbitmq.conf RABBITMQ_ADVANCED_CONFIG_FILE=/data/advanced.config \
    RABBITMQ_ENABLED_PLUGINS_FILE=/data/enabled_plugins RABBITMQ_MNESIA_BASE=/data/mnesia RABBITMQ_LOG_BASE=/data/log
}

configure() {
  mkdir -p "$dir"/{mnesia,log}
  [ -e "$dir/tls/.complete" ] || certificates
  configuration >"$dir/rabbitmq.conf"
  # What management says of queues and connections is a second old at most: all that gathers it does so each second.
  cat >"$dir/advanced.config" <<'C'
[{rabbit, [{quorum_tick_interval, 1000}]},
 {rabbitmq_management, [{sample_retention_policies, [{global, [{60, 1}]}, {basic, [{60, 1}]}, {detailed, [{60, 1}]}]}]}].
C
  echo '[rabbitmq_management,rabbitmq_stream,rabbitmq_stream_management,rabbitmq_prometheus,rabbitmq_auth_mechanism_ssl].' \
    >"$dir/enabled_plugins"
}

start() {
  local p
  pid >/dev/null && ready && { echo "rabbitmq already on 127.0.0.1:$port"; return; }
  if p=$(pid); then kill -KILL "$p"; fi # half dead: it goes as a whole
  [ "$(id -u)" = 0 ] || { echo "rabbitmq.sh: RabbitMQ runs in a root of its own here, which only root can mount" >&2; exit 1; }
  fetch
  configure
  mapfile -t surroundings < <(surroundings)
  # Erlang's schedulers spin while they wait unless they are told not to; and `exec` keeps the pid that is written down first.
  setsid unshare -m -p -f --kill-child=SIGTERM bash -c '
    read -r -a stat </proc/self/stat; echo "${stat[0]} ${stat[21]}" >"$2/pid"
    mount --bind /dev "$1/dev"; mount -t proc proc "$1/proc"; mount --bind "$2" "$1/data"
    exec chroot "$1" /usr/bin/env -i "${@:3}" RUNNING_UNDER_SYSTEMD=true \
      RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}" \
      /usr/lib/rabbitmq/bin/rabbitmq-server' _ "$root" "$dir" "${surroundings[@]}" >"$dir/log/console" 2>&1 </dev/null &
  local started=$!
  for _ in $(seq 600); do
    if ready; then echo "rabbitmq $(version) (Debian $suite) on 127.0.0.1:$port, management $management"; return; fi
    kill -0 "$started" 2>/dev/null || break
    sleep 0.1
  done
  tail -20 "$dir/log/console" >&2
  if p=$(pid); then kill -KILL "$p"; fi
  exit 1
}

stop() {
  local p
  p=$(pid) || { rm -f "$pidfile"; echo "rabbitmq not running"; return; }
  kill -TERM "$p"
  for _ in $(seq 300); do [ -d "/proc/$p" ] || break; sleep 0.05; done
  [ -d "/proc/$p" ] && kill -KILL "$p"
  rm -f "$pidfile"
  echo "rabbitmq stopped"
}

ctl() {
  local p
  p=$(pid) || { echo "rabbitmq.sh: no broker runs on $port" >&2; exit 1; }
  mapfile -t surroundings < <(surroundings)
  exec nsenter -t "$p" -m -p -r -w /usr/bin/env -i "${surroundings[@]}" /usr/lib/rabbitmq/bin/rabbitmqctl "$@"
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
status) if p=$(pid) && ready; then echo "rabbitmq up on 127.0.0.1:$port (pid $p)"; else echo "rabbitmq down"; exit 1; fi ;;
wipe) stop; rm -rf "$dir" ;;
ctl) shift; ctl "$@" ;;
*) sed -n "2,/^set/p" "$0" | grep "^#" >&2; exit 2 ;;
esac
