"""A local HTTP server that answers as the Hugging Face hub does for the files of one repository."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it serves, how it misbehaves, and what it was asked for.

    Attributes:
        gated: it wants a login.
        announced: digest that it states instead of the true one.
        cut_after: bytes after which it drops the connection, at the first request for content.
        requests: (method, path, Range header).
    """

    repository: str
    files: dict[str, bytes]
    gated: bool = False
    announced: str | None = None
    cut_after: int | None = None
    status: int | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""

    def content_requests(self) -> list[str | None]:
        """Range headers of the requests for content."""
        return [span for method, path, span in self.requests if method == "GET" and path.startswith("/storage/")]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the server for the duration of a ``with`` block; ``hub.endpoint`` is its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            hub.requests.append((self.command, self.path, self.headers.get("Range")))
            if hub.status is not None:
                return self.empty(hub.status, {})
            if self.path.startswith("/storage/"):
                return self.content(hub.files[self.path.removeprefix("/storage/")])
            found = re.fullmatch(rf"/{re.escape(hub.repository)}/resolve/([^/]+)/(.+)", self.path)
            if not found:
                return self.empty(404, {"X-Error-Code": "RepoNotFound"})
            if hub.gated:
                return self.empty(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "log in"})
            revision, name = found.groups()
            if revision not in ("main", COMMIT):
                return self.empty(404, {"X-Error-Code": "RevisionNotFound"})
            if name not in hub.files:
                return self.empty(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            data = hub.files[name]
            digest = hub.announced or hashlib.sha256(data).hexdigest()
            storage = hub.endpoint.replace("127.0.0.1", "localhost")  # another host, as the hub's
            self.empty(
                302,
                {
                    "Location": f"{storage}/storage/{name}",
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Etag": f'"{digest}"',
                    "X-Linked-Size": str(len(data)),
                },
            )

        def content(self, data: bytes) -> None:
            start, status = 0, 200
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if span:
                start, status = int(span[1]), 206
            part = data[start:]
            self.send_response(status)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            if span:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cut_after is not None:
                part, hub.cut_after = part[: hub.cut_after], None
                self.wfile.write(part)
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.wfile.write(part)

        def empty(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
