#!/bin/sh
# backup.sh FROM TO
set -eu
mkdir -p "$2"
for f in "$1"/*; do
	cp "$f" $2/$(basename "$f").bak
done
