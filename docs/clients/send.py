import os
import sys

import requests

URL = "http://127.0.0.1:5000/v1/messages"
KEY = {"Authorization": f"Bearer {os.environ.get('MAILASYNC_API_KEY', '')}"}

mail = {"to": "you@example.org", "subject": "Order 4711", "contents": "It is on its way."}
answer = requests.post(URL, json=mail, headers=KEY | {"Idempotency-Key": "order-4711"}, timeout=30)
if not answer.ok:
    sys.exit(answer.text)
id = answer.json()["id"]

answer = requests.get(f"{URL}/{id}", headers=KEY | {"Prefer": "wait=30"}, timeout=60)
if not answer.ok:
    sys.exit(answer.text)
print(id, answer.json()["status"], answer.json()["why"])
