#!/usr/bin/env bash
# runner.sh DIR: build GitLab Runner into DIR, from integration/gitlab-runner.
set -euo pipefail

mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$(dirname "$0")/../gitlab-runner"
stamp="$dir/.gitlab-runner.$({ go env GOVERSION; find . -name '*.go' -o -name go.mod -o -name go.sum | sort | xargs sha256sum; } | sha256sum | cut -c1-16)"
if [ -e "$stamp" ] && [ -x "$dir/gitlab-runner" ]; then
	exit 0
fi
echo "building gitlab-runner 19.4.0"
version=gitlab.com/gitlab-org/gitlab-runner/common
CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$dir/gitlab-runner" \
	-ldflags "-s -w -X $version.VERSION=19.4.0 -X $version.REVISION=fc1f1862" .
rm -f "$dir"/.gitlab-runner.*
touch "$stamp"
