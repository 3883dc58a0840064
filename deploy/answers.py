"""Exits with 0 if the service on this machine answers 200: `python deploy/answers.py 5000 /livez`."""

import http.client
import sys
from contextlib import closing


def status(port: int, path: str) -> int:
    """Return the status of the response."""
    # Not by urllib, which would use a proxy that the environment names.
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=3)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


if __name__ == "__main__":
    sys.exit(status(int(sys.argv[1]), sys.argv[2]) != 200)
