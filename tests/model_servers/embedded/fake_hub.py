"""A Hugging Face hub on loopback, as far as its real client asks it: lists, metadata, redirects and ranges."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

from comps.core.types import JSON

COMMIT = "c0ffee" * 6 + "c0de"
_LARGE = (".gguf", ".bin")
"""What the hub keeps apart from the small files: it answers for them with a redirect."""


class FakeHub(ThreadingHTTPServer):
    """Holds repositories, writes down what is asked of it, and can be told to hang up in the middle of a file.

    Attributes:
        requests: `METHOD path`, then the `Range` header if there was one.
        cuts: How many bytes of a file (by its name) go out before the connection is closed, once.
    """

    daemon_threads = False  # Closing the hub waits for its threads, so that none outlives its test.

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.requests: list[str] = []
        self.cuts: dict[str, int] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def content(self, digest: str) -> tuple[str, bytes] | None:
        """The name and the bytes of the large file with this digest."""
        every = (item for files in self.repositories.values() for item in files.items())
        return next(((name, data) for name, data in every if _digest(data) == digest), None)


@contextmanager
def running(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[FakeHub]:
    """A hub with these repositories, each a mapping of file names to contents."""
    with FakeHub(repositories) as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"
    timeout = 20  # A client that neither asks nor leaves does not hold up the end of the test.

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _route(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(" ".join(filter(None, (self.command, path, self.headers["Range"]))))
        for pattern, answer in (
            (r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/[^/]+", self._tree),
            (r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self._resolve),
            (r"/large/([0-9a-f]{64})", self._large),
        ):
            if match := re.fullmatch(pattern, path):
                answer(*match.groups())
                return
        self._send(404, {"X-Error-Code": "NotFound"})

    def _files(self, repository: str) -> Mapping[str, bytes] | None:
        files = self.server.repositories.get(repository)
        if files is None:
            self._send(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        return files

    def _info(self, repository: str) -> None:
        files = self._files(repository)
        if files is not None:
            self._send_json({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})

    def _tree(self, repository: str) -> None:
        files = self._files(repository)
        if files is not None:
            self._send_json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _digest(data)[:40]}
                    for name, data in files.items()
                ]
            )

    def _resolve(self, repository: str, name: str) -> None:
        files = self._files(repository)
        if files is None:
            return
        headers = {"X-Repo-Commit": COMMIT}
        if name not in files:
            self._send(404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        elif name.endswith(_LARGE):
            digest = _digest(files[name])
            linked = {"X-Linked-Size": str(len(files[name])), "X-Linked-ETag": f'"{digest}"'}
            self._send(302, {**headers, **linked, "Location": f"{self.server.url}/large/{digest}"})
        else:
            self._send(200, {**headers, "ETag": f'"{_digest(files[name])[:40]}"'}, files[name])

    def _large(self, digest: str) -> None:
        found = self.server.content(digest)
        if found is None:
            self._send(404, {})
            return
        name, data = found
        headers = {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            status, start = 206, int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(status, headers, data[start:], self.server.cuts.pop(name, None))

    def _send_json(self, body: JSON) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _send(self, status: int, headers: Mapping[str, str], body: bytes = b"", cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
