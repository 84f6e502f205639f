# Sourced by the other scripts: where things are, and how they speak.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${TAPEDECK_CACHE:-$HOME/.cache/tapedeck}
export TAPEDECK_CACHE=$cache
mkdir -p "$cache"
cd "$root"

# A clone made for one run still profits from the build before it.
if [ "${CI:-}" = true ]; then export CARGO_TARGET_DIR=$cache/target; fi
target=${CARGO_TARGET_DIR:-$root/target}

# Bold on a terminal, plain in a file.
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }
