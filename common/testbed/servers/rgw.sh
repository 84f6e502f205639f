#!/bin/bash
# A real Ceph on loopback: monitor, one OSD on a file, and its S3 gateway. From Debian's packages, in a root of their own.
#
#   rgw.sh fetch|start|stop|kill9|status|wipe
#
#   RGW_KIND        rados   mon, osd and gateway, as they are run by everybody            (default)
#                   dbstore the gateway alone over SQLite, an experiment of Ceph's: it ignores conditional writes
#   TAPEDECK_CACHE  where the packages are unpacked  (default ~/.cache/tapedeck)
#   RGW_PORT        the monitor takes the next one   (default 21930; keep below 32768, the kernel hands out those above)
#   RGW_DIR         data, logs and pid of this one   (default CACHE/data/rgw-PORT)
#
# Keys: tapedeck / tapedeck-secret; bucket `events`. Needs root: it mounts, in a mount namespace that goes with the server.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
suite=sid kind=${RGW_KIND:-rados}
port=${RGW_PORT:-21930} cache=${TAPEDECK_CACHE:-$HOME/.cache/tapedeck}
dir=${RGW_DIR:-$cache/data/rgw-$port} root=$cache/rgw-$suite
pidfile=$dir/pid url=http://127.0.0.1:$port

# The process that is first in the namespace: with it goes everything.
pid() {
  local p
  p=$(cat "$pidfile" 2>/dev/null) && [ -n "$p" ] || return 1
  tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | grep -qF /data/inside.sh && echo "$p"
}

ready() {
  local answer
  [ -e "$dir/user" ] || return 1
  exec 8<>"/dev/tcp/127.0.0.1/$port" || return 1
  printf 'GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&8
  read -r -t 2 answer <&8 || answer=
  exec 8>&-
  [[ $answer == HTTP/1.*\ 200* || $answer == HTTP/1.*\ 403* ]]
} 2>/dev/null

fetch() {
  mkdir -p "$cache"
  exec 9>"$cache/rgw.lock"
  flock 9
  "$here/debroot.sh" "$suite" "$root" radosgw ceph-mon ceph-osd curl dash bash coreutils >&2
  exec 9>&-
}

configuration() {
  cat <<C
[global]
fsid = $(cat "$dir/fsid")
mon_host = [v2:127.0.0.1:$((port + 1))/0]
mon_initial_members = a
keyring = /data/keyring
osd_pool_default_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
osd_crush_chooseleaf_type = 0
ms_bind_ipv6 = false
ms_bind_port_min = 11000
ms_bind_port_max = 11999
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
run_dir = /data/run
log_file = /data/log/\$name.log
admin_socket = /data/run/\$name.asok
mon_data = /data/mon
osd_data = /data/osd
osd_class_dir = /usr/lib/$(uname -m)-linux-gnu/rados-classes
bluestore_block_size = 8589934592
osd_memory_target = 939524096
rgw_data = /data/rgw
rgw_dns_name = localhost
rgw_frontends = beast endpoint=127.0.0.1:$port
C
  [ "$kind" = rados ] || printf 'rgw_backend_store = dbstore\nrgw_config_store = dbstore\ndbstore_db_dir = /data/rgw\ndbstore_config_uri = file:/data/rgw/config.db\n'
}

