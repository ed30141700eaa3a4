#!/usr/bin/env bash
# consume.sh LINES: turns every install, upgrade and remove among the first LINES records into a job, then ends.
#
# Its place in the stream is a key in the store `progress`, written after the jobs are enqueued. If it dies in between, or
# an answer is lost, the same jobs are enqueued again: each names its record's offset, so that workers can tell.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
lines=$1
batch=$(mktemp)
jobs=$(mktemp)
trap 'rm -f "$batch" "$jobs"' EXIT

place=$(again kv get progress consumer) || { [ $? -eq 3 ] && place=0; }
while [ "$place" -lt "$lines" ]; do
    again stream read packages --from "$place" --limit 400 >"$batch"
    count=$(wc -l <"$batch")
    if [ "$count" -eq 0 ]; then
        sleep 0.1 # the producer is not that far yet
        continue
    fi
    awk -v place="$place" '$3 ~ /^(install|upgrade|remove)$/ { print place + NR - 1, $3, $4 }' "$batch" >"$jobs"
    if [ -s "$jobs" ]; then
        again queue enqueue package-jobs --file "$jobs" --output json >/dev/null
    fi
    place=$((place + count))
    again kv set progress consumer "$place" --output json >/dev/null
done
echo "consume: all $lines records are read" >&2
