#!/usr/bin/env bash
# tools.sh DIR NAME...: build pinned third-party programs into DIR.
#
# Each is built from its module by its published version. The module's own hash
# stands here too, so that a changed module is refused even where no checksum
# database is asked; its dependencies are pinned by the versions that it names.
# A stamp makes a second run free.
set -euo pipefail

dir=$1
shift
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# build MODULE VERSION HASH CGO FLAGS PACKAGE...
build() {
	local module=$1 version=$2 hash=$3 cgo=$4 flags=$5
	shift 5
	local stamp
	stamp="$dir/.$name.$(printf '%s\n' "$version" "$hash" "$cgo" "$flags" "$(go env GOVERSION)" "$@" | sha256sum | cut -c1-16)"
	if [ -e "$stamp" ]; then
		return
	fi
	echo "building $name $version"
	local have
	# outside of any module, so that only the named one counts
	have=$(cd / && go mod download -json "$module@$version" | sed -n 's/^[[:space:]]*"Sum": "\(.*\)",*$/\1/p')
	if [ "$have" != "$hash" ]; then
		echo "tools.sh: $module@$version is $have, want $hash" >&2
		exit 1
	fi
	local packages=() p
	for p in "$@"; do packages+=("$module$p@$version"); done
	(cd / && eval "GOBIN='$dir' GOFLAGS=-buildvcs=false CGO_ENABLED=$cgo go install -trimpath $flags ${packages[*]}")
	rm -f "$dir/.$name".*
	touch "$stamp"
}

for name in "$@"; do
	case $name in
	containerd)
		build github.com/containerd/containerd/v2 v2.3.7 'h1:7PGbgAVKE4ieQjFPv7+kwAv7f9dCtRpExZwjExHD/Fk=' 0 \
			"-ldflags '-s -w -X github.com/containerd/containerd/v2/version.Version=v2.3.7'" \
			/cmd/containerd /cmd/containerd-shim-runc-v2
		;;
	runc) # without the seccomp tag, a container with a profile does not start
		build github.com/opencontainers/runc v1.5.2 'h1:eUUowc2WJCnFYzI87C1WqRcu356Dk/wsoi90y+2wEfE=' 1 "-tags seccomp -ldflags '-s -w'" ''
		;;
	cosign)
		build github.com/sigstore/cosign/v3 v3.1.3 'h1:001JQRI/PJ/5T+g/kJ1KTvKFbb322+fomc+pHDZ/6sg=' 0 "-ldflags '-s -w'" /cmd/cosign
		;;
	staticcheck)
		build honnef.co/go/tools v0.8.2 'h1:+jPbCzuYxYrcoOvCecYUFDj+XJQRmzIhJmlbpps21Zk=' 0 "-ldflags '-s -w'" /cmd/staticcheck
		;;
	*)
		echo "tools.sh: no tool named $name" >&2
		exit 2
		;;
	esac
done
