#!/usr/bin/env bash
# runner.sh DIR: build GitLab Runner, and its executor suite, into DIR, from
# integration/gitlab-runner.
set -euo pipefail

mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$(dirname "$0")/../gitlab-runner"
stamp="$dir/.gitlab-runner.$({ go env GOVERSION; find . -name '*.go' -o -name go.mod -o -name go.sum | sort | xargs sha256sum; } | sha256sum | cut -c1-16)"
if [ -e "$stamp" ] && [ -x "$dir/gitlab-runner" ] && [ -x "$dir/conformance.test" ]; then
	exit 0
fi
echo "building gitlab-runner 19.4.0"
version=gitlab.com/gitlab-org/gitlab-runner/common
export CGO_ENABLED=0
build=(-trimpath -buildvcs=false -ldflags "-s -w -X $version.VERSION=19.4.0 -X $version.REVISION=fc1f1862")
go build "${build[@]}" -o "$dir/gitlab-runner" .
go test -c "${build[@]}" -o "$dir/conformance.test" ./conformance
rm -f "$dir"/.gitlab-runner.*
touch "$stamp"
