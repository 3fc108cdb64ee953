"""A local W&B server, with the functions that a client needs to upload a run or a dashboard.

It keeps all requests, and can be told to hang, to refuse connections, or to forbid everything.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

KEY = "0123456789abcdef" * 2 + "01234567"  # of the length that W&B's keys have

PROJECT = {"id": "P", "name": "p", "entity": {"id": "E", "name": "somebody"}}
Behaviour = Literal["answer", "hang", "forbid", "refuse"]


@dataclass
class WandbServer:
    """What a server was sent, and how it behaves.

    Attributes:
        url: of the server.
        behaviour: may be changed while it runs.
        asked: the GraphQL operations and their variables.
        sent: other requests: path and body.
        saw_a_row: set once a row of metrics has come.
    """

    url: str = ""
    behaviour: Behaviour = "answer"
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    saw_a_row: threading.Event = field(default_factory=threading.Event)

    def variables(self, operation: str) -> list[dict[str, Any]]:
        return [variables for name, variables in self.asked if name == operation]

    def streamed(self, file: str, run: str = "") -> list[dict[str, Any]]:
        """The lines of a file such as wandb-history.jsonl, in the order in which they came."""
        lines = []
        for path, body in self.sent:
            if path.endswith(f"{run}/file_stream"):
                files = json.loads(body).get("files") or {}
                lines += [json.loads(line) for line in files.get(file, {}).get("content", [])]
        return lines

    def everything(self) -> str:
        """All that it was sent, as text."""
        requests = [json.dumps(variables) for _, variables in self.asked]
        bodies = [body.decode(errors="replace") for _, body in self.sent]
        return "\n".join([*requests, *bodies])

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What the real server answers, reduced to what the client reads."""
        return (
            self._about_runs(operation, variables)
            or self._about_artifacts(operation, variables)
            or self._about_projects(operation, variables)
        )

    def _about_runs(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        run = {"id": "R", "name": variables.get("name"), "displayName": "", "description": ""}
        run |= {"config": "{}", "sweepName": None, "project": PROJECT, "historyLineCount": 0}
        user = {"id": "U", "entity": "somebody", "username": "somebody", "email": "", "flags": "{}"}
        match operation:
            case "Viewer":
                return {"viewer": user | {"teams": {"edges": []}}}
            case "GetDefaultEntity":
                return {"viewer": user | {"entity": "somebody"}}
            case "RunResumeStatus":
                name = variables["name"]
                rows = self.streamed("wandb-history.jsonl", name)
                if not rows:
                    return {"model": PROJECT | {"bucket": None}}
                last = json.dumps([json.dumps(rows[-1])])
                bucket = run | {"summaryMetrics": "{}", "tags": [], "notes": "", "logLineCount": 0}
                bucket |= {"historyLineCount": len(rows), "historyTail": last}
                bucket |= {"eventsLineCount": 0, "eventsTail": "[]", "wandbConfig": '{"t": 1}'}
                return {"model": PROJECT | {"bucket": bucket}}
            case "UpsertBucket":
                return {"upsertBucket": {"bucket": run, "inserted": True}}
            case "CreateRunFiles":
                files = [
                    {"name": name, "uploadUrl": f"{self.url}/upload/{name}"}
                    for name in variables["files"]
                ]
                return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}
        return {}

    def _about_artifacts(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        place = {"uploadUrl": f"{self.url}/upload/manifest", "uploadHeaders": []}
        manifest = {"id": "M", "file": {"id": "F", "name": "m", "displayName": "m"} | place}
        match operation:
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "CreateArtifact":
                sequence = {"id": "S", "latestArtifact": None}
                artifact = {"id": "A", "state": "PENDING", "artifactSequence": sequence}
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest":
                return {"createArtifactManifest": {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                nodes = [
                    {
                        "id": f"F{number}",
                        "name": file["name"],
                        "displayName": file["name"],
                        "uploadUrl": f"{self.url}/upload/{file['name']}",
                        "uploadHeaders": [],
                        "storagePath": "x",
                        "uploadMultipartUrls": None,
                        "artifact": {"id": "A"},
                    }
                    for number, file in enumerate(variables["input"]["artifactFiles"])
                ]
                edges = [{"node": node} for node in nodes]
                return {"createArtifactFiles": {"files": {"edges": edges}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": {"id": "A", "digest": "x"}}}
        return {}

    def _about_projects(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "GetProjects":
                page = {"endCursor": None, "hasNextPage": False}
                details: dict[str, Any] = {
                    "entityName": "somebody",
                    "createdAt": "2026-11-25T00:00:00",
                }
                details |= {"isBenchmark": False, "user": None}
                nodes = [{"node": PROJECT | details, "cursor": ""}]
                return {"models": {"edges": nodes, "pageInfo": page}}
            case "UpsertView2" | "upsertView":
                view = {"id": "Vmlldzox", "name": variables["name"], "type": variables["type"]}
                view |= {"displayName": variables["displayName"], "description": ""}
                view |= {"project": PROJECT | {"entityName": "somebody"}}
                view |= {"spec": variables["spec"], "updatedAt": "2026-11-25T00:00:00"}
                return {"upsertView": {"view": view, "inserted": True}}
        return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: "QuietServer"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def do_POST(self) -> None:
        self._take()

    def _take(self) -> None:
        body, state = self._body(), self.server.state
        if state.behaviour == "hang":
            self.server.over.wait()
        if state.behaviour in ("hang", "refuse"):
            self.close_connection = True
            return
        if state.behaviour == "forbid":
            self._reply({}, 403)
        elif self.path == "/graphql":
            question = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", question["query"])
            operation = found[1] if found else ""
            variables = question.get("variables") or {}
            state.asked.append((operation, variables))
            self._reply({"data": state.answer(operation, variables)})
        else:
            state.sent.append((self.path, body))
            self._reply({})
            if state.streamed("wandb-history.jsonl"):
                state.saw_a_row.set()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _reply(self, content: dict[str, Any], status: int = 200) -> None:
        reply = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, state: WandbServer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.state = state
        self.over = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients go away as they please

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self.state.behaviour != "refuse"  # closed at once, before a word


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Run one for as long as it is wanted."""
    state = WandbServer()
    server = QuietServer(state)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
