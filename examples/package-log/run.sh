#!/usr/bin/env bash
# run.sh [FLOWMESH]: the machine's package log through a stream, a queue and a store, while the server is killed.
#
#   dpkg.log ─ produce ─► stream packages ─ consume ─► queue package-jobs ─ 3 workers ─► store package-counts
#
# The server is killed with -9 three times on the way and started again. In the end the counts of install, upgrade and
# remove must be what awk says of the file: then the exit code is 0. FLOWMESH is the program (target/release/flowmesh).
# LOG=FILE takes another log, KEEP=1 leaves the working directory.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
FLOWMESH=$(realpath "${1:-$here/../../target/release/flowmesh}")
[ -x "$FLOWMESH" ] || { echo "no program at $FLOWMESH; build it (cargo build --release) or name it" >&2; exit 2; }
work=$(mktemp -d)
. "$here/lib.sh"
server=
workers=()

cleanup() {
    kill -TERM "${workers[@]}" 2>/dev/null || true
    [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
    wait 2>/dev/null || true
    if [ -n "${KEEP:-}" ]; then echo "everything is in $work" >&2; else rm -rf "$work"; fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
    echo "FAILED: $*" >&2
    [ ! -s "$work/server.log" ] || { echo "the end of the server's log:" >&2; tail -n 20 "$work/server.log" >&2; }
    exit 1
}

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}

grpc=$(free_port)
http=$(free_port)
export FLOWMESH FLOWMESH_ADDR="http://127.0.0.1:$grpc"

start_server() {
    "$FLOWMESH" serve --data-dir "$work/data" --grpc-addr "127.0.0.1:$grpc" --http-addr "127.0.0.1:$http" \
        --core-ports off --auto-create >>"$work/server.log" 2>&1 &
    server=$!
    disown "$server"
    local deadline=$((SECONDS + 30))
    until "$FLOWMESH" topology >/dev/null 2>&1; do
        kill -0 "$server" 2>/dev/null || fail "the server does not start"
        [ "$SECONDS" -lt "$deadline" ] || fail "the server is not ready after 30 s"
        sleep 0.05
    done
}

# Kills the server once COMMAND… prints at least N.
kill_server_at() {
    local least=$1 deadline=$((SECONDS + 120))
    shift
    until [ "$("$@")" -ge "$least" ]; do
        [ "$SECONDS" -lt "$deadline" ] || fail "nothing moves: $* stays below $least"
        kill -0 "$server" 2>/dev/null || fail "the server died by itself"
        sleep 0.02
    done
    kill -9 "$server"
    while kill -0 "$server" 2>/dev/null; do sleep 0.01; done
    echo "run: server killed at $* >= $least" >&2
    start_server
}

appended() { again stream status packages --output json | number next_offset; }
counted() { again kv scan package-counts --keys-only | wc -l; }

# --- the log -------------------------------------------------------------------------------------------------------
log=${LOG:-/var/log/dpkg.log}
if [ -s "$log" ]; then
    cp "$log" "$work/dpkg.log"
else
    awk -f "$here/sample.awk" >"$work/dpkg.log"
fi
lines=$(wc -l <"$work/dpkg.log")
awk '$3 ~ /^(install|upgrade|remove)$/ { n[$3]++ } END { for (action in n) print action, n[action] }' "$work/dpkg.log" |
    sort >"$work/expected"
total=$(awk '{ sum += $2 } END { print sum + 0 }' "$work/expected")
echo "run: $lines lines, $total jobs to come" >&2

# --- the work ------------------------------------------------------------------------------------------------------
start_server
again resources create stream packages --or-existing >/dev/null
again resources create queue package-jobs --or-existing --set visibility_timeout_ms=5s --set max_attempts=100 >/dev/null
again resources create kv package-counts --or-existing >/dev/null
again resources create kv progress --or-existing >/dev/null

for n in 1 2 3; do
    "$FLOWMESH" queue work package-jobs --exec "$here/count.sh" --concurrency 2 --worker "worker-$n" 2>>"$work/workers.log" &
    workers+=($!)
done
"$here/produce.sh" "$work/dpkg.log" &
producer=$!
"$here/consume.sh" "$lines" &
consumer=$!

kill_server_at $((lines / 4)) appended
kill_server_at $((total / 4)) counted
kill_server_at $((total / 2)) counted

wait "$producer" || fail "the producer ended with $?"
wait "$consumer" || fail "the consumer ended with $?"
# One more worker, which ends when nothing is left: ready, delayed, or with another worker.
"$FLOWMESH" queue work package-jobs --exec "$here/count.sh" --concurrency 2 --until-empty 2>>"$work/workers.log" ||
    fail "the last worker ended with $?"

# --- the result ----------------------------------------------------------------------------------------------------
again kv scan package-counts --keys-only >"$work/keys"
cut -d/ -f1 "$work/keys" | sort | uniq -c | awk '{ print $2, $1 }' | sort >"$work/counts"
again queue status package-jobs
echo "action  counted  awk says"
join -a 1 -a 2 -e 0 -o 0,1.2,2.2 "$work/counts" "$work/expected" | awk '{ printf "%-7s %7d  %8d\n", $1, $2, $3 }'
cmp -s "$work/counts" "$work/expected" || fail "the counts differ"
echo "OK: equal, with the server killed three times on the way"
