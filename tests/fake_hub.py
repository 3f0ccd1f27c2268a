"""A model hub on the loopback: its few routes, over real HTTP, with faults on demand."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "acme/tiny"


class FakeHub:
    """One repository of one commit."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.url = ""
        self.requests: list[tuple[str, dict[str, str]]] = []  # path, headers
        self.refusal: tuple[int, str] | None = None  # status, x-error-code
        self.cuts: dict[str, int] = {}  # once, the connection ends after so many bytes
        self.corrupt: set[str] = set()
        self.ignores_ranges = False
        self.redirect_to = ""  # where the files really are: an address before the path

    def gets(self, path: str) -> list[dict[str, str]]:
        """Headers of every request for one file."""
        return [headers for at, headers in self.requests if at.endswith(f"/{path}")]

    def listing(self) -> dict[str, Any]:
        return {
            "id": REPOSITORY,
            "sha": COMMIT,
            "siblings": [_sibling(path, content) for path, content in self.files.items()],
        }


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    size = len(content)
    git_name = hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
    sibling: dict[str, Any] = {"rfilename": path, "size": size, "blobId": git_name}
    if path.endswith(".safetensors"):
        sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size}
    return sibling


@contextmanager
def fake_hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    hub = FakeHub(files)

    class Handler(_Handler):
        served = hub

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    served: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub = self.served
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((path, {k.lower(): v for k, v in self.headers.items()}))
        if hub.refusal is not None:
            status, code = hub.refusal
            self._answer(status, b"{}", {"x-error-code": code})
        elif path.startswith(f"/api/models/{REPOSITORY}/revision/"):
            self._list(path.rpartition("/")[2])
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            self._resolve(path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/"))
        else:
            self._answer(404, b"{}", {"x-error-code": "RepoNotFound"})

    def log_message(self, *_: object) -> None:
        pass

    def _list(self, revision: str) -> None:
        if revision not in ("main", "v1", COMMIT):
            self._answer(404, b"{}", {"x-error-code": "RevisionNotFound"})
            return
        self._answer(200, json.dumps(self.served.listing()).encode())

    def _resolve(self, path: str) -> None:
        hub = self.served
        if hub.redirect_to:
            self._answer(302, b"", {"location": hub.redirect_to + self.path})
            return
        content = hub.files[path]
        if path in hub.corrupt:
            content = bytes(byte ^ 1 for byte in content)
        start = self._start()
        if start is None:
            self._answer(200, content, cut=hub.cuts.pop(path, None))
        elif start >= len(content):
            self._answer(416, b"")
        else:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._answer(
                206, content[start:], {"content-range": span}, cut=hub.cuts.pop(path, None)
            )

    def _start(self) -> int | None:
        asked = self.headers.get("range", "")
        if not asked or self.served.ignores_ranges:
            return None
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def _answer(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            self.close_connection = True
