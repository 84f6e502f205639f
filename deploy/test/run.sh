#!/bin/bash
# Checks everything under deploy/ that can be checked without a cluster and without a container engine.
#
#   run.sh           prints one line a check, then "N passed, N failed"; exit 1 if one failed
#   run.sh --bless   writes the golden renders anew; look at the diff before committing it
#
#   TAPEDECK_CACHE   where the Python packages stay          (default ~/.cache/tapedeck)
#   TAPEDECK_BIN     folder of the built archiver, replayer; set, it must hold them. Without it target/debug is looked
#                    into, and checks that need a program that is not there are named as not run
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${TAPEDECK_CACHE:-$HOME/.cache/tapedeck} venv=$cache/venv-deploy
wanted=$(sha256sum <"$here/requirements.txt")

if [ "$(cat "$venv/.complete" 2>/dev/null)" != "$wanted" ]; then
  mkdir -p "$cache"
  exec 9>"$cache/venv-deploy.lock"
  flock 9
  if [ "$(cat "$venv/.complete" 2>/dev/null)" != "$wanted" ]; then
    python3 -m venv "$venv" || { echo "deploy/test: python3-venv is missing (Debian: apt-get install python3-venv)" >&2; exit 1; }
    "$venv/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt" >&2
    echo "$wanted" >"$venv/.complete"
  fi
  exec 9>&-
fi

export PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" "$here/check.py" "$@"
