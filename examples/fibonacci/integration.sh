#!/usr/bin/env bash
# Starts a computation and polls until it has the result, against the running processes: examples/fibonacci/integration.sh
#
# BASE_URL says where they are, NUMBER what is computed, and TRIES how often it asks, twice a second. It ends with 0 on SUCCESS only.
set -euo pipefail
BASE_URL=${BASE_URL:-http://127.0.0.1:5000}
NUMBER=${NUMBER:-4}
TRIES=${TRIES:-60}

ask() { curl -fsS --max-time 10 "$@"; }

ask "$BASE_URL/ping" && echo
task=$(ask "$BASE_URL/create" -H 'Content-Type: application/json' -d "$(jq -nc --arg n "$NUMBER" '{number: $n}')" | jq -er .data.task_id)
echo "started $task"

for ((try = 1; try <= TRIES; try++)); do
    told=$(ask "$BASE_URL/status/$task")
    echo "$told"
    case $(jq -r .status <<<"$told") in
        SUCCESS) exit 0 ;;
        FAILURE | REVOKED) exit 1 ;;
    esac
    sleep 0.5
done
echo "no result after $TRIES tries; is the worker running?" >&2
exit 1
