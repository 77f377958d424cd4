#!/usr/bin/env bash
# deps.sh: install the Debian packages that building and testing need, where
# they are missing.
set -euo pipefail

needed=(
	gcc libc6-dev libseccomp-dev pkg-config # runc
	git                                     # sources, and the GitLab of the tests
	busybox-static mmdebstrap dash musl-tools # images
	softhsm2                                # a PKCS#11 token
	postgresql                              # what a fleet's store is tested on
	curl openssl                            # clients and judges that tests ask
	e2fsprogs                               # disks of jobs
	ca-certificates
)
missing=()
for p in "${needed[@]}"; do
	if ! dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii'; then
		missing+=("$p")
	fi
done
if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi
echo "installing: ${missing[*]}"
if [ "$(id -u)" -ne 0 ]; then
	echo "deps.sh: not root" >&2
	echo "hint: sudo apt-get install ${missing[*]}" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${missing[@]}"
