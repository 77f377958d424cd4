#!/usr/bin/env bash
# docker.sh DIR: Docker Engine from Debian's packages, unpacked into DIR and not
# installed, so that no daemon of the machine's own starts or is disturbed.
set -euo pipefail

packages=(docker.io containerd runc tini libdevmapper1.02.1)

apt-cache show "${packages[@]}" >/dev/null 2>&1 || apt-get update -q
versions=$(apt-cache policy "${packages[@]}" | grep -E '^[a-z]|Candidate' || true)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
stamp="$dir/.stamp.$(sha256sum <<<"$versions" | cut -c1-16)"
if [ -e "$stamp" ]; then
	exit 0
fi
echo "unpacking Docker Engine"
work=$(mktemp -d "$dir/.making.XXXXXX")
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get download -q "${packages[@]}")
for part in usr lib; do rm -rf "${dir:?}/$part"; done
for file in "$work"/*.deb; do dpkg-deb -x "$file" "$work/root"; done
mv "$work"/root/usr "$dir"
[ ! -d "$work/root/lib" ] || mv "$work"/root/lib "$dir"
rm -f "$dir"/.stamp.*
touch "$stamp"
