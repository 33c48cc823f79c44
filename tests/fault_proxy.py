"""An HTTP proxy that breaks answers on purpose, in front of a real store or file server."""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ("reset", "truncated", "unsized", "short", "stall", "wrong_range", "500", "503", "429")
"""What can go wrong with an answer:

- reset: half of the body, then the connection is torn down by a TCP reset;
- truncated: half of the body, then an orderly close, though Content-Length promised all of it;
- unsized: half of the body, without any Content-Length, then an orderly close;
- short: half of the body, and a Content-Length to match;
- stall: half of the body, then silence for `stall` seconds;
- wrong_range: all of the body, under a Content-Range that is one byte off;
- 500, 503, 429: that status, and no body.
"""
DRAINING_SECONDS = 0.05
"""A reset discards what the receiver has not taken yet: it gets this long to take it."""


@dataclass(frozen=True)
class Request:
    """One request, and what the client was given."""

    method: str
    path: str
    range: tuple[int, int] | None
    """First and last byte asked for."""
    status: int
    fault: str | None
    sent: int
    """Bytes of the body that were sent."""


class FaultProxy:
    """Runs while the context is open; `url` is to be used in place of the upstream's.

    Args:
        upstream: The address of the real server: `http://host:port`.
        faults: How many answers to break in all.
        seed: Of the draws of which requests break, and how.
        kinds: What to draw from.
        probability: That an eligible request breaks, while faults are left.
        stall: Seconds of silence of a stall; longer than the client's time-out.
        methods: Methods of eligible requests.
    """

    def __init__(
        self,
        upstream: str,
        *,
        faults: int = 0,
        seed: int = 0,
        kinds: Sequence[str] = KINDS,
        probability: float = 1.0,
        stall: float = 5.0,
        methods: Sequence[str] = ("GET",),
    ) -> None:
        assert set(kinds) <= set(KINDS), f"unknown kinds: {set(kinds) - set(KINDS)}"
        self.upstream = urllib.parse.urlsplit(upstream)
        self.faults_left, self.stall = faults, stall
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._kinds, self._probability, self._methods = tuple(kinds), probability, tuple(methods)
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._server = _Server(self)

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def num_faults(self) -> int:
        """Answers broken so far."""
        return sum(self.count.values())

    @property
    def count(self) -> Counter[str]:
        """Answers broken so far, by kind."""
        with self._lock:
            return Counter(request.fault for request in self.requests if request.fault)

    def draw(self, method: str) -> str | None:
        """The fault of the next request, if it is to have one."""
        with self._lock:
            if method not in self._methods or not self.faults_left or self._random.random() >= self._probability:
                return None
            self.faults_left -= 1
            return self._random.choice(self._kinds)

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy

    def handle_error(self, *_: object) -> None:
        """Clients that go away are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def _forward(self) -> None:
        proxy = self.server.proxy
        fault = proxy.draw(self.command)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault is not None and fault.isdigit():
            self._answer(int(fault), [], b"", fault)
            return
        status, headers, content = self._ask_upstream(body)
        # An answer too small to break in half, such as an error's, is broken by a status.
        if fault is not None and (len(content) < 2 or status not in (200, 206)):
            status, headers, content, fault = 503, [], b"", "503"
        self._answer(status, headers, content, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def _ask_upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """The upstream's answer, as far as it came. Host goes on unchanged: signatures are made over it."""
        upstream = self.server.proxy.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            try:
                content = answer.read()
            except http.client.IncompleteRead as broken:
                content = broken.partial
            return answer.status, answer.getheaders(), content
        except OSError:
            return 502, [], b""
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, fault: str | None) -> None:
        half = fault in ("reset", "truncated", "unsized", "short", "stall")
        sent = content[: len(content) // 2] if half else content
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        asked = (int(found[1]), int(found[2])) if found else None
        self.server.proxy.record(Request(self.command, self.path, asked, status, fault, len(sent)))
        self._send_headers(status, headers, len(content), len(sent), fault)
        if self.command != "HEAD":
            self.wfile.write(sent)
            self.wfile.flush()
        if half or len(sent) < self._promised:
            self.close_connection = True
        if fault == "stall":
            self.server.proxy.closing.wait(self.server.proxy.stall)
        if fault == "reset":
            self._reset()

    def _send_headers(
        self, status: int, headers: list[tuple[str, str]], length: int, sent: int, fault: str | None
    ) -> None:
        self.send_response_only(status)
        self._promised = 0
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() == "content-range" and fault == "wrong_range":
                value = re.sub(r"(\d+)-(\d+)/", lambda m: f"{int(m[1]) + 1}-{int(m[2]) + 1}/", value)
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if fault == "unsized":
            self.send_header("Connection", "close")
        else:
            promised = lengths[0] if lengths and fault != "short" else str(sent if fault == "short" else length)
            self._promised = 0 if self.command == "HEAD" else int(promised)
            self.send_header("Content-Length", promised)
        self.end_headers()

    def _reset(self) -> None:
        time.sleep(DRAINING_SECONDS)
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Closing without shutdown is what turns the rest into a reset.
        self.rfile.close()
        with contextlib.suppress(OSError):
            self.connection.close()
