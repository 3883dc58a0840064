"""Finds or fetches the servers and the browser that the tests need: `python -m tests.services.provide`."""

import sys

from tests.services import Unavailable
from tests.services.chromium import find_chromium
from tests.services.dovecot import find_dovecot
from tests.services.postfix import find_postfix
from tests.services.postgres import find_postgres
from tests.services.rabbitmq import find_rabbitmq


def main() -> int:
    missing = 0
    for name, find in (
        ("RabbitMQ", find_rabbitmq),
        ("PostgreSQL", find_postgres),
        ("Chromium", find_chromium),
        ("Dovecot", find_dovecot),
        ("Postfix", find_postfix),
    ):
        try:
            print(f"{name}: {find()}", flush=True)
        except Unavailable as e:
            missing += 1
            print(e, file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
