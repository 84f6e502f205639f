#!/bin/bash
# Unpacks packages of another Debian suite, with all that they depend on, into a folder of their own.
#
#   debroot.sh SUITE FOLDER PACKAGE...
#
# Needs root, apt and dpkg-deb. No script of a package runs, no service starts, the machine's own packages stay as they are.
# Doing it twice does nothing. DEBIAN_MIRROR names the mirror (default: the machine's own).
set -euo pipefail
suite=$1 folder=$2
shift 2
[ "$(cat "$folder/.complete" 2>/dev/null)" != "$suite $*" ] || exit 0

apt=$folder.apt
rm -rf "$folder" "$apt"
mkdir -p "$folder" "$apt"/{lists/partial,cache/archives/partial}
sources=(/etc/apt/sources.list.d/debian.sources /etc/apt/sources.list)
mirror=${DEBIAN_MIRROR:-$(sed -nE 's/^(URIs: *|deb +(\[[^]]*\] +)?)(https?:[^ ]*).*/\3/p' "${sources[@]}" 2>/dev/null | head -1 || true)}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -n "$mirror" ] && [ -e "$keyring" ] || { echo "debroot.sh: neither a Debian mirror nor its keyring is known here" >&2; exit 1; }
echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
: >"$apt/status" # nothing is installed there, so everything that is needed is fetched

# A suite that moves has release files that expire.
options=(-qq -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$apt/lists"
  -o Dir::Cache="$apt/cache" -o Dir::State::status="$apt/status" -o APT::Install-Recommends=false -o APT::Sandbox::User=root
  -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o Debug::NoLocking=1)
apt-get "${options[@]}" update
apt-get "${options[@]}" -y --download-only install "$@" >/dev/null

for name in bin lib lib64 sbin; do mkdir -p "$folder/usr/$name"; ln -s "usr/$name" "$folder/$name"; done
for package in "$apt"/cache/archives/*.deb; do
  dpkg-deb --fsys-tarfile "$package" | tar -x -C "$folder" --no-same-owner --keep-directory-symlink \
    --exclude=./usr/share/man --exclude=./usr/share/doc --exclude=./usr/share/locale
done
mkdir -p "$folder"/{proc,dev,tmp,etc,data,root}
echo 'root:x:0:0::/root:/bin/sh' >"$folder/etc/passwd"
echo 'root:x:0:' >"$folder/etc/group"
echo '127.0.0.1 localhost' >"$folder/etc/hosts"
rm -rf "$apt"
echo "$suite $*" >"$folder/.complete"
