"""A server of one data set that speaks as much of the hub's HTTP as reading parts of its files needs."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/edits"


class Hub:
    """Serves files; `served` counts the bytes of their contents that were sent."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.served = files, 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None: ...

            def do_GET(self) -> None:
                hub._get(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _entries(self) -> list[dict[str, Any]]:
        folders = {str(parent) for name in self.files for parent in PurePosixPath(name).parents} - {"."}
        return [{"type": "directory", "path": name, "oid": COMMIT} for name in sorted(folders)] + [
            {"type": "file", "path": name, "size": len(data), "oid": COMMIT}
            for name, data in self.files.items()
        ]

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        name = path.removeprefix(f"/datasets/{REPO}/resolve/main/")
        if re.fullmatch(rf"/api/datasets/{REPO}(/revision/main)?", path):
            _reply(request, {"id": REPO, "sha": COMMIT, "siblings": []})
        elif path.startswith(tree := f"/api/datasets/{REPO}/tree/main"):
            folder = PurePosixPath(path.removeprefix(tree).strip("/"))
            deep = "recursive=true" in request.path
            below = [e for e in self._entries() if folder in PurePosixPath(e["path"]).parents]
            _reply(request, [e for e in below if deep or PurePosixPath(e["path"]).parent == folder])
        elif name in self.files:
            first, last = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
            part = self.files[name][first : last + 1]
            self.served += len(part)
            _send(request, part, 206)
        else:
            _reply(request, {"error": "not found"}, 404)


def _reply(request: BaseHTTPRequestHandler, value: Any, status: int = 200) -> None:
    _send(request, json.dumps(value).encode(), status)


def _send(request: BaseHTTPRequestHandler, data: bytes, status: int) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(data)))
    request.send_header("X-Repo-Commit", COMMIT)
    request.end_headers()
    request.wfile.write(data)
