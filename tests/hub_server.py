"""A local HTTP server that answers as the Hugging Face hub does for one repository, and as plain file servers do."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_good"


@dataclass
class Hub:
    """What it serves, how it misbehaves, and what it was asked for.

    Attributes:
        kind: of the repository.
        plain: files at ``/plain/NAME``, which are no part of the repository.
        small: suffixes of the files that are kept in Git itself; the others lie in a storage of another host.
        gated: it wants a login for files, not for listings; ``TOKEN`` is one.
        announced: digest that it states instead of the true one.
        damaged: names of files of which it sends another content, of the same size.
        cut_after: bytes after which it drops the connection, at the first request for content.
        busy: requests for content that it refuses with status 503 before it obeys, once nothing is to be cut.
        no_ranges: it sends whole files whatever is asked for.
        page: entries on a page of a listing.
        delay_s: before each content.
        requests: (method, path, Range header).
        tokens: (path, whether the request came with a token).
    """

    repository: str
    files: dict[str, bytes]
    kind: Literal["model", "dataset"] = "model"
    plain: dict[str, bytes] = field(default_factory=dict)
    small: tuple[str, ...] = (".json", ".csv", ".md")
    gated: bool = False
    announced: str | None = None
    damaged: frozenset[str] = frozenset()
    cut_after: int | None = None
    busy: int = 0
    no_ranges: bool = False
    page: int = 1000
    delay_s: float = 0.0
    status: int | None = None
    commit: str = COMMIT
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: list[tuple[str, bool]] = field(default_factory=list)
    endpoint: str = ""

    def content_requests(self) -> list[str | None]:
        """Range headers of the requests for content in the storage."""
        return [span for method, path, span in self.requests if method == "GET" and path.startswith("/storage/")]

    def fetched(self) -> list[str]:
        """Names of the repository's files that were asked for."""
        found = (re.fullmatch(r".*/resolve/[^/]+/(.+)", path) for method, path, _ in self.requests if method == "GET")
        return [match[1] for match in found if match]

    def is_small(self, name: str) -> bool:
        return name.endswith(self.small)


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the server for the duration of a ``with`` block; ``hub.endpoint`` is its address."""
    prefix = "datasets/" if hub.kind == "dataset" else ""
    repository = re.escape(hub.repository)

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
            hub.tokens.append((self.path, "Authorization" in self.headers))
            path = unquote(urlsplit(self.path).path)
            if hub.status is not None:
                return self.empty(hub.status, {})
            if path.startswith("/storage/"):
                return self.content(path.removeprefix("/storage/"), hub.files)
            if path.startswith("/plain/"):
                name = path.removeprefix("/plain/")
                return self.content(name, hub.plain) if name in hub.plain else self.empty(404, {})
            if found := re.fullmatch(rf"/api/{hub.kind}s/{repository}/revision/(.+)", path):
                return self.commit(found[1])
            if found := re.fullmatch(rf"/api/{hub.kind}s/{repository}/tree/([^/]+)(?:/(.*))?", path):
                return self.tree(found[1], found[2] or "")
            if found := re.fullmatch(rf"/{prefix}{repository}/resolve/([^/]+)/(.+)", path):
                return self.resolve(found[1], found[2])
            self.empty(404, {"X-Error-Code": "RepoNotFound"})

        def commit(self, revision: str) -> None:
            if revision not in ("main", hub.commit):
                return self.empty(404, {"X-Error-Code": "RevisionNotFound"})
            self.json({"id": hub.repository, "sha": hub.commit}, {})

        def tree(self, revision: str, folder: str) -> None:
            if revision not in ("main", hub.commit):
                return self.empty(404, {"X-Error-Code": "RevisionNotFound"})
            inside = f"{folder}/" if folder else ""
            names = sorted(name for name in hub.files if name.startswith(inside))
            if not names:
                return self.empty(404, {"X-Error-Code": "EntryNotFound"})
            entries = {}
            for name in names:
                part, *rest = name.removeprefix(inside).split("/")
                path = inside + part
                entries[path] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": path} if rest else file(name)
            listed = list(entries.values())
            start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
            headers = {}
            if start + hub.page < len(listed):
                address = f"{hub.endpoint}{urlsplit(self.path).path}?cursor={start + hub.page}"
                headers["Link"] = f'<{address}>; rel="next"'
            self.json(listed[start : start + hub.page], headers)

        def resolve(self, revision: str, name: str) -> None:
            if hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.empty(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "log in"})
            if revision not in ("main", hub.commit):
                return self.empty(404, {"X-Error-Code": "RevisionNotFound"})
            if name not in hub.files:
                return self.empty(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit})
            data = hub.files[name]
            if hub.is_small(name):
                return self.content(name, hub.files, {"X-Repo-Commit": hub.commit, "ETag": f'"{git_blob(data)}"'})
            digest = hub.announced or hashlib.sha256(data).hexdigest()
            storage = hub.endpoint.replace("127.0.0.1", "localhost")  # another host, as the hub's
            self.empty(
                302,
                {
                    "Location": f"{storage}/storage/{name}",
                    "X-Repo-Commit": hub.commit,
                    "X-Linked-Etag": f'"{digest}"',
                    "X-Linked-Size": str(len(data)),
                },
            )

        def content(self, name: str, files: dict[str, bytes], headers: dict[str, str] | None = None) -> None:
            data = files[name]
            headers = headers or {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            if name in hub.damaged:
                data = bytes(byte ^ 1 for byte in data)
            start, status = 0, 200
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if span and not hub.no_ranges:
                start, status = int(span[1]), 206
            part = data[start:]
            if self.command == "GET":
                time.sleep(hub.delay_s)
                if hub.busy > 0 and hub.cut_after is None:
                    hub.busy -= 1
                    return self.empty(503, {})
            self.send_response(status)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            for key, value in headers.items():
                self.send_header(key, value)
            if status == 206:
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

        def json(self, value: Any, headers: dict[str, str]) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            for key, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, text)
            self.end_headers()
            self.wfile.write(data)

        def empty(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def file(name: str) -> dict[str, Any]:
        data = hub.files[name]
        entry: dict[str, Any] = {"type": "file", "oid": git_blob(data), "size": len(data), "path": name}
        if not hub.is_small(name):
            digest = hub.announced or hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
        return entry

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
