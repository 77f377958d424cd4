#!/usr/bin/env bash
# fuzz.sh TIME: run every fuzz target of the module for TIME.
set -euo pipefail

time=$1
count=0
while IFS=: read -r file target; do
	echo "fuzz: $(dirname "$file") $target"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$(dirname "$file")" >/tmp/fuzz.$$ 2>&1 || {
		cat /tmp/fuzz.$$
		exit 1
	}
	count=$((count + 1))
done < <(git ls-files -- '*_test.go' | xargs grep -oE '^func Fuzz[A-Za-z0-9_]+' /dev/null | sed 's/func //' | sort)
rm -f /tmp/fuzz.$$
echo "fuzz: $count targets, $time each"
