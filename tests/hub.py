"""A server on this machine that speaks as much of the Hub's protocol as pushing and loading a model needs.

Commits are kept in memory. It can lose the connection while it reads, refuse to let anybody write, and demand a token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What the server holds. `cuts`: how many uploads or commits are still to be lost half-way."""

    cuts: int = 0
    lost_replies: int = 0  # commits that are made and whose reply never arrives
    busy: list[int] = field(default_factory=list)  # statuses with which the next commits are put off, the last first
    writable: bool = True
    private: bool = False
    url: str = ""
    exists: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)  # by sha256
    files: dict[str, bytes] = field(default_factory=dict)  # of the newest commit
    commits: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


@contextmanager
def hub(**state: Any) -> Iterator[Hub]:
    """The server, running at `url`: what HF_ENDPOINT is set to."""
    held = Hub(**state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": held}))
    held.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        self._route({
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": self._validate,
            r"/api/models/.+/preupload/main": self._preupload,
            r"/.+\.git/info/lfs/objects/batch": self._batch,
            r"/api/models/.+/commit/main": self._commit,
        })  # fmt: skip

    def do_PUT(self) -> None:
        self._route({r"/blobs/(.+)": self._store})

    def do_GET(self) -> None:
        self._route({
            r"/api/models/[^/]+/[^/]+(/revision/[^/]+)?": self._info,
            r"/[^/]+/[^/]+/resolve/[^/]+/(.+)": self._file,
        })  # fmt: skip

    do_HEAD = do_GET

    def _route(self, routes: dict[str, Any]) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        for pattern, answer in routes.items():
            if match := re.fullmatch(pattern, path):
                self.match = match
                answer()
                return
        self._error(404, "EntryNotFound")

    def _create(self) -> None:
        asked = json.loads(self._body())
        if not self.hub.writable:
            self._error(403, None)
            return
        if not self.hub.exists:
            self.hub.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        status = 409 if self.hub.exists else 200
        self.hub.exists = True
        self._json({"url": f"{self.hub.url}/{asked['organization']}/{asked['name']}"}, status)

    def _validate(self) -> None:
        self._body()
        self._json({"errors": [], "warnings": []})

    def _preupload(self) -> None:
        asked = json.loads(self._body())["files"]
        large = (".safetensors", ".png")
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(large) else "regular",
                "shouldIgnore": False,
                "oid": self._oid(each["path"], each["path"].endswith(large)),
            }
            for each in asked
        ]
        self._json({"files": files})

    def _oid(self, path: str, large: bool) -> str | None:
        """As git names a blob, or LFS."""
        if (data := self.hub.files.get(path)) is None:
            return None
        return hashlib.sha256(data).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def _batch(self) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{each['oid']}"}}}
            if each["oid"] not in self.hub.blobs
            else each
            for each in json.loads(self._body())["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _store(self) -> None:
        if self._cut():
            return
        data = self._body()
        assert hashlib.sha256(data).hexdigest() == self.match[1]
        self.hub.blobs[self.match[1]] = data
        self._json({})

    def _commit(self) -> None:
        if self._cut():
            return
        if self.hub.busy:
            self._body()
            self._error(self.hub.busy.pop(), None)
            return
        lines = [json.loads(line) for line in self._body().splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.hub.files[value["path"]]
        self.hub.commits.append(lines[0]["value"])
        if self.hub.lost_replies:
            self.hub.lost_replies -= 1
            self._hang_up()
            return
        self._json({"commitUrl": f"{self.hub.url}/user/name/commit/{self.hub.sha}", "commitOid": self.hub.sha})

    def _info(self) -> None:
        if not self.hub.exists:
            self._error(404, "RepoNotFound")
            return
        siblings = [{"rfilename": name} for name in self.hub.files]
        self._json({"id": "user/name", "sha": self.hub.sha, "private": self.hub.private, "siblings": siblings})

    def _file(self) -> None:
        data = self.hub.files.get(self.match[1])
        if data is None:
            self._error(404, "EntryNotFound")
            return
        self._send(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def _cut(self) -> bool:
        """Whether the connection was lost half-way."""
        if not self.hub.cuts:
            return False
        self.hub.cuts -= 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
        self._hang_up()
        return True

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str | None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": self.hub.sha, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
