"""A Hugging Face Hub on this machine, as far as the client needs one to push and to load."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"
COMMIT = "0123456789" * 4
NAME = r"([\w.-]+/[\w.-]+)"


class HubServer(ThreadingHTTPServer):
    """Repositories, and the rules by which they are read and written.

    Attributes:
        url: of the server.
        files: of each repository, by its name and theirs.
        is_down: whether every request is answered with an error of the server.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, dict[str, bytes]] = {}
        self.is_down = False

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        self.files.setdefault(name, {})
        return {"url": f"{self.url}/{name}", "name": name}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        for value in (line["value"] for line in lines if line["key"] == "file"):
            self.files[name][value["path"]] = base64.b64decode(value["content"])
        url = f"{self.url}/{name}/commit/{COMMIT}"
        return {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        found = re.fullmatch(rf"/{NAME}/resolve/main/([\w.]+)", self.path)
        repository = self.server.files.get(found[1]) if found else None
        if self.server.is_down:
            self.refuse(503)
        elif found is None:
            self.refuse(404)
        elif repository is None:  # those without a token are not told
            self.refuse(404 if self.has_token() else 401, "RepoNotFound")
        elif found[2] not in repository:
            self.refuse(404, "EntryNotFound")
        else:
            content = repository[found[2]]
            etag = hashlib.sha1(content).hexdigest()
            self.respond(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.is_down:
            self.refuse(503)
        elif not self.has_token() and self.path != "/api/validate-yaml":
            self.refuse(401)
        else:
            self.respond(200, json.dumps(self.answer(body)).encode())

    def answer(self, body: bytes) -> dict[str, Any]:
        content = [json.loads(line) for line in body.splitlines()]
        if self.path == "/api/repos/create":
            return self.server.create(content[0])
        if self.path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in content[0]["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False}  # within the commit
            return {"files": [{"path": path, **mode} for path in paths]}
        found = re.fullmatch(rf"/api/models/{NAME}/commit/main", self.path)
        assert found is not None, self.path
        return self.server.commit(found[1], content)

    def has_token(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def refuse(self, code: int, reason: str = "") -> None:
        headers = {"X-Error-Code": reason} if reason else {}
        self.respond(code, json.dumps({"error": reason}).encode(), headers)

    def respond(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A server that runs as long as the context."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
