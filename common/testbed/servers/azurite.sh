#!/bin/bash
# Azurite, Microsoft's own emulator of Azure Blob Storage, on loopback: conditional writes kept, keys checked.
#
#   azurite.sh fetch|start|stop|kill9|status|wipe
#
#   TAPEDECK_CACHE  where the package stays           (default ~/.cache/tapedeck)
#   AZURITE_PORT    (default 21960; keep below 32768, the kernel hands out those above)
#   AZURITE_DIR     objects, log and pid of this one  (default CACHE/data/azurite-PORT)
#
# Account devstoreaccount1 with the key that every emulator has; container `events`. Needs Node.js and npm.
set -euo pipefail
version=3.37.0
port=${AZURITE_PORT:-21960} cache=${TAPEDECK_CACHE:-$HOME/.cache/tapedeck}
dir=${AZURITE_DIR:-$cache/data/azurite-$port} package=$cache/azurite-$version
pidfile=$dir/pid log=$dir/azurite.log

pid() {
  local p
  p=$(cat "$pidfile" 2>/dev/null) && [ -n "$p" ] || return 1
  tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | grep -qF "$dir/objects" && echo "$p"
}

# Any answer will do: without a signature it is a refusal.
ready() {
  local answer
  exec 8<>"/dev/tcp/127.0.0.1/$port" || return 1
  printf 'GET /devstoreaccount1?comp=list HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&8
  read -r -t 2 answer <&8 || answer=
  exec 8>&-
  [[ $answer == HTTP/1.* ]]
} 2>/dev/null

fetch() {
  [ -e "$package/.complete" ] && return
  mkdir -p "$cache"
  exec 9>"$cache/azurite.lock"
  flock 9
  if [ ! -e "$package/.complete" ]; then
    command -v npm >/dev/null || { echo "azurite.sh: npm is missing (Debian: apt-get install npm)" >&2; exit 1; }
    rm -rf "$package"
    mkdir -p "$package"
    npm install --prefix "$package" --omit=dev --no-audit --no-fund --loglevel=error "azurite@$version" >&2
    touch "$package/.complete"
  fi
  exec 9>&-
}

# The one request that needs a signature: PUT of the container.
container() {
  node - "$port" <<'N'
const crypto = require("crypto"), http = require("http");
const port = process.argv[2], account = "devstoreaccount1", container = "events";
const key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const headers = { "x-ms-date": new Date().toUTCString(), "x-ms-version": "2021-12-02" };
const named = Object.keys(headers).sort().map((name) => `${name}:${headers[name]}\n`).join("");
const text = `PUT${"\n".repeat(12)}${named}/${account}/${account}/${container}\nrestype:container`;
const signature = crypto.createHmac("sha256", Buffer.from(key, "base64")).update(text).digest("base64");
headers.Authorization = `SharedKey ${account}:${signature}`;
headers["Content-Length"] = 0;
const options = { host: "127.0.0.1", port, method: "PUT", path: `/${account}/${container}?restype=container`, headers };
http.request(options, (answer) => {
  answer.resume();
  // 409: it is there already.
  process.exitCode = [201, 409].includes(answer.statusCode) ? 0 : 1;
  if (process.exitCode) console.error(`no container: ${answer.statusCode}`);
}).end();
N
}

start() {
  pid >/dev/null && ready && { echo "azurite already on 127.0.0.1:$port"; return; }
  if ready; then echo "azurite.sh: port $port belongs to another server" >&2; exit 1; fi
  fetch
  mkdir -p "$dir/objects"
  # The client is newer than the versions of the interface that the emulator knows by name.
  setsid node "$package/node_modules/azurite/dist/src/blob/main.js" --silent --disableTelemetry --skipApiVersionCheck \
    --location "$dir/objects" --blobHost 127.0.0.1 --blobPort "$port" >>"$log" 2>&1 </dev/null &
  local p=$!
  echo "$p" >"$pidfile"
  for _ in $(seq 400); do
    if ready; then
      container
      echo "azurite $version on http://127.0.0.1:$port, account devstoreaccount1"
      return
    fi
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
  p=$(pid) || { rm -f "$pidfile"; echo "azurite not running"; return; }
  kill -TERM "$p"
  for _ in $(seq 200); do [ -d "/proc/$p" ] || break; sleep 0.05; done
  [ -d "/proc/$p" ] && kill -KILL "$p"
  rm -f "$pidfile"
  echo "azurite stopped"
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
status) if p=$(pid) && ready; then echo "azurite up on 127.0.0.1:$port (pid $p)"; else echo "azurite down"; exit 1; fi ;;
wipe) stop; rm -rf "$dir" ;;
*) sed -n "2,/^set/p" "$0" | grep "^#" >&2; exit 2 ;;
esac
