"""Real web servers over a folder: with ranges and ETags, without ranges, with a password."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class WithoutRanges(SimpleHTTPRequestHandler):
    """The standard library's file server: objects from their start, with Last-Modified and no ETag."""

    def log_message(self, *_: object) -> None:
        pass


class WithRanges(WithoutRanges):
    """That server, taught ranges, ETags and ``If-Match``."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or not path.is_file():
            return super().do_GET()
        content = path.read_bytes()
        if self.headers.get("If-Match", etag(path)) != etag(path):
            return self.send_error(412)
        first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        if first >= len(content):
            return self.send_error(416)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(content[first : last + 1])

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", etag(path))
        super().end_headers()


class WithPassword(WithRanges):
    """That server, for one login only: ``somebody`` with ``open-sesame``."""

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.headers.get("Authorization") == "Basic " + base64.b64encode(b"somebody:open-sesame").decode():
            return True
        self.send_error(401)
        return False


def etag(path: Path) -> str:
    return f'"{hashlib.md5(path.read_bytes()).hexdigest()}"'


@contextmanager
def serve(folder: Path, handler: type[SimpleHTTPRequestHandler] = WithRanges) -> Iterator[str]:
    """The address of a server of this folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def without_logins(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """No login of whoever runs the tests is used."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "HF_TOKEN"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NETRC", raising=False)
