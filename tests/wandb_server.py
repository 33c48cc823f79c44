"""A small W&B server on this machine: it speaks what wandb 0.31 says, keeps what it is sent and answers a resume.

What the client asks is GraphQL (its queries stand in ``wandb-core`` as text); rows, summary and state come to
``/files/ENTITY/PROJECT/RUN/file_stream`` as lines at offsets of named files; other files are put to the URLs that the
server gave for them. Whoever sends a line to a place that holds another one has lost a row: :attr:`Received.lost`.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

ENTITY = "team"
KEY = "0123456789abcdef0123456789abcdef01234567"
"""As long as W&B's; any other is refused."""
HISTORY, SUMMARY, SYSTEM, OUTPUT = "wandb-history.jsonl", "wandb-summary.json", "wandb-events.jsonl", "output.log"
FILE_STREAM = re.compile(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream")


@dataclass
class ReceivedRun:
    """What one W&B run is made of."""

    identity: str
    upserts: list[dict[str, Any]] = field(default_factory=list)
    """The variables of every ``UpsertBucket``."""
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    """By file, by place."""
    lost: list[str] = field(default_factory=list)
    """Rows over which another was written."""
    exit_codes: list[int] = field(default_factory=list)
    num_preempting: int = 0
    alerts: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history, in the order in which W&B holds it."""
        return [json.loads(line) for _, line in sorted(self.lines.get(HISTORY, {}).items())]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.rows]

    @property
    def summary(self) -> dict[str, Any]:
        """As it was sent last."""
        lines = self.lines.get(SUMMARY, {})
        summary: dict[str, Any] = json.loads(lines[max(lines)]) if lines else {}
        return summary

    @property
    def settings(self) -> dict[str, Any]:
        """What was said of group, type, name, tags, configuration; what came last counts."""
        known: dict[str, Any] = {}
        for variables in self.upserts:
            known |= {name: value for name, value in variables.items() if value is not None}
        return known

    def take(self, sent: dict[str, Any]) -> None:
        """One request to the file stream."""
        for name, part in (sent.get("files") or {}).items():
            held = self.lines.setdefault(name, {})
            for place, line in enumerate(part["content"], start=part["offset"]):
                if name == HISTORY and held.get(place, line) != line:
                    self.lost.append(held[place])
                held[place] = line
        self.num_preempting += bool(sent.get("preempting"))
        if sent.get("complete"):
            self.exit_codes.append(sent.get("exitcode", 0))

    def bucket(self) -> dict[str, Any]:
        """What a resume is told."""

        def count(name: str) -> int:
            return max(self.lines.get(name, {}), default=-1) + 1

        tail = [self.lines[HISTORY][count(HISTORY) - 1]] if count(HISTORY) else []
        config = self.settings.get("config") or "{}"
        return {
            "id": self.identity,
            "name": self.identity,
            "summaryMetrics": json.dumps(self.summary),
            "displayName": self.settings.get("displayName"),
            "historyLineCount": count(HISTORY),
            "eventsLineCount": count(SYSTEM),
            "logLineCount": count(OUTPUT),
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "config": config,
            "tags": self.settings.get("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }


@dataclass
class Received:
    """Everything that came."""

    runs: dict[str, ReceivedRun] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    """Every request's body and address, as sent, unpacked."""
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    """The inputs of every ``CreateArtifact``."""
    unknown: list[str] = field(default_factory=list)
    """Queries that this server has no answer to."""
    refused: list[str] = field(default_factory=list)
    """The addresses of what came with another key."""
    stalls: threading.Event = field(default_factory=threading.Event)
    """Set: rows are taken from the wire and never answered."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, identity: str) -> ReceivedRun:
        return self.runs.setdefault(identity, ReceivedRun(identity))


@dataclass(frozen=True)
class WandbServer:
    """A server that runs."""

    url: str
    received: Received

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    received: ClassVar[Received]

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/sdk/otel/"):  # wandb about itself; it comes without the key
            with self.received.lock:
                self.received.bodies.append(self.path.encode() + b" " + body)
            self.close_connection = True
            self._answer({})
            return
        if not self._is_known():
            self.received.refused.append(self.path)
            self._answer({"errors": [{"message": "invalid API key"}]}, status=401)
            return
        if FILE_STREAM.fullmatch(self.path):
            while self.received.stalls.is_set():
                time.sleep(0.05)
        with self.received.lock:
            self.received.bodies.append(self.path.encode() + b" " + body)
            if match := FILE_STREAM.fullmatch(self.path):
                self.received.run(match[3]).take(json.loads(body))
                self._answer({})
            elif self.path == "/graphql":
                self._answer({"data": self._data(json.loads(body))})
            else:
                self.received.unknown.append(self.path)
                self._answer({}, status=404)

    def do_GET(self) -> None:
        self._answer({}, status=200)

    def do_PUT(self) -> None:
        body = self._body()
        with self.received.lock:
            self.received.bodies.append(self.path.encode() + b" " + body)
            _, _, identity, name = self.path.split("/", 3)
            self.received.run(identity).files[name] = body
        self._answer({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _is_known(self) -> bool:
        expected = base64.b64encode(f"api:{KEY}".encode()).decode()
        return self.headers.get("Authorization") == f"Basic {expected}"

    def _data(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else query
        answer = getattr(self, f"_on_{name}", None)
        if answer is None:
            self.received.unknown.append(name)
            return {}
        data: dict[str, Any] = answer(variables)
        return data

    def _on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": _viewer()}

    _on_GetViewer = _on_Viewer

    def _on_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _on_RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.received.runs.get(variables["name"])
        bucket = run.bucket() if run is not None and run.upserts else None
        return {"model": {"id": "p", "name": variables["project"], "entity": _entity(), "bucket": bucket}}

    def _on_UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        identity = variables.get("name") or variables["id"]
        run = self.received.run(identity)
        inserted = not run.upserts
        run.upserts.append(variables)
        project = {"id": "p", "name": run.settings.get("project") or "p", "entity": _entity()}
        bucket = run.bucket() | {"description": None, "sweepName": None, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _on_CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        address = f"http://{self.headers['Host']}/put/{variables['run']}"
        files = [{"name": name, "uploadUrl": f"{address}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def _on_NotifyScriptableRunAlert(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.received.run(variables["runName"]).alerts.append(variables)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _on_ArtifactType(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _on_XXHashDigestsEnabled(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _on_FetchArtifactDigestAlgorithm(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifactType": None}}

    def _on_CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        sent = variables["input"]
        self.received.artifacts.append(sent)
        artifact = {"id": sent["clientID"], "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _on_CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        file = self._artifact_file(variables["artifactID"], variables["name"])
        return {"createArtifactManifest": {"artifactManifest": {"id": variables["artifactID"], "file": file}}}

    def _on_UpdateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        identity = variables["artifactManifestID"]
        file = self._artifact_file(identity, "wandb_manifest.json")
        return {"updateArtifactManifest": {"artifactManifest": {"id": identity, "file": file}}}

    def _on_CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for file in variables["input"]["artifactFiles"]:
            owner = file["artifactID"]
            known = {"storagePath": file["name"], "uploadMultipartUrls": None, "artifact": {"id": owner}}
            nodes.append({"node": known | self._artifact_file(owner, file["name"])})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _on_CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}

    def _artifact_file(self, identity: str, name: str) -> dict[str, Any]:
        url = f"http://{self.headers['Host']}/put/artifact-{identity}/{name}"
        return {"id": name, "uploadUrl": url, "uploadHeaders": []}

    def _on_MarkRunFilesUploaded(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"markRunFilesUploaded": {"success": True}}

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def _entity() -> dict[str, str]:
    return {"id": "e", "name": ENTITY}


def _viewer() -> dict[str, Any]:
    teams = {"edges": [{"node": {"name": ENTITY}}]}
    return {"id": "v", "entity": ENTITY, "username": "somebody", "email": "", "flags": "{}", "teams": teams}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or that does not say goodbye, is no news."""


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Serve until the block ends."""
    received = Received()
    handler = type("Handler", (_Handler,), {"received": received})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield WandbServer(f"http://127.0.0.1:{server.server_port}", received)
    finally:
        received.stalls.clear()
        server.shutdown()
        server.server_close()
        thread.join()
