"""Access tokens that a server checks by itself: JSON Web Tokens (RFC 7519), signed by a shared key."""

import base64
import hashlib
import hmac
import json
import time


def signed_token(key: bytes, user: str, *, valid_seconds: float = 86_400) -> str:
    """Return a token for `user`; negative `valid_seconds` are those since it has expired."""
    issued = time.time() - 86_400
    claims = {"sub": user, "iat": int(issued), "exp": int(time.time() + valid_seconds)}
    signed = f"{_encoded({'alg': 'HS256', 'typ': 'JWT'})}.{_encoded(claims)}"
    signature = hmac.digest(key, signed.encode(), hashlib.sha256)
    return f"{signed}.{_base64(signature)}"


def _encoded(value: dict[str, object]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")
