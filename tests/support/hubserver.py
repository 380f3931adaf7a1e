"""A stand-in for the Hugging Face hub: the calls by which it serves a repository's files, on this machine."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_of(repositories, *, sizes=None):
    """Serve `{"owner/name": {"file": bytes}}`; yield the address and the list of files that were downloaded.

    `sizes` are what the server says of files, where it lies.
    """
    downloaded = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._about(parts[2:])
            elif len(parts) > 4 and parts[2] == "resolve":
                self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self._say(404, b"{}")

        def _about(self, parts):
            files = repositories.get("/".join(parts[:2]))
            revision = parts[3] if len(parts) > 3 else "main"
            if files is None:
                return self._say(
                    401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
                )
            if revision not in ("main", "v1", COMMIT):
                return self._say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            told = sizes or {}
            if parts[2:3] == ["tree"]:
                rows = [
                    {"type": "file", "path": name, "size": told.get(name, len(data)), "oid": _oid(data)}
                    for name, data in files.items()
                ]
                return self._say(200, json.dumps(rows).encode())
            siblings = [{"rfilename": name, "size": told.get(name, len(data))} for name, data in files.items()]
            about = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            return self._say(200, json.dumps(about).encode())

        def _file(self, repository, _, name):
            data = repositories.get(repository, {}).get(name)
            if data is None:
                return self._say(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            if self.command == "GET":
                downloaded.append(name)
            return self._say(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(data)}"'})

        def _say(self, code, body, headers=None):
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", downloaded
    finally:
        server.shutdown()
        server.server_close()


def _oid(data):
    return hashlib.sha1(data).hexdigest()
