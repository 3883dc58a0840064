"""A token endpoint of OAuth2 (RFC 6749, 3.2), and a client's secrets for it."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

SECRETS = {
    "email_address": "alice@example.org",
    "google_client_id": "the-client",
    "google_client_secret": "the-client-secret",
    "google_refresh_token": "the-refresh-token",
}
TOKEN = {"access_token": "the-access-token", "expires_in": 3600}


class TokenServer(http.server.ThreadingHTTPServer):
    """A token endpoint on loopback; `answer` is what it says, `asked` what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, list[str]]] = []
        self.answer: tuple[int, bytes] = 200, json.dumps(TOKEN).encode()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/o/oauth2/token"


class Handler(http.server.BaseHTTPRequestHandler):
    server: TokenServer

    def do_POST(self) -> None:
        self.server.asked.append(
            parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        )
        status, body = self.server.answer
        self.send_response(status)
        if status == 302:
            self.send_header("Location", self.server.url)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@contextmanager
def token_server() -> Iterator[TokenServer]:
    with TokenServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
