#!/bin/sh
set -eu
url=http://127.0.0.1:5000/v1/messages
key="Authorization: Bearer ${MAILASYNC_API_KEY:-}"

answer=$(curl -sS --fail-with-body "$url" -H "$key" -H 'Idempotency-Key: order-4711' -H 'Content-Type: application/json' \
  -d '{"to": "you@example.org", "subject": "Order 4711", "contents": "It is on its way."}') || { echo "$answer" >&2; exit 1; }
id=$(echo "$answer" | sed 's/.*"id":"\([^"]*\)".*/\1/')

curl -sS --fail-with-body "$url/$id" -H "$key" -H 'Prefer: wait=30'
