#!/usr/bin/env bash
# fuzz.sh TIME: run every fuzz target of the module for TIME.
set -euo pipefail

time=$1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
count=0
while IFS=: read -r file target; do
	echo "fuzz: $(dirname "$file") $target"
	if ! go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$(dirname "$file")" >"$log" 2>&1; then
		# On a busy machine the time may be up while an input is made smaller;
		# the tool calls that a failure. A real one leaves the input behind.
		if ! grep -q 'context deadline exceeded' "$log" || grep -qE 'Failing input written|panic:|_test.go:' "$log"; then
			cat "$log"
			exit 1
		fi
	fi
	count=$((count + 1))
done < <(git ls-files -- '*_test.go' | xargs grep -oE '^func Fuzz[A-Za-z0-9_]+' /dev/null | sed 's/func //' | sort)
echo "fuzz: $count targets, $time each"
