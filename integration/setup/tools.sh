#!/usr/bin/env bash
# tools.sh DIR NAME...: build pinned third-party programs into DIR.
#
# Each is built from its module by its published version. The module's own hash
# stands here too, so that a changed module is refused even where no checksum
# database is asked; its dependencies are pinned by the versions that it names.
# A stamp makes a second run free. What is not Go is pinned by a lock file with
# the hash of each package.
set -euo pipefail

dir=$1
shift
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# build MODULE VERSION HASH CGO FLAGS PACKAGE[=PROGRAM]...
# A program has the name of its package's directory unless another is given.
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
	local packages=() p made
	made=$(mktemp -d "$dir/.making.XXXXXX")
	for p in "$@"; do packages+=("$module${p%=*}@$version"); done
	(cd / && eval "GOBIN='$made' GOFLAGS=-buildvcs=false CGO_ENABLED=$cgo go install -trimpath $flags ${packages[*]}")
	for p in "$@"; do
		case $p in *=*) mv "$made/$(basename "${p%=*}")" "$made/${p#*=}" ;; esac
	done
	mv "$made"/* "$dir"
	rmdir "$made"
	rm -f "$dir/.$name".*
	touch "$stamp"
}

# npm_ci FROM: what a lock file of npm's pins, into a directory of its name beside DIR.
npm_ci() {
	local from into stamp
	from=$(cd "$1" && pwd)
	into=$(dirname "$dir")/$name
	stamp=$into/.stamp.$(cat "$from"/package.json "$from"/package-lock.json | sha256sum | cut -c1-16)
	if [ -e "$stamp" ]; then
		return
	fi
	if ! command -v npm >/dev/null; then
		echo "tools.sh: no npm" >&2
		echo "hint: install Node.js 20 or newer, with npm" >&2
		exit 1
	fi
	echo "installing $name"
	rm -rf "$into"
	mkdir -p "$into"
	cp -r "$from"/. "$into"
	(cd "$into" && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error)
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
	cosign2) # the line before bundles were the default
		build github.com/sigstore/cosign/v2 v2.6.5 'h1:D7kFSWS2HzfD+LpEuBO89D1KfOAODlkWuuhzXS8yzi0=' 0 "-ldflags '-s -w'" /cmd/cosign=cosign2
		;;
	fulcio)
		build github.com/sigstore/fulcio v1.8.8 'h1:AtVoVQ4R7YaP6RHIH9puHyB398CHS/9WYc6d+gKf5Y0=' 0 "-ldflags '-s -w'" ''
		;;
	timestamp-server)
		build github.com/sigstore/timestamp-authority/v2 v2.1.3 'h1:Fc+LjCTfik1lh3YLkaosENfkXa3R2Y1nswiUKutBdFA=' 0 "-ldflags '-s -w'" /cmd/timestamp-server
		;;
	rekor-tiles) # Rekor v2, with its log in a directory
		build github.com/sigstore/rekor-tiles/v2 v2.3.0 'h1:HhMgH61UP0t899V8Fjt7pz1YdgOBptbaQdnCF+79cdc=' 0 "-ldflags '-s -w'" /cmd/rekor-server/posix=rekor-tiles
		;;
	sigstore-js) # @sigstore/verify, into DIR/../sigstore-js
		npm_ci "$(dirname "$0")/../interop/sigstore-js"
		;;
	azurite) # what Azure speaks for blobs, MIT, into DIR/../azurite
		npm_ci "$(dirname "$0")/../azurite/npm"
		;;
	versitygw) # an S3 server on a directory, Apache-2.0
		build github.com/versity/versitygw v1.8.0 'h1:au+wI+aybno/STsQiSm35Uu6Q6iK5MWReQxgO6SEMFc=' 0 "-ldflags '-s -w'" /cmd/versitygw
		;;
	local-kms) # a key service that speaks as AWS KMS does, MIT
		build github.com/nsmithuk/local-kms v0.0.0-20260228092603-2a5e92d09ab6 'h1:kCiMJ8KHc9CLE+nL5W5c0hFEhjyZMRNJroF8huqLoNM=' 0 "-ldflags '-s -w'" ''
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
