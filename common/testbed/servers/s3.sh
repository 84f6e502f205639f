#!/bin/bash
# A real S3 server on loopback: versitygw, built by the Go toolchain. Files on disk, signatures checked, conditional writes kept.
#
#   s3.sh fetch|start|stop|kill9|status|wipe
#
#   TAPEDECK_CACHE  where the binary stays           (default ~/.cache/tapedeck)
#   S3_PORT         (default 21900; keep below 32768, the kernel hands out those above)
#   S3_DIR          objects, log and pid of this one (default CACHE/data/s3-PORT); a bucket is a folder under objects/
#
# Keys: tapedeck / tapedeck-secret; guest / guest-secret is a user without any rights. Starting twice is the same as once. `start` returns when the server answers.
set -euo pipefail
version=v1.8.0
port=${S3_PORT:-21900} cache=${TAPEDECK_CACHE:-$HOME/.cache/tapedeck}
dir=${S3_DIR:-$cache/data/s3-$port} bin=$cache/bin/versitygw-$version
pidfile=$dir/pid log=$dir/s3.log

pid() {
  local p
  p=$(cat "$pidfile" 2>/dev/null) && [ -n "$p" ] || return 1
  tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | grep -qF "$dir/objects" && echo "$p"
}

# 403 is an answer too: it asks who we are. No curl: bash opens the socket, so that one tool fewer is needed.
ready() {
  local answer
  exec 8<>"/dev/tcp/127.0.0.1/$port" || return 1
  printf 'GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&8
  read -r -t 2 answer <&8 || answer=
  exec 8>&-
  [[ $answer == HTTP/1.*\ 200* || $answer == HTTP/1.*\ 403* ]]
} 2>/dev/null

fetch() {
  [ -x "$bin" ] && return
  mkdir -p "$cache/bin"
  exec 9>"$cache/s3.lock"
  flock 9
  if [ ! -x "$bin" ]; then
    command -v go >/dev/null || { echo "s3.sh: go is missing (Debian: apt-get install golang)" >&2; exit 1; }
    GOBIN=$cache/bin/new GOFLAGS=-buildvcs=false go install -ldflags='-s -w' "github.com/versity/versitygw/cmd/versitygw@$version" >&2
    mv "$cache/bin/new/versitygw" "$bin"
    rmdir "$cache/bin/new"
  fi
  exec 9>&-
}

start() {
  pid >/dev/null && ready && { echo "s3 already on 127.0.0.1:$port"; return; }
  if ready; then echo "s3.sh: port $port belongs to another server" >&2; exit 1; fi
  fetch
  mkdir -p "$dir/objects" "$dir/iam"
  # One user who owns nothing and may nothing: for tests of missing rights.
  [ -e "$dir/iam/users.json" ] || echo '{"accessAccounts":{"guest":{"access":"guest","secret":"guest-secret","role":"user"}}}' >"$dir/iam/users.json"
  setsid "$bin" --port "127.0.0.1:$port" --access tapedeck --secret tapedeck-secret --region us-east-1 \
    --keep-alive --quiet --iam-dir "$dir/iam" posix "$dir/objects" >>"$log" 2>&1 </dev/null &
  local p=$!
  echo "$p" >"$pidfile"
  for _ in $(seq 400); do
    ready && { echo "s3 (versitygw $version) on http://127.0.0.1:$port, keys tapedeck / tapedeck-secret"; return; }
    kill -0 "$p" 2>/dev/null || break
    sleep 0.05
  done
  tail -20 "$log" >&2
  kill -KILL "$p" 2>/dev/null || true
  rm -f "$pidfile"
  exit 1
}

stop() {
  local p
  p=$(pid) || { rm -f "$pidfile"; echo "s3 not running"; return; }
  kill -TERM "$p"
  for _ in $(seq 200); do [ -d "/proc/$p" ] || break; sleep 0.05; done
  [ -d "/proc/$p" ] && kill -KILL "$p"
  rm -f "$pidfile"
  echo "s3 stopped"
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
status) if p=$(pid) && ready; then echo "s3 up on 127.0.0.1:$port (pid $p)"; else echo "s3 down"; exit 1; fi ;;
wipe) stop; rm -rf "$dir" ;;
*) sed -n "2,/^set/p" "$0" | grep "^#" >&2; exit 2 ;;
esac
