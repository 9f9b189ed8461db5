"""A local web server for weight files that imitates the Hub and faulty servers."""

import contextlib
import hashlib
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GOOD = bytes(range(256)) * 4000  # about 1 MB
OTHER = GOOD[::-1]
HTML = b"<!DOCTYPE html><html>Virus scan warning</html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 93600000\n"


def hub_page(place: str) -> str:
    """Path of a file on the Hub's server.

    Args:
        place: `hf://OWNER/REPO@REVISION/FILE`.
    """
    return re.sub(r"hf:/(.+)@(\w+)/", r"\1/resolve/\2/", place)


@dataclass
class Page:
    """The response for one path.

    Attributes:
        body: content.
        status: HTTP status.
        kind: Content-Type.
        cuts: bytes that the next responses send before the connection is closed.
        ranges: whether range requests are supported.
        pause: seconds before the body is sent.
        hub: whether the response has the headers of the Hugging Face Hub.
        tag: ETag (default: digest of the body).
        headers: further headers.
    """

    body: bytes = b""
    status: int = 200
    kind: str = "application/octet-stream"
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    pause: float = 0.0
    hub: bool = True
    tag: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Host(ThreadingHTTPServer):
    """Server of `pages` (path -> Page) that records requests in `log`: (method, path, Range)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Page] = {}
        self.log: list[tuple[str, str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def count(self, method: str, path: str) -> int:
        """Number of requests for a path."""
        return sum((m, p) == (method, path) for m, p, _ in self.log)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool):
        path = self.path.split("?")[0]
        wanted = self.headers.get("Range")
        self.server.log.append((self.command, path, wanted))
        page = self.server.pages.get(path, Page(b"no such file", 404, "text/plain"))
        tag = f'"{page.tag or hashlib.sha256(page.body).hexdigest()}"'
        start, status = 0, page.status
        if wanted and page.ranges and self.headers.get("If-Range", tag) == tag:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            if start >= len(page.body):
                start, status = len(page.body), 416
        self.send_response(status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.body) - start))
        self.send_header("ETag", tag)
        for name, value in page.headers.items():
            self.send_header(name, value)
        if status == 206:
            last, total = len(page.body) - 1, len(page.body)
            self.send_header("Content-Range", f"bytes {start}-{last}/{total}")
        if page.hub and "/resolve/" in path and page.status == 200:
            self.send_header("X-Repo-Commit", path.split("/resolve/")[1].split("/")[0])
        if page.status == 404 and "/resolve/" in path:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if not body:
            return
        time.sleep(page.pause)
        content = page.body[start:]
        if page.cuts:
            content = content[: page.cuts.pop(0)]
            self.close_connection = True
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)


@contextlib.contextmanager
def serve():
    """Run a `Host` during the block."""
    host = Host()
    thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield host
    finally:
        host.shutdown()
        thread.join()
        host.server_close()


def files(folder: Path) -> list[str]:
    """Names of all complete or partial weight files."""
    found = [p for p in folder.rglob("*") if p.is_file() or p.is_symlink()]
    return [p.name for p in found if p.suffix not in (".lock", ".json") and "locks" not in p.parts]
