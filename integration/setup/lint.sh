#!/usr/bin/env bash
# lint.sh DIR: formatting, sizes, go vet and staticcheck (kept in DIR) over all packages.
set -euo pipefail

"$(dirname "$0")/tools.sh" "$1" staticcheck
unformatted=$(git ls-files -z -- '*.go' | xargs -0 gofmt -l)
if [ -n "$unformatted" ]; then
	printf 'not formatted:\n%s\n' "$unformatted" >&2
	exit 1
fi
large=$(git ls-files -z | xargs -0 du -b -- 2>/dev/null | awk '$1 > 1048576 { print $2 }')
if [ -n "$large" ]; then
	printf 'larger than a source is, built by somebody?\n%s\n' "$large" >&2
	exit 1
fi
go vet ./...
(cd cmd/hallmark-kms && CGO_ENABLED=0 go vet -trimpath ./...) # a module of its own
"$1/staticcheck" ./...
echo "lint: nothing to say"
