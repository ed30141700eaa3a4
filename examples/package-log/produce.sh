#!/usr/bin/env bash
# produce.sh FILE: every line of FILE becomes one record of the stream `packages`, exactly once.
#
# An append that loses its connection may or may not have been carried out. With one producer the stream itself knows:
# its next offset is the number of lines that arrived, so that is where to go on.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
file=$1
lines=$(wc -l <"$file")

while :; do
    next=$(again stream status packages --output json | number next_offset)
    [ "$next" -lt "$lines" ] || break
    code=0
    sed -n "$((next + 1)),$((next + 500))p" "$file" | "$FLOWMESH" stream append packages --output json >/dev/null || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 4 ] || exit "$code"
done
echo "produce: $lines lines are in the stream" >&2
