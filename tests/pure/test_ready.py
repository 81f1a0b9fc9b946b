"""What `lifecycle.ready` asks: the address as it was written, its query included."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from kvmlaunch.steps.ready import answers_http

ASKED: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """Answers everything with 503, which is an answer."""

    def do_GET(self) -> None:
        """Note the path."""
        ASKED.append(self.path)
        self.send_error(503)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("written", "asked"), [("", "/"), ("/", "/"), ("/a/b", "/a/b"), ("/a?x=1&y", "/a?x=1&y"), ("?x#part", "/?x")]
)
def test_the_address_is_asked_for_as_it_is_written(written: str, asked: str) -> None:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        answered = answers_http(f"http://127.0.0.1:{server.server_port}{written}")
        thread.join()

    assert answered
    assert ASKED.pop() == asked
