"""Hubs on this machine: real HTTP servers that answer as a hub does, refuse, return errors, or never answer."""

import hashlib
import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Serves the folders of `server.models`, {name: folder}, in the layout of the Hugging Face hub. With a
    `server.status` it returns that instead."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.server.asked.append(self.path)
        if status := self.server.status:
            self.server.status = self.server.then
            return self.reply(status, b"", self.server.headers)
        name, _, rest = self.path.strip("/").partition("/resolve/")
        name = name.removeprefix("api/models/").removeprefix("datasets/").partition("/revision/")[0]
        name, _, tree = name.partition("/tree/")
        folder, file = self.server.models.get(name), rest.partition("/")[2]
        if folder is None:
            return self.reply(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if tree:
            found = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name}
                for path in folder.iterdir()
            ]
            return self.reply(200, json.dumps([] if "/" in tree else found).encode(), {})
        if not rest:
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            return self.reply(200, json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode(), {})
        if not (folder / file).is_file():
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = (folder / file).read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        self.reply(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"})

    do_GET = do_HEAD

    def reply(self, status, content, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def hub(models=None, status=0, then=0, **headers):
    """A server that has these models or returns a status, and after the first time another one. `server.asked` lists
    the paths that it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.models, server.headers, server.asked = models or {}, headers, []
    server.status, server.then = status, then or status
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent():
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed():
    """A URL at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def started(server):
    """The URL of a server, or of nothing that answers."""
    if isinstance(server, str):
        yield server
    else:
        with server as running:
            yield getattr(running, "url", running)
