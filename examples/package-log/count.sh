#!/usr/bin/env bash
# count.sh: the handler of one job, "OFFSET ACTION PACKAGE" on standard input.
#
# One key a job: however often a job runs, it is counted once.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
read -r offset action package || [ -n "$package" ] # the payload has no line break at its end
again kv set package-counts "$action/$offset" "$package" --output json >/dev/null
