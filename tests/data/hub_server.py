"""A server that speaks as much of the hub's HTTP as is needed here, and a process that talks to it."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/edits"


class Hub:
    """One data set of files, and a model to upload; remembers what it was asked.

    Attributes:
        files: Name -> content.
        faults: What befalls the next downloads of data: after how many bytes each breaks off; 0 refuses it.
        asked: Method and path of each request.
        ranges: What part of a file each download of data asked for.
        uploaded: What the commits left; it is apart from `files`.
        tokens: Authorizations of uploads.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.faults: list[int] = []
        self.asked: list[str] = []
        self.ranges: list[str | None] = []
        self.uploaded: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None: ...

            def do_GET(self) -> None:
                hub._get(self)

            def do_HEAD(self) -> None:
                hub._get(self)

            def do_POST(self) -> None:
                hub._post(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(f"{request.command} {path}")
        resolved = f"/datasets/{REPO}/resolve/{COMMIT}/"
        if path == "/api/whoami-v2":
            _reply(request, {"name": "owner"})
        elif path == f"/api/datasets/{REPO}/revision/main":
            _reply(request, {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": n} for n in self.files]})
        elif path in (f"/api/datasets/{REPO}/tree/{COMMIT}", f"/api/datasets/{REPO}/tree/main"):
            files = self.uploaded if path.endswith("main") else self.files
            tree = [{"type": "file", "path": n, "size": len(d), "oid": _etag(d)} for n, d in files.items()]
            _reply(request, tree)
        elif path.startswith(resolved) and path.removeprefix(resolved) in self.files:
            self._send(request, path.removeprefix(resolved))
        else:
            _reply(request, {"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _send(self, request: BaseHTTPRequestHandler, name: str) -> None:
        data, part, end = self.files[name], request.headers.get("Range"), None
        if request.command == "GET" and name.startswith("data/"):
            self.ranges.append(part)
            end = self.faults.pop(0) if self.faults else None
        if end == 0:
            _reply(request, {"error": "gone"}, 403)
            return
        start = int(part.removeprefix("bytes=").split("-")[0]) if part else 0
        request.send_response(206 if part else 200)
        for header, value in {
            "Content-Length": len(data) - start,
            "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}",
            "Accept-Ranges": "bytes",
            "ETag": f'"{_etag(data)}"',
            "X-Repo-Commit": COMMIT,
        }.items():
            request.send_header(header, str(value))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data[start:end])
        request.close_connection = end is not None

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.asked.append(f"POST {path}")
        self.tokens.add(request.headers.get("Authorization"))
        if path == "/api/repos/create":
            _reply(request, {"url": f"{self.url}/datasets/{REPO}", "name": REPO})
        elif path == "/api/validate-yaml":
            _reply(request, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            _reply(request, {"files": modes, "commitOid": COMMIT})
        elif path in (f"/api/datasets/{REPO}/commit/main", f"/api/models/{REPO}/commit/main"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.uploaded[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    del self.uploaded[entry["value"]["path"]]
            address = f"{self.url}/datasets/{REPO}/commit/{COMMIT}"
            _reply(request, {"commitUrl": address, "commitOid": COMMIT, "success": True})
        else:
            _reply(request, {"error": f"unknown: {path}"}, 404)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _reply(
    request: BaseHTTPRequestHandler, value: Any, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    data = json.dumps(value).encode()
    request.send_response(status)
    own = {"Content-Type": "application/json", "Content-Length": str(len(data)), "X-Repo-Commit": COMMIT}
    for name, text in (own | (headers or {})).items():
        request.send_header(name, text)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)


_LOOP = """
import contextlib, io, json, os, sys
from wordbrush.cli import main
answers = sys.stdout
for line in sys.stdin:
    words, environment = json.loads(line)
    os.environ.update(environment)
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


class Client:
    """Runs `wordbrush data ...` in a process of its own, as the hub's client reads its settings only once."""

    def __init__(self, hub: Hub, home: str, **environment: str):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=inherited | own | environment,
            text=True,
        )

    def __call__(self, *words: str, **environment: str) -> tuple[int, str, str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([["data", *words], environment]) + "\n")
        self._process.stdin.flush()
        code, out, err = json.loads(self._process.stdout.readline())
        return code, out, err

    def close(self) -> None:
        self._process.communicate()
