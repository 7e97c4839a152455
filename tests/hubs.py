"""Local HTTP servers that imitate model hubs: they respond, reject, return errors, or never respond."""

import base64
import hashlib
import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Serves the folders of `server.models`, {name: folder}, in the layout of the Hugging Face hub, or returns
    `server.status` if it is set."""

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


class Uploads(Handler):
    """Accepts uploads like the Hugging Face hub: small files in the commit, large ones through git LFS. Files are
    stored in `server.stored`, {name of the model: {"private": …, "files": {path: bytes}}}."""

    def do_GET(self):
        name = self.path.removeprefix("/api/models/")
        if name not in self.server.stored:
            return self.do_HEAD()
        self.respond({"id": name, "sha": COMMIT, "siblings": [], "private": self.server.stored[name]["private"]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        self.server.tokens.append(self.headers.get("Authorization"))
        if status := self.server.status:
            return self.respond({"error": "not allowed"}, status)
        stored, path = self.server.stored, self.path
        if path == "/api/validate-yaml":
            return self.respond({"warnings": [], "errors": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in stored:
                return self.respond(
                    {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409
                )
            stored[name] = {
                "private": asked.get("visibility") == "private" or asked.get("private") is True,
                "files": {},
            }
            return self.respond({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.respond({"transfer": "basic", "objects": objects})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {"path": one["path"], "uploadMode": "lfs" if one["size"] > 10_000 else "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.respond({"files": files})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                stored[name]["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                stored[name]["files"][value["path"]] = self.server.objects[value["oid"]]
        address = f"{self.server.url}/{name}/commit/{COMMIT}"
        self.respond({"success": True, "commitUrl": address, "commitOid": COMMIT, "hookOutput": ""})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        ok = hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self.respond({}, 200 if ok else 400)

    def respond(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class ModelScope(Uploads):
    """Accepts uploads like ModelScope (package modelscope 1.40), and stores them in `server.stored`."""

    def do_GET(self):
        name = self.path.removeprefix("/api/v1/models/")
        if name in self.server.stored:
            return self.done({"Path": "me", "Visibility": 1 if self.server.stored[name]["private"] else 5})
        self.respond({"Code": 10010205001, "Message": "not found", "Success": False}, 404)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(self.path)
        self.server.tokens.append(self.headers.get("Authorization"))
        if status := self.server.status:
            return self.respond({"Code": status, "Message": "not allowed", "Success": False}, status)
        if self.path == "/api/v1/models":
            name = f"{asked['Path']}/{asked['Name']}"
            if name in self.server.stored:
                return self.respond({"Code": 10010101002, "Message": "the model already exists", "Success": False}, 400)
            self.server.stored[name] = {"private": asked["Visibility"] == 1, "license": asked["License"], "files": {}}
            return self.done({})
        if self.path.endswith("/info/lfs/objects/batch"):
            urls = {one["oid"]: f"{self.server.url}/lfs/{one['oid']}" for one in asked["objects"]}
            return self.done({"objects": [{"oid": i, "actions": {"upload": {"href": url}}} for i, url in urls.items()]})
        files = self.server.stored["/".join(self.path.split("/")[5:7])]["files"]
        for one in asked["actions"]:
            is_large = one["type"] == "lfs"
            content = self.server.objects[one["sha256"]] if is_large else base64.b64decode(one["content"])
            files[one["path"]] = content
        self.done({})

    def done(self, value):
        self.respond({"Code": 200, "Data": value, "Success": True})


@contextmanager
def hub(models=None, status=0, then=0, handler=Uploads, **headers):
    """Starts a server that has these models or returns a status, a different one after the first request.
    `server.asked` lists the requested paths."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.models, server.headers, server.asked = models or {}, headers, []
    server.stored, server.objects, server.tokens = {}, {}, []
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
    """Returns the URL of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed():
    """Returns a URL with no server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def started(server):
    """Returns the URL of a server, or one that never responds."""
    if isinstance(server, str):
        yield server
    else:
        with server as running:
            yield getattr(running, "url", running)
