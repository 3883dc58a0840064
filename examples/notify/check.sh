#!/usr/bin/env bash
# Sends a mail as the tutorial does, and waits until it is in the inbox: examples/notify/check.sh
#
# BASE_URL, INBOX_URL and RECIPIENT say where to send it, where to look for it, and to whom it goes.
set -euo pipefail
BASE_URL=${BASE_URL:-http://127.0.0.1:5000}
INBOX_URL=${INBOX_URL:-http://127.0.0.1:8025}
RECIPIENT=${RECIPIENT:-check-$$-$RANDOM@example.org}

mail=$(jq -nc --arg to "$RECIPIENT" '{to: $to, subject: "Hello", contents: "The work is done."}')
echo "POST $BASE_URL/ $mail"
answer=$(curl -fsS --max-time 10 -w '\n%{http_code} %{time_total}' -H 'Content-Type: application/json' -d "$mail" "$BASE_URL/")
read -r status seconds <<<"${answer##*$'\n'}"
echo "$status after $seconds s: ${answer%$'\n'*}"
id=$(jq -r .id <<<"${answer%$'\n'*}")

echo "waiting for the mail to $RECIPIENT"
found=$(curl -fsS --max-time 30 -G --data-urlencode "to=$RECIPIENT" -d wait=20 "$INBOX_URL/inbox/api/messages")
told=$(curl -fsS --max-time 10 "$BASE_URL/v1/messages/$id")
if [ "$(jq '.data | length' <<<"$found")" != 1 ]; then
    echo "it is not in the inbox; where it is: $(jq -r .why <<<"$told")" >&2
    exit 1
fi
jq -r '.data[0] | "arrived: \(.subject): \(.text)"' <<<"$found"
jq -r '.timeline[] | "  \(.at)  \(.event)"' <<<"$told"
