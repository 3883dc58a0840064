"""Has the certificates that we trust when we verify a mail server."""

import ssl
import time
from functools import lru_cache

#: The certificates that we trust are read again after this; the system's file takes 10 ms.
TLS_AGE_MAX_SECONDS = 300


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Return a context that verifies chain and host name; `ca_file` "": by the system's certificates."""
    return _tls_context(ca_file, int(time.monotonic() // TLS_AGE_MAX_SECONDS))


@lru_cache(maxsize=8)
def _tls_context(ca_file: str, period: int) -> ssl.SSLContext:
    """Return the context for this period of TLS_AGE_MAX_SECONDS, which is read once in it."""
    return ssl.create_default_context(cafile=ca_file or None)