# What runs inside: keys and stores are made once, then the daemons until TERM. One keyring serves all.
inside() {
  cat <<'I'
set -e
cd /data
C="-c /data/ceph.conf" U="--setuser root --setgroup root" MON= OSD=
trap 'kill $RGW 2>/dev/null; sleep 0.3; kill $OSD 2>/dev/null; wait $OSD; kill $MON 2>/dev/null; exit 0' TERM
if [ "$1" = rados ]; then
  if [ ! -e mon/kv_backend ]; then
    ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *'
    ceph-authtool keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    ceph-authtool keyring --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
    ceph-authtool keyring --gen-key -n client.rgw.a --cap mon 'allow rw' --cap osd 'allow rwx'
    monmaptool --create --clobber --fsid "$(cat fsid)" --addv a "$(cat addr)" monmap
    ceph-mon $C --mkfs -i a --monmap monmap --keyring keyring
  fi
  ceph-mon $C -f -i a $U & MON=$!
  if [ ! -e osd/ready ]; then
    id=$(cat /proc/sys/kernel/random/uuid)
    timeout 60 ceph $C osd new "$id" 0
    ceph-osd $C -i 0 --mkfs --osd-uuid "$id" $U
    touch osd/ready
  fi
  ceph-osd $C -f -i 0 $U & OSD=$!
fi
user() {
  timeout 90 radosgw-admin $C user create --uid=tapedeck --display-name=tapedeck --access-key=tapedeck --secret-key=tapedeck-secret >/dev/null
}
# Over SQLite the user must be there first, since nobody else may open the file later.
if [ "$1" = dbstore ] && [ ! -e user ]; then user; touch user; fi
radosgw $C -f -n client.rgw.a $U & RGW=$!
[ -e user ] || { user && touch user; }
while kill -0 $RGW $OSD $MON; do wait -n || true; done
exit 1
I
}

start() {
  local p
  pid >/dev/null && ready && { echo "rgw already on $url"; return; }
  if p=$(pid); then kill -KILL "$p"; fi # half dead: it goes as a whole
  [ "$(id -u)" = 0 ] || { echo "rgw.sh: Ceph runs in a root of its own here, which only root can mount" >&2; exit 1; }
  fetch
  mkdir -p "$dir"/{mon,osd,rgw,run,log}
  rm -f "$dir"/run/*
  [ -e "$dir/fsid" ] || cat /proc/sys/kernel/random/uuid >"$dir/fsid"
  echo "[v2:127.0.0.1:$((port + 1))]" >"$dir/addr"
  configuration >"$dir/ceph.conf"
  inside >"$dir/inside.sh"
  setsid unshare -m -p -f --kill-child=SIGTERM bash -c '
    read -r p _ </proc/self/stat; echo "$p" >"$2/pid"
    mount --bind /dev "$1/dev"; mount -t proc proc "$1/proc"; mount --bind "$2" "$1/data"
    exec chroot "$1" /usr/bin/env -i PATH=/usr/bin:/usr/sbin:/bin HOME=/data LC_ALL=C bash /data/inside.sh "$3"' \
    _ "$root" "$dir" "$kind" >"$dir/log/console" 2>&1 </dev/null &
  local started=$!
  for _ in $(seq 500); do
    if ready && bucket; then echo "rgw ($kind, Ceph of Debian $suite) on $url, keys tapedeck / tapedeck-secret"; return; fi
    kill -0 "$started" 2>/dev/null || break
    sleep 0.2
  done
  tail -20 "$dir/log/console" >&2
  if p=$(pid); then kill -KILL "$p"; fi
  exit 1
}

bucket() {
  chroot "$root" /usr/bin/curl -fso /dev/null -m 20 -X PUT --user tapedeck:tapedeck-secret --aws-sigv4 aws:amz:us-east-1:s3 "$url/events"
}

stop() {
  local p
  p=$(pid) || { rm -f "$pidfile"; echo "rgw not running"; return; }
  kill -TERM "$p"
  for _ in $(seq 150); do [ -d "/proc/$p" ] || break; sleep 0.1; done
  [ -d "/proc/$p" ] && kill -KILL "$p"
  rm -f "$pidfile"
  echo "rgw stopped"
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
status) if p=$(pid) && ready; then echo "rgw up on $url (pid $p)"; else echo "rgw down"; exit 1; fi ;;
wipe) stop; rm -rf "$dir" ;;
*) sed -n "2,/^set/p" "$0" | grep "^#" >&2; exit 2 ;;
esac
